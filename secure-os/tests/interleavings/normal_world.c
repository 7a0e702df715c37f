/* The driver's threads and its worker, interrupts and clocks, a client, and whoever else makes RUN. */
#define THEFTS 1

static void something_is_said(void)
{
	u32 i;

	for (i = 0; i < CORES; i++)
		now.cores[i].fresh = 0;
}

static void enter(struct core *core)
{
	core->at = INSIDE;
	core->resumed = core->inside != YIELDED;
	if (core->inside == YIELDED)
		core->inside = ENTERS;
}

static bool lender_step(u32 cpu)
{
	struct core *core = &now.cores[cpu];

	switch (core->at) {
	case READS:
		core->fresh = 1;
		core->at = RUNS;
		return true;
	case RUNS:
		enter(core);
		return true;
	case RESTS:
		if (core->fresh)
			return false;
		core->at = READS;
		core->rest = 0;
		return true;
	default:
		return inside_step(cpu);
	}
}

/* An interrupt, which comes at once. */
static bool interrupt(u32 cpu)
{
	struct core *core = &now.cores[cpu];

	if (core->at != INSIDE)
		return false;
	if (core->stolen) {
		core->at = core->stolen - 1;
		core->stolen = 0;
	} else {
		core->at = READS;
	}
	core->resumed = 0; /* it counts anew with the next RUN */
	return true;
}

/* Who rests goes on at its time. */
static bool time_passes(u32 cpu)
{
	struct core *core = &now.cores[cpu];
	u64 rest = core->rest;
	u32 i;

	if (core->at != RESTS || rest == 0)
		return false;
	host.now += rest;
	for (i = 0; i < CORES; i++)
		if (now.cores[i].at == RESTS && now.cores[i].rest)
			now.cores[i].rest -= now.cores[i].rest > rest ? rest : now.cores[i].rest - 1;
	core->at = READS;
	core->rest = 0;
	return true;
}

/* Somebody else makes RUN on a core, and does not heed what it answers. */
static bool steal(u32 cpu)
{
	struct core *core = &now.cores[cpu];

	if (!thief || core->at == INSIDE || now.thefts >= THEFTS)
		return false;
	now.thefts++;
	core->stolen = (u8)(core->at + 1);
	enter(core);
	return true;
}

/* The driver's worker, after the doorbell: it POLLs, and what was called is said to whoever lends. */
static bool worker_step(void)
{
	if (now.worker_says) {
		now.worker_says = 0;
		something_is_said();
		return true;
	}
	if (!now.bell)
		return false;
	now.bell = 0;
	now.worker_says = 1;
	if (now.wanted) {
		now.wanted = 0;
		*word(FLEX_AT_EVENT_HEAD) += 1;
	}
	return true;
}

static bool client_step(void)
{
	if (now.must_say) {
		now.must_say = 0;
		something_is_said();
		return true;
	}
	if (now.sent == messages || now.sent > now.answered + 1)
		return false;
	now.sent++;
	now.must_say = !timed;
	return true;
}

static bool apology(void)
{
	if (!sorry || now.thefts != THEFTS || now.apologised)
		return false;
	now.apologised = 1;
	something_is_said();
	return true;
}
