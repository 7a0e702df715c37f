/* What else the application may call, with what arguments, and what its faults lead to. */
#include "tests/unit.h"

#include <string.h>

/* Where nothing is, what is read-only (the last two), and what ends too early. */
static const u64 nowhere[] = { 0, 8, ~0ULL, ~7ULL, ADDRESSES_END, 1ULL << 63, DATA_END, STACK_END, 0xffffff8000400000, HOST_SECURE, TEXT };

TEST(every_pointer_is_looked_at_before_anything_is_written_there)
{
	static const struct { u64 number; u64 x[6]; u32 pointer; } calls[] = {
		{ LINUX_CLOCK_GETTIME, { 1 }, 1 },
		{ LINUX_GETRANDOM, { 0, 16 }, 0 },
		{ LINUX_SCHED_GETAFFINITY, { 0, 8 }, 2 },
		{ LINUX_PRLIMIT64, { 0, 3, 0 }, 3 },
		{ FLEX_SECURE_PROTECTION, { 0 }, 0 },
		{ FLEX_SECURE_TAKE, { 1 }, 1 },
		{ FLEX_SECURE_EVENT, { 0 }, 0 },
	};
	u32 i, j;

	boot();
	*(u32 *)(void *)(host.mailbox + FLEX_AT_EVENT_HEAD) = 1;
	for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (j = 0; j < sizeof(nowhere) / sizeof(nowhere[0]); j++) {
			u64 x[6];

			memcpy(x, calls[i].x, sizeof(x));
			x[calls[i].pointer] = nowhere[j];
			CHECK(call_on(0, calls[i].number, x));
			CHECK_EQUAL(frames[0].x[0], ERROR_FAULT);
		}
}

TEST(what_is_written_stands_on_the_console_and_at_most_a_line_at_a_time)
{
	static const char text[] = "The application says this.";
	char many[2 * WRITE_BYTES_MAX];
	u64 parts[4] = { 0, 0, DATA, sizeof(text) - 1 };

	boot();
	CHECK(user_write(DATA, text, sizeof(text)));
	CHECK_EQUAL(call(LINUX_WRITE, 1, DATA, sizeof(text) - 1, 0), sizeof(text) - 1);
	CHECK(strcmp(host.said, text) == 0);
	CHECK(user_write(DATA + 0x100, parts, sizeof(parts)));
	CHECK_EQUAL(call(LINUX_WRITEV, 2, DATA + 0x100, 2, 0), sizeof(text) - 1);
	memset(many, 'x', sizeof(many));
	CHECK(user_write(DATA, many, sizeof(many)));
	CHECK_EQUAL(call(LINUX_WRITE, 1, DATA, sizeof(many), 0), WRITE_BYTES_MAX);
	CHECK_EQUAL(call(LINUX_WRITE, 1, DATA, ~0ULL, 0), WRITE_BYTES_MAX);
	CHECK_EQUAL(call(LINUX_WRITE, 0, DATA, 1, 0), ERROR_BADF);
	CHECK_EQUAL(call(LINUX_WRITE, 3, DATA, 1, 0), ERROR_BADF);
	host.letters = 0;
	CHECK_EQUAL(call(LINUX_WRITE, 1, DATA_END - 10, 20, 0), ERROR_FAULT);
	CHECK_EQUAL(call(LINUX_WRITEV, 1, ~0ULL, ~0ULL, 0), ERROR_FAULT);
	CHECK_EQUAL(call(LINUX_WRITE, 1, HOST_SECURE, 20, 0), ERROR_FAULT);
	CHECK_EQUAL(host.letters, 0);
}

TEST(random_bytes_never_repeat_and_need_a_seed)
{
	static const u8 none[32];
	struct machine machine;
	u8 bytes[96] = { 0 };

	boot();
	for (u32 i = 0; i < 3; i++)
		CHECK_EQUAL(call(LINUX_GETRANDOM, DATA + 32 * i, 32, 0, 0), 32);
	CHECK(user_read(bytes, DATA, sizeof(bytes)));
	CHECK(memcmp(bytes, bytes + 32, 32) != 0 && memcmp(bytes + 32, bytes + 64, 32) != 0);
	CHECK_EQUAL(call(LINUX_GETRANDOM, DATA, 4000, 0, 0), RANDOM_BYTES_MAX);
	host_make();
	file_make();
	machine = host_machine();
	machine.seed = none;
	host.root = kernel_init(&machine);
	CHECK(lend(0));
	CHECK_EQUAL(call(LINUX_GETRANDOM, DATA, 32, 0, 0), ERROR_AGAIN);
}

TEST(the_secret_is_told_once)
{
	static const u8 none[32];
	struct machine machine = host_machine();
	char told[32] = "";

	boot();
	CHECK_EQUAL(call(FLEX_SECURE_SECRET, TEXT, 0, 0, 0), ERROR_FAULT);
	CHECK_EQUAL(call(FLEX_SECURE_SECRET, DATA, 0, 0, 0), 0);
	CHECK(user_read(told, DATA, sizeof(told)) && strcmp(told, "a secret of nobody") == 0);
	CHECK_EQUAL(call(FLEX_SECURE_SECRET, DATA, 0, 0, 0), ERROR_NOENT);
	host_make();
	file_make();
	machine.secret = none;
	host.root = kernel_init(&machine);
	CHECK(lend(0));
	CHECK_EQUAL(call(FLEX_SECURE_SECRET, DATA, 0, 0, 0), ERROR_NOENT);
}

TEST(what_is_not_in_the_table_is_no_call)
{
	/* openat, read, close, rt_sigaction, rt_sigprocmask, tgkill, set_robust_list, rseq, clone3, execve, ptrace, … */
	static const u64 numbers[] = { 56, 63, 57, 134, 135, 131, 99, 293, 435, 221, 117, 0, 29, 216, 0x100b, 0xfff, ~0ULL, 1ULL << 32 | 64 };
	u32 i;

	boot();
	for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		CHECK_EQUAL(call(numbers[i], 1, DATA, 16, 0), ERROR_NOSYS);
	CHECK_EQUAL(call(LINUX_PRLIMIT64, 0, 7, 0, DATA), ERROR_NOSYS);
	CHECK_EQUAL(call(LINUX_PRLIMIT64, 0, 3, DATA, DATA), ERROR_NOSYS); /* nothing can be set */
	CHECK_EQUAL(host.letters, 0);
}

TEST(a_fault_ends_the_application_and_says_no_more_than_where_its_code_was)
{
	boot();
	host.cpu = 0;
	frames[0].pc = TEXT + 0x250;
	nexts[0] = kernel_fault(0, &frames[0], 0x24);
	CHECK_EQUAL(nexts[0].yield, YIELD_ENDED);
	CHECK_EQUAL(nexts[0].argument, ENDING_FAULT | 0x24 << 8);
	CHECK(strstr(host.said, "400250") != NULL);
	boot();
	frames[0].pc = 0x5ec2e75ec2e7; /* it jumped to what may be a secret */
	nexts[0] = kernel_fault(0, &frames[0], 0x20);
	CHECK(strstr(host.said, "5ec2e7") == NULL);
}

TEST(a_thread_on_another_core_ends_with_the_application)
{
	boot();
	thread(DATA + 0x400, DATA);
	CHECK(lend(1));
	CHECK(!call_on(0, LINUX_EXIT_GROUP, (u64[6]){ 1 }));
	host.cpu = 1; /* what it executes next is gone */
	nexts[1] = kernel_fault(1, &frames[1], 0x20);
	CHECK(nexts[1].yield == YIELD_ENDED && nexts[1].argument == (ENDING_EXIT | 1 << 8));
	CHECK(!call_on(1, LINUX_WRITE, (u64[6]){ 1, DATA, 1 }));
}
