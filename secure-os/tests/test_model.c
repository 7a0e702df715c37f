/*
 * Random programs of threads on three cores, beside a model of what they should do: who waits is not run before it is
 * woken or late, nobody who can run is forgotten, none runs twice, and each call answers what the model says.
 */
#include "tests/unit.h"

#include <stdlib.h>
#include <string.h>

#define CORES 3
#define WORDS 4
#define NAMES 1024
#define STEPS 2000
#define ROUNDS 3

enum model_state { ABSENT, CAN_RUN, WAITS };

struct model_thread {
	enum model_state state;
	u32 word; /* WORDS: none, it sleeps */
	u64 until;
	s64 answer; /* what its last call answers when it runs again */
	u32 since; /* the step that it waits since */
};

static struct model_thread threads[NAMES]; /* by the number that the thread was given */
static u32 on[CORES]; /* whom a core runs; 0: nobody */
static u32 alive;
static u32 now; /* the step */
static u32 last; /* the number that was given last */
static u32 woken, crowd; /* threads so far, and of them the most that a word had waiting */
static bool called; /* the OS, and no core has come since */

static u64 word_at(u32 word)
{
	return DATA + 16 * word;
}

static u32 can_run(void)
{
	u32 i, n = 0;

	for (i = 1; i < NAMES; i++)
		n += threads[i].state == CAN_RUN;
	return n;
}

static u32 running(void)
{
	u32 i, n = 0;

	for (i = 0; i < CORES; i++)
		n += on[i] != 0;
	return n;
}

static void pass_time(void)
{
	u32 i;

	for (i = 1; i < NAMES; i++)
		if (threads[i].state == WAITS && threads[i].until <= host.now) {
			threads[i].state = CAN_RUN;
			threads[i].answer = threads[i].word == WORDS ? 0 : ERROR_TIMEDOUT;
		}
}

/* What a core does now is what the model says that it may. */
static void check_core(u32 cpu)
{
	u32 name, other;

	if (nexts[cpu].yield == YIELD_IDLE) {
		on[cpu] = 0;
		CHECK_EQUAL(can_run(), running()); /* nobody is left that could run */
		return;
	}
	CHECK_EQUAL(nexts[cpu].yield, YIELD_NOT);
	name = (u32)threads_current(cpu)->number;
	CHECK(name < NAMES && threads[name].state == CAN_RUN);
	for (other = 0; other < CORES; other++)
		CHECK(other == cpu || on[other] != name);
	if (on[cpu] != name) { /* its registers are its own */
		CHECK(frames[cpu].x[19] == name || frames[cpu].x[0] == 0);
		CHECK(frames[cpu].x[19] != name || (s64)frames[cpu].x[0] == threads[name].answer);
		frames[cpu].x[19] = name;
	}
	CHECK_EQUAL(frames[cpu].x[19], name);
	on[cpu] = name;
	CHECK_EQUAL(threads_count(), alive);
}

static u64 call_model(u32 cpu, u64 number, u64 a, u64 b, u64 c, u64 d)
{
	const u64 x[6] = { a, b, c, d, a, 0xffffffff };

	pass_time();
	call_on(cpu, number, x);
	return frames[cpu].x[0];
}

static void step_wait(u32 cpu, u32 word)
{
	u32 self = on[cpu];
	bool timed = random() % 4 == 0 || can_run() == 1, sleeps = word == WORDS; /* somebody has to go on */
	u64 span = 1 + (u64)random() % 50, time[2] = { 0, span };

	CHECK(user_write(word_at(WORDS), time, sizeof(time)));
	pass_time();
	threads[self] = (struct model_thread){ WAITS, word, timed || sleeps ? host.now + span : FOR_EVER, 0, now };
	if (sleeps)
		call_model(cpu, LINUX_NANOSLEEP, word_at(WORDS), 0, 0, 0);
	else
		call_model(cpu, LINUX_FUTEX, word_at(word), 128, 0, timed ? word_at(WORDS) : 0);
}

/* Who has waited for this word longest; 0: nobody waits. */
static u32 longest(u32 word)
{
	u32 i, first = 0;

	for (i = 1; i < NAMES; i++)
		if (threads[i].state == WAITS && threads[i].word == word && (!first || threads[i].since < threads[first].since))
			first = i;
	return first;
}

static void step_wake(u32 cpu, u32 word)
{
	u64 most = (u64)random() % 4, count, answer;
	u32 name, waiting = 0;

	answer = call_model(cpu, LINUX_FUTEX, word_at(word), 129, most, 0);
	for (name = 1; name < NAMES; name++)
		waiting += threads[name].state == WAITS && threads[name].word == word;
	for (count = 0; count < most && (name = longest(word)); count++) {
		threads[name].state = CAN_RUN;
		threads[name].answer = 0;
	}
	CHECK_EQUAL(answer, count);
	woken += (u32)count;
	crowd = waiting > crowd ? waiting : crowd;
}

static void step_clone(u32 cpu)
{
	u64 answer = call_model(cpu, LINUX_CLONE, 0x3d0f00, DATA + 0x800, word_at(WORDS + 2), 0);

	if ((s64)answer == ERROR_AGAIN) {
		CHECK_EQUAL(alive, THREADS_MAX);
		return;
	}
	CHECK(answer < NAMES && threads[answer].state == ABSENT);
	threads[answer] = (struct model_thread){ CAN_RUN, 0, 0, 0, 0 };
	last = (u32)answer;
	alive++;
}

static void step(u32 cpu)
{
	long what = random() % 100;

	if (on[cpu] == 0) {
		pass_time();
		lend(cpu);
	} else if (what < 40) {
		step_wait(cpu, (u32)random() % (WORDS + 1));
	} else if (what < 65) {
		step_wake(cpu, (u32)random() % WORDS);
	} else if (what < 75) {
		threads[on[cpu]].answer = 0;
		call_model(cpu, LINUX_SCHED_YIELD, 0, 0, 0, 0);
	} else if (what < 90) {
		step_clone(cpu);
	} else if (can_run() > 1) {
		threads[on[cpu]].state = ABSENT;
		alive--;
		call_model(cpu, LINUX_EXIT, 0, 0, 0, 0);
	}
	check_core(cpu);
}

/* A core is called when there is work for it, and then comes. */
static void answer_bell(u64 bells)
{
	u32 cpu;

	if (can_run() <= running() || running() == CORES)
		return;
	if (!called)
		called = host.doorbells != bells;
	CHECK(called);
	if (random() % 3 == 0)
		return; /* the OS takes its time */
	called = false;
	for (cpu = 0; cpu < CORES; cpu++)
		if (on[cpu] == 0)
			step(cpu);
}

TEST(random_threads_do_what_the_model_says)
{
	static const u64 zeros[16];
	u64 bells;
	u32 round;

	for (round = 0; round < ROUNDS; round++) {
		srandom(round);
		boot();
		CHECK(user_write(DATA, zeros, sizeof(zeros)));
		memset(threads, 0, sizeof(threads));
		memset(on, 0, sizeof(on));
		threads[1].state = CAN_RUN;
		alive = on[0] = last = 1;
		called = false;
		woken = crowd = 0;
		frames[0].x[19] = 1;
		for (now = 0; now < STEPS && last < NAMES - 1; now++) {
			host.now += (u64)random() % 20;
			bells = host.doorbells;
			step((u32)random() % CORES);
			answer_bell(bells);
		}
		CHECK(woken > 50 && crowd > 2); /* the walk got somewhere */
	}
}
