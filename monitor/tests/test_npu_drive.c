/*
 * Driving the NPU: the OS's code in its sandbox, however it ends. See test_npu.c.
 */
#include "core/npu.h"
#include "tests/unit.h"

#include <string.h>

static int drive(enum arch_stop stop, u64 result)
{
	struct message told;

	host.stop = stop;
	host.result = result;
	command(FLEX_COMMAND_NPU_DRIVE, 0x12345000 | 99ULL << 32, 0x777000, 6);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 6);
	return (int)told.b;
}

TEST(command_npu_drive_runs_the_code_and_tells_what_it_returned)
{
	static const u64 arguments[] = { FLEX_NPU_START, 0x12345000, 99, 0x777000, 6 };

	boot_and_attach();
	secure_npu();
	memset(words_at(monitor_layout()->stack), 0x5e, FLEX_PAGE_BYTES);
	CHECK_EQUAL(drive(ARCH_RETURNED, 0), FLEX_STATUS_OK);
	CHECK_EQUAL(host.npu.arguments[0], monitor_layout()->window);
	CHECK(memcmp(host.npu.arguments + 1, arguments, sizeof(arguments)) == 0);
	CHECK(words_at(monitor_layout()->stack)[0] == 0 && words_at(monitor_layout()->stack)[511] == 0);
	CHECK_EQUAL(drive(ARCH_RETURNED, 1), FLEX_STATUS_BUSY);
	CHECK_EQUAL(drive(ARCH_RETURNED, ~0ULL), FLEX_STATUS_BUSY);
	CHECK_EQUAL(drive(ARCH_FAULTED, 0), FLEX_STATUS_DENIED);
	CHECK_EQUAL(drive(ARCH_RETURNED, 0), FLEX_STATUS_OK);
}

TEST(command_npu_drive_needs_the_npu)
{
	boot(RAM_SMALL);
	denied(FLEX_COMMAND_NPU_DRIVE, 1, 2, 3, 3);
	attach();
	denied(FLEX_COMMAND_NPU_DRIVE, 1, 2, 3, 3);
	host.npu_deaf = true;
	enter_npu();
	command(FLEX_COMMAND_NPU_DRIVE, 1, 2, 3);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL((int)event().b, FLEX_STATUS_DENIED);
}

TEST(command_npu_drive_goes_on_after_an_interrupt_and_other_commands_wait_for_it)
{
	struct message told;

	boot_and_attach();
	secure_npu();
	host.stop = ARCH_INTERRUPTED;
	command(FLEX_COMMAND_NPU_DRIVE, 1, 2, 6);
	command(FLEX_COMMAND_WANT, 1, 1, 1);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_MORE);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_MORE);
	CHECK_EQUAL(event().kind, 0);
	host.stop = ARCH_RETURNED;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WANT);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 6 && told.b == FLEX_STATUS_OK);
}

TEST(command_npu_drive_that_never_ends_is_ended)
{
	struct message told;
	u32 polls = 0;

	boot_and_attach();
	secure_npu();
	host.stop = ARCH_INTERRUPTED;
	command(FLEX_COMMAND_NPU_DRIVE, 1, 2, 6);
	while (notice().kind == FLEX_NOTICE_MORE)
		polls++;
	CHECK_EQUAL(polls, 31);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 6 && (int)told.b == FLEX_STATUS_DENIED);
	CHECK_EQUAL(drive(ARCH_RETURNED, 0), FLEX_STATUS_OK);
}
