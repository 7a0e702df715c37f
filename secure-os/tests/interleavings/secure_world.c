/* The secure world of a core: the core's own code under the application's two threads, and EL3's switch around them. */
#define PERIOD 10 /* of a timed wait, in nanoseconds */
#define EVENT_AT (DATA + 64)
#define HOST_WAIT 128 /* FUTEX_WAIT, private */
#define HOST_WAKE 129

static void went(u32 cpu, struct next next)
{
	struct core *core = &now.cores[cpu];

	core->inside = next.yield == YIELD_NOT ? USES : LEAVES;
	core->told = next.yield == YIELD_NOT ? 0 : next.argument;
	if (next.yield == YIELD_ENDED)
		host_fail("the application has ended");
}

static void system_call(u32 cpu, u64 number, u64 a, u64 b, u64 c)
{
	u64 bells = host.doorbells;

	call_on(cpu, number, (u64[6]){ a, b, c, 0, 0, 0 });
	went(cpu, nexts[cpu]);
	now.bell |= host.doorbells != bells;
}

/* One step of the thread that serves; whether it can make one. */
static bool serve_step(u32 cpu, u64 *x)
{
	u64 place = x[PLACE];

	x[PLACE]++;
	switch (place) {
	case 0: /* is there a message? */
		x[PLACE] = now.sent > now.read ? 2 : 1;
		return true;
	case 1:
		x[PLACE] = 0;
		system_call(cpu, FLEX_SECURE_WAIT, timed ? PERIOD : FOR_EVER, 0, 0);
		return true;
	case 2: /* a job for the other one */
		now.read++;
		now.jobs++;
		return true;
	case 3:
		system_call(cpu, LINUX_FUTEX, WORD, HOST_WAKE, 1);
		return true;
	case 4: /* it spins */
		x[PLACE] = now.done == now.jobs ? 5 : 4;
		return now.done == now.jobs;
	case 5: /* a command into the mailbox, and the doorbell */
		now.wanted = now.bell = 1;
		return true;
	case 6:
		system_call(cpu, FLEX_SECURE_EVENT, EVENT_AT, 0, 0);
		return true;
	case 7: /* was there an event? */
		x[PLACE] = x[0] == 1 ? 9 : 8;
		return true;
	case 8:
		x[PLACE] = 6;
		system_call(cpu, FLEX_SECURE_WAIT, timed ? PERIOD : FOR_EVER, 0, 0);
		return true;
	default:
		now.answered++;
		x[PLACE] = 0;
		return true;
	}
}

static bool work_step(u32 cpu, u64 *x)
{
	switch (x[PLACE]) {
	case 0: /* a job? */
		x[SEEN] = now.jobs;
		x[PLACE] = now.jobs != now.done ? 2 : 1;
		return true;
	case 1:
		x[PLACE] = 0;
		system_call(cpu, LINUX_FUTEX, WORD, HOST_WAIT, x[SEEN]);
		return true;
	default:
		now.done = (u8)x[SEEN];
		x[PLACE] = 0;
		return true;
	}
}

static bool inside_step(u32 cpu)
{
	struct core *core = &now.cores[cpu];
	u64 bells = host.doorbells, *x = frames[cpu].x;

	switch (core->inside) {
	case ENTERS:
		lend(cpu);
		went(cpu, nexts[cpu]);
		now.bell |= host.doorbells != bells;
		return true;
	case USES:
		return x[WHO] == 0 ? serve_step(cpu, x) : work_step(cpu, x);
	default: /* LEAVES */
		if (core->resumed && !believed) {
			core->resumed = 0;
			core->inside = ENTERS;
			return true;
		}
		core->inside = YIELDED;
		core->resumed = 0;
		if (core->stolen) { /* whoever lent it does not heed the answer; the driver's thread is where it was */
			core->at = core->stolen - 1;
			core->stolen = 0;
		} else {
			core->at = RESTS;
			core->rest = core->told;
		}
		core->told = 0;
		return true;
	}
}
