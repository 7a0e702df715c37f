/* One state of all of them: what of it the core's variables are, and what is the model's. */
#define CORES 2
#define ACTORS 2

/* Where a program's thread is, which one it is, and what it remembers: in registers that the kernel keeps. */
#define PLACE 19
#define WHO 20
#define SEEN 21

#define WORD DATA /* the futex: jobs that were given */

/* Where a core is. */
enum at {
	READS, /* its thread in the driver reads how often something was said */
	RUNS, /* it makes RUN */
	RESTS, /* until something is said that it has not seen */
	INSIDE,
};

/* Where the secure world of a core is, also while it is not lent. */
enum inside {
	YIELDED, /* it gave the core back, or has not begun */
	ENTERS,
	USES, /* a thread of the application runs */
	LEAVES, /* it is about to give the core back */
};

struct actor {
	u8 state, wait, late, turn;
	u64 address, answer, place, who, seen, until; /* from now on; FOR_EVER */
};

struct core {
	u8 at, inside, running; /* the actor + 1 */
	u8 fresh; /* nothing was said since it read that */
	u8 resumed; /* this RUN goes on with what was interrupted */
	u8 stolen; /* the core is inside for somebody else than the driver */
	u64 told; /* by YIELD: how long nothing happens */
	u64 rest; /* how long it rests; 0: for ever */
	u64 answer, place, who, seen; /* registers */
};

struct state {
	struct actor actors[ACTORS];
	struct core cores[CORES];
	u8 idle, called, news, events;
	u8 sent, must_say, read, jobs, done, wanted, bell, worker_says, answered, thefts, apologised;
};

static struct state now; /* the model's part of what is being changed; the core's variables are the other one */

static u8 rank(u64 turn)
{
	u8 i, before = 1;

	for (i = 0; i < ACTORS; i++)
		before += threads[i].turn < turn;
	return before;
}

static u64 later(u64 time)
{
	return time == FOR_EVER ? FOR_EVER : time <= host.now ? 0 : time - host.now;
}

static void save(struct state *to)
{
	u32 i;

	*to = now;
	for (i = 0; i < ACTORS; i++) {
		const struct thread *thread = &threads[i];
		const u64 *x = thread->context.frame.x;
		bool waits = thread->state == THREAD_WAITING, runs = thread->state == THREAD_RUNNING;

		memset(&to->actors[i], 0, sizeof(to->actors[i]));
		to->actors[i].state = (u8)thread->state;
		to->actors[i].turn = runs ? 0 : rank(thread->turn);
		to->actors[i].wait = waits ? (u8)thread->wait : 0;
		to->actors[i].address = waits && thread->wait == WAIT_FUTEX ? thread->address : 0;
		to->actors[i].until = waits ? later(thread->until) : 0;
		if (!runs) {
			to->actors[i].answer = waits ? 0 : x[0];
			to->actors[i].place = x[PLACE];
			to->actors[i].who = x[WHO];
			to->actors[i].seen = x[SEEN];
		}
	}
	for (i = 0; i < CORES; i++) {
		const u64 *x = frames[i].x;

		to->cores[i].running = running[i] ? (u8)(running[i] - threads + 1) : 0;
		to->cores[i].answer = running[i] ? x[0] : 0;
		to->cores[i].place = running[i] ? x[PLACE] : 0;
		to->cores[i].who = running[i] ? x[WHO] : 0;
		to->cores[i].seen = running[i] ? x[SEEN] : 0;
	}
	to->idle = (u8)idle;
	to->called = called;
	to->news = news;
	to->events = (u8)(*word(FLEX_AT_EVENT_HEAD) - event_tail);
}

static void registers(u64 *x, u64 answer, u64 place, u64 who, u64 seen)
{
	x[0] = answer;
	x[PLACE] = place;
	x[WHO] = who;
	x[SEEN] = seen;
}

static void restore(const struct state *of)
{
	u32 i, jobs = of->jobs;

	now = *of;
	for (i = 0; i < ACTORS; i++) {
		const struct actor *actor = &of->actors[i];

		threads[i].state = (enum thread_state)actor->state;
		threads[i].wait = (enum wait)actor->wait;
		threads[i].address = actor->address;
		threads[i].bits = ~0U;
		threads[i].until = actor->until == FOR_EVER ? FOR_EVER : host.now + actor->until;
		threads[i].late = 0;
		threads[i].turn = actor->turn;
		registers(threads[i].context.frame.x, actor->answer, actor->place, actor->who, actor->seen);
	}
	for (i = 0; i < CORES; i++) {
		const struct core *core = &of->cores[i];

		running[i] = core->running ? &threads[core->running - 1] : NULL;
		registers(frames[i].x, core->answer, core->place, core->who, core->seen);
	}
	last_turn = ACTORS + 1;
	idle = of->idle;
	called = of->called;
	news = of->news;
	*word(FLEX_AT_EVENT_HEAD) = event_tail + of->events;
	user_write(WORD, &jobs, sizeof(jobs));
}
