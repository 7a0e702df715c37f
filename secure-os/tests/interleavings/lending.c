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

static bool timed, believed, thief, sorry;
static u8 messages = 2;

/* So are the model's. */
#include "tests/interleavings/state.c"
#include "tests/interleavings/found.c"
#include "tests/interleavings/secure_world.c"
#include "tests/interleavings/normal_world.c"

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
