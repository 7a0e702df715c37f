/* Threads, what they wait for, and the cores that are lent. */
#include "tests/unit.h"

#include <string.h>

#define WORD DATA /* a futex */
#define WAIT 128 /* FUTEX_WAIT, private */
#define WAKE 129
#define WAIT_BITSET 137
#define WAKE_BITSET 138
#define SECOND 1000000000ULL

static u64 stack_of(u32 number)
{
	return DATA + 0x100 * number;
}

static bool wait_on(u32 cpu, u64 word, u32 value, u64 time)
{
	return call_on(cpu, LINUX_FUTEX, (u64[6]){ word, WAIT, value, time, 0, 0 });
}

static u64 wake(u32 cpu, u64 word, u64 most)
{
	CHECK(call_on(cpu, LINUX_FUTEX, (u64[6]){ word, WAKE, most, 0, 0, 0 }));
	return frames[cpu].x[0];
}

static void set(u64 va, u64 a, u64 b)
{
	u64 words[2] = { a, b };

	CHECK(user_write(va, words, sizeof(words)));
}

TEST(a_thread_begins_where_its_maker_is_with_its_own_stack_and_zero)
{
	boot();
	frames[0].x[20] = 0xabc;
	frames[0].pc = TEXT + 0x300;
	host.registers[0].vectors[5] = 55;
	CHECK_EQUAL(thread(stack_of(1), WORD), 2);
	CHECK(lend(1));
	CHECK_EQUAL(frames[1].pc, TEXT + 0x300);
	CHECK_EQUAL(frames[1].sp, stack_of(1));
	CHECK_EQUAL(frames[1].x[0], 0);
	CHECK_EQUAL(frames[1].x[20], 0xabc);
	CHECK_EQUAL(host.registers[1].tls, 0x7515);
	CHECK_EQUAL(host.registers[1].vectors[5], 55);
	CHECK(call_on(1, 178, (u64[6]){ 0 }));
	CHECK_EQUAL(frames[1].x[0], 2);
}

TEST(only_threads_are_made_and_only_so_many)
{
	u32 i;

	boot();
	CHECK_EQUAL(call(LINUX_CLONE, 0x11, 0, 0, 0), ERROR_NOSYS); /* fork */
	CHECK_EQUAL(call(LINUX_CLONE, 0x3d0f00 | 1 << 28, stack_of(1), 0, 0), ERROR_NOSYS);
	CHECK_EQUAL(call(LINUX_CLONE, 0x3d0f00, stack_of(1) + 8, 0, 0), ERROR_NOSYS);
	for (i = 1; i < THREADS_MAX; i++)
		CHECK(thread(stack_of(i % 16), WORD) > 0);
	CHECK_EQUAL(thread(stack_of(1), WORD), ERROR_AGAIN);
}

TEST(a_core_without_a_thread_goes_back_and_is_called_when_there_is_one)
{
	boot();
	CHECK(!lend(1));
	CHECK(nexts[1].yield == YIELD_IDLE && nexts[1].argument == 0);
	CHECK_EQUAL(host.doorbells, 0);
	thread(stack_of(1), WORD);
	CHECK_EQUAL(host.doorbells, 1);
	CHECK_EQUAL(call(LINUX_SCHED_GETAFFINITY, 0, 8, DATA, 0), 8);
	CHECK_EQUAL(host.doorbells, 1); /* once */
	CHECK(lend(1));
	thread(stack_of(2), WORD);
	CHECK_EQUAL(host.doorbells, 1); /* both are busy */
}

TEST(who_has_waited_longest_is_woken_first)
{
	boot();
	set(WORD, 0, 0);
	thread(stack_of(1), WORD + 64);
	CHECK(lend(1)); /* it began to run later, and waits earlier */
	CHECK(!wait_on(1, WORD, 0, 0));
	thread(stack_of(2), WORD + 64);
	CHECK(!wait_on(0, WORD, 0, 0) || frames[0].sp == stack_of(2));
	CHECK_EQUAL(wake(0, WORD, 1), 1);
	CHECK(lend(1));
	CHECK_EQUAL(frames[1].sp, stack_of(1));
}

TEST(who_waits_is_woken_by_who_wakes_and_keeps_its_registers)
{
	boot();
	set(WORD, 0, 0);
	thread(stack_of(1), WORD + 64);
	CHECK(lend(1));
	host.registers[1].vectors[0] = 0x1111;
	frames[1].x[27] = 27;
	CHECK(!wait_on(1, WORD, 0, 0));
	CHECK_EQUAL(nexts[1].yield, YIELD_IDLE);
	host.registers[1].vectors[0] = 0;
	CHECK_EQUAL(wake(0, WORD + 4, 1), 0);
	CHECK_EQUAL(wake(0, WORD, 1), 1);
	CHECK_EQUAL(host.doorbells, 1);
	CHECK(lend(1));
	CHECK_EQUAL(frames[1].x[0], 0);
	CHECK_EQUAL(frames[1].x[27], 27);
	CHECK_EQUAL(host.registers[1].vectors[0], 0x1111);
	CHECK_EQUAL(wake(0, WORD, 9), 0);
}

TEST(nobody_waits_for_a_word_that_has_changed)
{
	boot();
	set(WORD, 5, 0);
	CHECK(wait_on(0, WORD, 4, 0));
	CHECK_EQUAL(frames[0].x[0], ERROR_AGAIN);
}

TEST(words_that_cannot_be_are_refused)
{
	static const u64 bad[] = { 0, 0x1000, ~0ULL - 3, ADDRESSES_END, DATA_END, 1ULL << 63 };
	u32 i;

	boot();
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK(wait_on(0, bad[i], 0, 0));
		CHECK_EQUAL(frames[0].x[0], ERROR_FAULT);
	}
	CHECK(wait_on(0, WORD + 2, 0, 0));
	CHECK_EQUAL(frames[0].x[0], ERROR_INVAL);
	set(WORD, 0, 0);
	CHECK(wait_on(0, WORD, 0, 0x1000)); /* a time that is nowhere */
	CHECK_EQUAL(frames[0].x[0], ERROR_INVAL);
	set(WORD + 16, 0, SECOND);
	CHECK(wait_on(0, WORD, 0, WORD + 16));
	CHECK_EQUAL(frames[0].x[0], ERROR_INVAL);
	CHECK(call_on(0, LINUX_FUTEX, (u64[6]){ WORD, WAIT_BITSET, 0, 0, 0, 0 }));
	CHECK_EQUAL(frames[0].x[0], ERROR_INVAL);
	CHECK(call_on(0, LINUX_FUTEX, (u64[6]){ WORD, 6, 0, 0, 0, 0 })); /* LOCK_PI */
	CHECK_EQUAL(frames[0].x[0], ERROR_NOSYS);
}

TEST(a_wait_ends_when_its_time_is_over)
{
	boot();
	set(WORD, 0, 0);
	set(WORD + 16, 2, 500);
	CHECK(!wait_on(0, WORD, 0, WORD + 16));
	CHECK(nexts[0].yield == YIELD_IDLE && nexts[0].argument == 2 * SECOND + 500);
	host.now += 2 * SECOND;
	CHECK(!lend(0));
	CHECK_EQUAL(nexts[0].argument, 500);
	host.now += 500;
	CHECK(lend(0));
	CHECK_EQUAL(frames[0].x[0], ERROR_TIMEDOUT);
}

TEST(an_absolute_time_is_of_the_same_clock_and_may_be_far_away)
{
	boot();
	host.now = 10 * SECOND;
	set(WORD, 0, 0);
	set(WORD + 16, 11, 0);
	CHECK(!call_on(0, LINUX_FUTEX, (u64[6]){ WORD, WAIT_BITSET | 256, 0, WORD + 16, 0, 0xffffffff }));
	CHECK_EQUAL(nexts[0].argument, SECOND);
	host.now += SECOND;
	CHECK(lend(0));
	CHECK_EQUAL(frames[0].x[0], ERROR_TIMEDOUT);
	CHECK_EQUAL(call(LINUX_CLOCK_GETTIME, 1, WORD + 32, 0, 0), 0);
	u64 time[2];
	CHECK(user_read(time, WORD + 32, sizeof(time)) && time[0] == 11 && time[1] == 0);
	set(WORD + 16, ~0ULL >> 1, 0);
	CHECK(!wait_on(0, WORD, 0, WORD + 16));
	CHECK_EQUAL(nexts[0].argument, 0);
}

TEST(bits_choose_who_is_woken)
{
	boot();
	set(WORD, 0, 0);
	thread(stack_of(1), WORD + 64);
	CHECK(lend(1));
	CHECK(!call_on(1, LINUX_FUTEX, (u64[6]){ WORD, WAIT_BITSET, 0, 0, 0, 2 }));
	CHECK(call_on(0, LINUX_FUTEX, (u64[6]){ WORD, WAKE_BITSET, 1, 0, 0, 4 }));
	CHECK_EQUAL(frames[0].x[0], 0);
	CHECK(call_on(0, LINUX_FUTEX, (u64[6]){ WORD, WAKE_BITSET, 1, 0, 0, 6 }));
	CHECK_EQUAL(frames[0].x[0], 1);
}

TEST(who_ends_says_so_to_who_joins)
{
	u32 number;

	boot();
	thread(stack_of(1), WORD);
	CHECK(user_read(&number, WORD, 4) && number == 2);
	CHECK(lend(1));
	CHECK(!wait_on(0, WORD, 2, 0));
	CHECK(call_on(1, LINUX_EXIT, (u64[6]){ 0 })); /* and this core goes on with who joined */
	CHECK_EQUAL(frames[1].x[0], 0);
	CHECK(user_read(&number, WORD, 4) && number == 0);
	CHECK(!call_on(1, LINUX_EXIT, (u64[6]){ 0 }));
	CHECK(nexts[1].yield == YIELD_ENDED && nexts[1].argument == ENDING_EXIT); /* it was the last one */
}

TEST(threads_take_turns_when_they_let_others_run)
{
	boot();
	thread(stack_of(1), WORD);
	CHECK(frames[0].sp != stack_of(1));
	CHECK(call_on(0, LINUX_SCHED_YIELD, (u64[6]){ 0 }));
	CHECK_EQUAL(frames[0].sp, stack_of(1));
	CHECK(call_on(0, LINUX_SCHED_YIELD, (u64[6]){ 0 }));
	CHECK(frames[0].sp != stack_of(1));
}

TEST(who_sleeps_is_not_woken_by_others)
{
	boot();
	set(WORD, 0, 30);
	CHECK(!call_on(0, LINUX_NANOSLEEP, (u64[6]){ WORD, 0 }));
	CHECK_EQUAL(nexts[0].argument, 30);
	CHECK(!lend(1));
	host.now += 30;
	CHECK(lend(1));
	CHECK_EQUAL(frames[1].x[0], 0);
}

TEST(who_waits_for_news_is_woken_when_the_os_lends_a_core_or_an_event_comes)
{
	boot();
	CHECK_EQUAL(call(FLEX_SECURE_WAIT, ~0ULL, 0, 0, 0), 0); /* a core was lent before: look first */
	CHECK(!call_on(0, FLEX_SECURE_WAIT, (u64[6]){ ~0ULL }));
	CHECK(nexts[0].yield == YIELD_IDLE && nexts[0].argument == 0);
	CHECK(lend(1));
	CHECK_EQUAL(frames[1].x[0], 0);
	CHECK(!call_on(1, FLEX_SECURE_WAIT, (u64[6]){ 77 }));
	CHECK_EQUAL(nexts[1].argument, 77);
	host.now += 77;
	CHECK(lend(1));
	*(u32 *)(void *)(host.mailbox + FLEX_AT_EVENT_HEAD) = 1;
	CHECK(call_on(1, FLEX_SECURE_WAIT, (u64[6]){ ~0ULL }));
}

TEST(an_event_that_comes_while_all_cores_are_busy_is_heard_at_the_next_call)
{
	boot();
	thread(stack_of(1), WORD);
	CHECK(lend(1));
	CHECK(call_on(1, FLEX_SECURE_WAIT, (u64[6]){ ~0ULL }));
	CHECK(!call_on(1, FLEX_SECURE_WAIT, (u64[6]){ ~0ULL }));
	*(u32 *)(void *)(host.mailbox + FLEX_AT_EVENT_HEAD) = 1;
	host.doorbells = 0;
	call(LINUX_SCHED_GETAFFINITY, 0, 8, DATA, 0);
	CHECK_EQUAL(host.doorbells, 1);
	CHECK(lend(1));
}
