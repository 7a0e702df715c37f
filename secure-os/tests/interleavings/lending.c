/*
 * Every interleaving of who lends CPU time and who waits inside: is a wake-up ever lost?
 *
 * The secure OS is its own compiled code: threads, kernel, calls. Around it is a model of what has no code that runs
 * here: the driver's thread on each core (driver/flexmem/lend.c), its worker (service.c), EL3's switch (monitor/el3/world.c),
 * a client that writes messages, and an application of two threads. One serves: it looks for a message, and waits for
 * news; each message is computed with the other one, which it wakes by a futex and then spins for; then it asks the OS
 * for memory and waits for the event. Interrupts come wherever a core is in the secure world, as often as they like.
 *
 * All states are found. In each of them it must still be possible that all messages are answered: a state from which
 * it is not is a lost wake-up, and how it came to that is told. No wait has a time, so no clock repairs anything;
 * `timed` looks at the clocks alone: a client that writes messages and never says so.
 *
 * What each word of the command line changes is told where it is read. The memory between cores is sequentially
 * consistent here: the core's state is under its lock, the driver's under Linux's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The core's variables are in reach here: a state is put back by writing them. */
#include "core/flex_calls.c"
#include "core/kernel.c"
#include "core/mailbox.c"
#include "core/threads.c"
#include "tests/unit.h"

#define CORES 2
#define ACTORS 2
#define THEFTS 1
#define PERIOD 10 /* of a timed wait, in nanoseconds */
#define WORD DATA /* the futex: jobs that were given */
#define EVENT_AT (DATA + 64)
#define HOST_WAIT 128 /* FUTEX_WAIT, private */
#define HOST_WAKE 129
#define STATES_MAX (1U << 22)

/* Where a program's thread is, which one it is, and what it remembers: in registers that the kernel keeps. */
#define PLACE 19
#define WHO 20
#define SEEN 21

static bool timed, believed, thief, sorry;
static u8 messages = 2;

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

static struct state *states;
static u32 *from, *steps, *buckets, count, here;
static u64 *edges, edge_count, edge_room;
static struct state now; /* the model's part of what is being changed; the core's variables are the other one */

/* ---- a state, and the core's variables --------------------------------------------------------------------- */

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

/* ---- what is found ----------------------------------------------------------------------------------------- */

static u32 hash(const struct state *state)
{
	const u8 *byte = (const u8 *)state;
	u32 value = 2166136261U, i;

	for (i = 0; i < sizeof(*state); i++)
		value = (value ^ byte[i]) * 16777619U;
	return value;
}

/* A number of its own for each state that was reached. */
static void reached(u32 step)
{
	struct state *new = &states[count];
	u32 at;

	save(new);
	for (at = hash(new) % (2 * STATES_MAX); buckets[at]; at = (at + 1) % (2 * STATES_MAX))
		if (memcmp(&states[buckets[at] - 1], new, sizeof(*new)) == 0)
			break;
	if (!buckets[at]) {
		from[count] = here;
		steps[count] = step;
		buckets[at] = ++count;
		if (count == STATES_MAX)
			host_fail("more states than expected");
	}
	if (edge_count == edge_room) {
		edge_room = edge_room ? 2 * edge_room : 1 << 20;
		edges = realloc(edges, edge_room * sizeof(*edges));
		if (!edges)
			host_fail("no memory for so many steps");
	}
	edges[edge_count++] = (u64)here << 32 | (buckets[at] - 1);
}

/* ---- the secure world ---------------------------------------------------------------------------------------- */

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

/* ---- the normal world ---------------------------------------------------------------------------------------- */

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

/* ---- all of them ----------------------------------------------------------------------------------------------- */

enum { LENDER, INTERRUPT, TIME, STEAL, CLIENT = STEAL + 1, WORKER, APOLOGY, STEPS = (STEAL + 1) * CORES + 3 };

static bool step(u32 number)
{
	u32 cpu = number % CORES;

	if (number >= (STEAL + 1) * CORES) {
		switch (number - (STEAL + 1) * CORES + CLIENT) {
		case CLIENT: return client_step();
		case WORKER: return worker_step();
		default: return apology();
		}
	}
	switch (number / CORES) {
	case LENDER: return lender_step(cpu);
	case INTERRUPT: return interrupt(cpu);
	case TIME: return time_passes(cpu);
	default: return steal(cpu);
	}
}

static void tell(u32 number)
{
	static const char *const names[] = { "core", "interrupt of core", "time of core", "theft of core" };
	const struct state *state = &states[number];
	u32 i, step_made = steps[number];

	if (number != 0)
		tell(from[number]);
	if (number != 0 && step_made < (STEAL + 1) * CORES)
		printf("%s %u", names[step_made / CORES], step_made % CORES);
	else if (number != 0)
		printf("%s", (const char *const[]){ "client", "worker", "apology" }[step_made - (STEAL + 1) * CORES]);
	printf(":\t");
	for (i = 0; i < CORES; i++)
		printf(" core %u %s/%s runs %d%s;", i, (const char *const[]){ "reads", "runs", "rests", "inside" }[state->cores[i].at],
		       (const char *const[]){ "yielded", "enters", "uses", "leaves" }[state->cores[i].inside],
		       state->cores[i].running - 1, state->cores[i].fresh ? "" : " (said)");
	for (i = 0; i < ACTORS; i++)
		printf(" thread %u %s;", i, (const char *const[]){ "none", "ready", "running", "waiting" }[state->actors[i].state]);
	printf(" messages %u read %u answered %u\n", state->sent, state->read, state->answered);
}

/* States from which all messages can still be answered, found backwards; the first one that is none of them, or `count`. */
static u32 first_stuck(void)
{
	u8 *well = calloc(count, 1);
	bool more = true;
	u64 i;
	u32 stuck;

	for (i = 0; i < count; i++)
		well[i] = states[i].answered == messages;
	while (more) {
		more = false;
		for (i = edge_count; i-- > 0;)
			if (well[(u32)edges[i]] && !well[edges[i] >> 32]) {
				well[edges[i] >> 32] = 1;
				more = true;
			}
	}
	for (stuck = 0; stuck < count && well[stuck]; stuck++)
		;
	free(well);
	return stuck;
}

static void begin(void)
{
	u32 i;

	boot();
	CHECK_EQUAL(thread(DATA + 0x800, 0), 2);
	frames[0].x[WHO] = 0;
	threads[1].context.frame.x[WHO] = 1;
	threads[1].context.frame.x[PLACE] = frames[0].x[PLACE] = 0;
	now.cores[0].at = INSIDE;
	now.cores[0].inside = USES;
	for (i = 0; i < ACTORS; i++)
		threads[i].context.frame.x[0] = 0;
	frames[0].x[0] = 0;
	idle = called = news = 0;
	reached(0);
}

int main(int arguments, char **words)
{
	u32 number, stuck;
	int i;

	for (i = 1; i < arguments; i++) {
		timed |= !strcmp(words[i], "timed"); /* messages are written, and nobody says so */
		believed |= !strcmp(words[i], "believed"); /* EL3 believes that a core is idle which was interrupted on its way to say so */
		thief |= !strcmp(words[i], "thief"); /* twice somebody else makes RUN, and does not heed the answer */
		messages = thief ? 1 : messages; /* else there are too many states */
		sorry |= !strcmp(words[i], "sorry"); /* and then has those look who do */
	}
	states = calloc(STATES_MAX, sizeof(*states));
	from = calloc(STATES_MAX, sizeof(*from));
	steps = calloc(STATES_MAX, sizeof(*steps));
	buckets = calloc(2 * (size_t)STATES_MAX, sizeof(*buckets));
	if (!states || !from || !steps || !buckets)
		host_fail("no memory for so many states");
	begin();
	for (here = 0; here < count; here++)
		for (number = 0; number < STEPS; number++) {
			restore(&states[here]);
			if (step(number))
				reached(number);
		}
	stuck = first_stuck();
	if (stuck < count)
		tell(stuck);
	printf("%u states, %llu steps: %s\n", count, (unsigned long long)edge_count,
	       stuck < count ? "a wake-up is lost" : "no wake-up is lost");
	return 0;
}
