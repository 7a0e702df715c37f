/*
 * The NPU between the worlds: its calls, its commands, and what each does to who. See test_calls.c for names;
 * that the NPU works for nobody where it must not is watched at each moment (unit.c).
 */
#include "core/npu.h"
#include "tests/unit.h"

#include <string.h>

#define CODE 40 /* pages before hidden_base: where the OS has what drives it */
#define SERIAL 31

static u64 *registers(void)
{
	return hidden(monitor_layout()->window);
}

static u64 *word_at(u64 pa)
{
	return hidden(pa);
}

static bool os_has_registers(void)
{
	u64 pa;

	return host_walk(HOST_CPUS, monitor_layout()->window, &pa) != 0;
}

static void want(void)
{
	struct message told;

	command(FLEX_COMMAND_NPU_WANT, SERIAL, 0, 0);
	told = notice();
	CHECK(told.kind == FLEX_NOTICE_NPU_WANTED && told.a == SERIAL);
}

static void enter(void)
{
	want();
	CHECK_EQUAL(os(FLEX_CALL_NPU_GRANT, page_at(CODE), 100), FLEX_STATUS_OK);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_ENTERING);
}

static void make_secure(void)
{
	struct message told;

	enter();
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_NPU_GRANTED && told.a == SERIAL);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_SECURE);
}

static void booted_and_attached(void)
{
	boot(RAM_SMALL);
	attach();
}

/* Every word the monitor is to make zero, and those it is to leave. */
static void check_registers_zeroed(void)
{
	u32 i;

	CHECK_EQUAL(registers()[0], 0x1111111111111111ULL);
	for (i = 1; i < FLEX_NPU_WINDOW_BYTES / 8; i++)
		CHECK_EQUAL(registers()[i], 0);
}

static void fill_registers(void)
{
	memset(registers(), 0x11, FLEX_NPU_WINDOW_BYTES);
}

static void denied(u64 kind, u64 a, u64 b, u64 c, u64 serial)
{
	enum flex_npu_state before = npu_state();
	struct message told;

	while (event().kind)
		;
	command(kind, a, b, c);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == serial && (int)told.b == FLEX_STATUS_DENIED);
	CHECK_EQUAL(npu_state(), before);
}

/* ---- at boot ---------------------------------------------------------------------------------------------- */

TEST(npu_state_is_normal_at_boot_and_absent_without_one)
{
	boot(RAM_SMALL);
	CHECK_EQUAL(os(FLEX_CALL_NPU_STATE, 0, 0), FLEX_STATUS_OK);
	CHECK_EQUAL(answer[0], FLEX_NPU_STATE_NORMAL);
	CHECK_EQUAL(*field(FLEX_AT_NPU_STATE), FLEX_NPU_STATE_NORMAL);
	CHECK(os_has_registers() && host.npu.root == monitor_layout()->devices.level1);
	boot_without_npu();
	CHECK_EQUAL(os(FLEX_CALL_NPU_STATE, 0, 0), FLEX_STATUS_OK);
	CHECK_EQUAL(answer[0], FLEX_NPU_STATE_ABSENT);
	CHECK(!os_has_registers() && host.npu.root == 0);
}

TEST(a_machine_without_an_npu_says_so_to_everybody)
{
	boot_without_npu();
	attach();
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_ASK, 5, 0, FLEX_STATUS_DENIED);
	denied(FLEX_COMMAND_NPU_WANT, 3, 0, 0, 3);
	denied(FLEX_COMMAND_NPU_RELEASE, 3, 0, 0, 3);
	denied(FLEX_COMMAND_NPU_DRIVE, 1, 2, 3, 3);
}

/* ---- to the secure world ------------------------------------------------------------------------------------ */

TEST(command_npu_want_is_told_to_the_os)
{
	booted_and_attached();
	want();
	CHECK_EQUAL(event().kind, 0);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_NORMAL);
}

TEST(command_npu_want_is_for_who_is_attached_and_has_it_not)
{
	boot(RAM_SMALL);
	denied(FLEX_COMMAND_NPU_WANT, 4, 0, 0, 4);
	attach();
	host.npu_deaf = true;
	enter();
	command(FLEX_COMMAND_NPU_WANT, 5, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL((int)event().b, FLEX_STATUS_DENIED);
	host.npu_deaf = false;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	denied(FLEX_COMMAND_NPU_WANT, 5, 0, 0, 5);
}

TEST(npu_grant_hides_registers_and_reaches_nothing_until_it_was_reset)
{
	booted_and_attached();
	secure_pages(page_at(10), 2);
	host_look();
	CHECK(host.npu.works_for_os && host.reached[HOST_NPU][page_number(20)]);
	fill_registers();
	host.npu_deaf = true;
	enter();
	CHECK_EQUAL(*field(FLEX_AT_NPU_STATE), FLEX_NPU_STATE_ENTERING);
	CHECK(!os_has_registers() && host.npu.root == 0 && host.npu.resetting);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL(event().kind, 0);
	CHECK_EQUAL(registers()[5], 0x1111111111111111ULL);
	host.npu_deaf = false;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_SECURE);
	CHECK_EQUAL(host.npu.root, monitor_layout()->secure.level1);
	check_registers_zeroed();
	host_look();
	CHECK(!os_has_registers() && host.npu.works_for_secure && !host.npu.works_for_os);
	CHECK(host.reached[HOST_NPU][page_number(10)] && !host.reached[HOST_NPU][page_number(20)]);
	CHECK_EQUAL(event().kind, FLEX_EVENT_NPU_GRANTED);
}

TEST(npu_grant_copies_and_hashes_what_drives_it)
{
	static const u64 sizes[] = { 1, 100, FLEX_PAGE_BYTES, FLEX_PAGE_BYTES + 1, FLEX_NPU_CODE_BYTES_MAX };
	struct digest digest;
	u8 code[FLEX_NPU_CODE_BYTES_MAX];
	u32 i, at;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		booted_and_attached();
		for (at = 0; at < sizeof(code); at++)
			code[at] = (u8)(at * 7 + 1);
		memcpy(word_at(page_at(CODE)), code, sizeof(code));
		want();
		CHECK_EQUAL(os(FLEX_CALL_NPU_GRANT, page_at(CODE), sizes[i]), FLEX_STATUS_OK);
		CHECK(memcmp(word_at(monitor_layout()->code), code, sizes[i]) == 0);
		digest = sha256(code, sizes[i]);
		CHECK(memcmp(field(FLEX_AT_NPU_DRIVER), &digest, sizeof(digest)) == 0);
		memset(code, 0, sizeof(code));
		CHECK(memcmp((u8 *)word_at(monitor_layout()->code) + sizes[i], code, sizeof(code) - sizes[i]) == 0);
	}
}

TEST(npu_grant_needs_somebody_who_wants_it)
{
	boot(RAM_SMALL);
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
	attach();
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
	want();
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_NORMAL);
}

TEST(npu_grant_happens_once)
{
	booted_and_attached();
	make_secure();
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
	command(FLEX_COMMAND_NPU_RELEASE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
}

TEST(npu_grant_needs_code_of_the_os_s_own)
{
	booted_and_attached();
	secure_pages(page_at(10), 1);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(20), 1), FLEX_STATUS_OK);
	while (event().kind)
		;
	want();
	refused(FLEX_CALL_NPU_GRANT, page_at(10), 8, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_GRANT, page_at(11), FLEX_PAGE_BYTES + 1, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_GRANT, page_at(20), 8, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_GRANT, page_at(0), 8, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_GRANT, page_at(1), FLEX_NPU_CODE_BYTES_MAX, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_GRANT, monitor_layout()->window, 8, FLEX_STATUS_DENIED);
	CHECK_EQUAL(os(FLEX_CALL_NPU_GRANT, page_at(11), FLEX_PAGE_BYTES), FLEX_STATUS_OK);
}

TEST(npu_grant_refuses_malformed_code)
{
	booted_and_attached();
	want();
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 0, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), FLEX_NPU_CODE_BYTES_MAX + 1, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), ~0ULL, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE) + 8, 8, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, RAM_BASE + RAM_SMALL, 8, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, RAM_BASE + RAM_SMALL - FLEX_PAGE_BYTES, FLEX_PAGE_BYTES + 1, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, RAM_BASE - FLEX_PAGE_BYTES, 8, FLEX_STATUS_INVALID);
}

TEST(an_access_to_registers_that_are_hidden_is_blocked)
{
	booted_and_attached();
	make_secure();
	CHECK_EQUAL(monitor_fault(monitor_layout()->window + 8), MONITOR_BLOCK);
}

TEST(pages_of_the_secure_world_are_reached_once_committed_and_no_more_once_recalled)
{
	booted_and_attached();
	make_secure();
	secure_pages(page_at(10), 2);
	host_look();
	CHECK(host.reached[HOST_NPU][page_number(10)] && host.reached[HOST_NPU][page_number(9)]);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_RECALL, page_at(10), 1), FLEX_STATUS_OK);
	host_look();
	CHECK(!host.reached[HOST_NPU][page_number(10)] && host.reached[HOST_NPU][page_number(9)]);
}

/* ---- asked for, and back -------------------------------------------------------------------------------------- */

TEST(npu_ask_is_told_to_the_secure_world)
{
	struct message told;

	booted_and_attached();
	refused(FLEX_CALL_NPU_ASK, 7, 9, FLEX_STATUS_DENIED);
	make_secure();
	CHECK_EQUAL(os(FLEX_CALL_NPU_ASK, 7, 9), FLEX_STATUS_OK);
	told = event();
	CHECK(told.kind == FLEX_EVENT_NPU_ASKED && told.a == 7 && told.b == 0);
	while (mailbox_room() > 0)
		CHECK_EQUAL(os(FLEX_CALL_NPU_ASK, 7, 9), FLEX_STATUS_OK);
	refused(FLEX_CALL_NPU_ASK, 7, 9, FLEX_STATUS_BUSY);
}

TEST(npu_ask_is_for_somebody_who_is_attached)
{
	booted_and_attached();
	make_secure();
	host.npu_deaf = true;
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_WAIT)
		;
	refused(FLEX_CALL_NPU_ASK, 7, 0, FLEX_STATUS_DENIED);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_NPU_ASK, 7, 0), FLEX_STATUS_OK);
}

TEST(command_npu_release_gives_back_zeros_once_it_was_reset)
{
	booted_and_attached();
	secure_pages(page_at(10), 2);
	make_secure();
	fill_registers();
	memset(word_at(monitor_layout()->code), 0x5e, SANDBOX_PAGES * FLEX_PAGE_BYTES);
	host_look();
	host.npu_deaf = true;
	command(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK(event().kind == FLEX_EVENT_DONE && npu_state() == FLEX_NPU_STATE_LEAVING);
	CHECK(host.npu.root == 0 && host.npu.resetting && !os_has_registers());
	host.npu_deaf = false;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NPU_BACK);
	CHECK(npu_state() == FLEX_NPU_STATE_NORMAL && *field(FLEX_AT_NPU_STATE) == FLEX_NPU_STATE_NORMAL);
	CHECK(os_has_registers() && host.npu.root == monitor_layout()->devices.level1);
	check_registers_zeroed();
	CHECK(word_at(monitor_layout()->code)[0] == 0 && word_at(monitor_layout()->stack)[511] == 0);
	host_look();
	CHECK(!host.reached[HOST_NPU][page_number(10)] && host.reached[HOST_NPU][page_number(20)]);
	make_secure();
}

TEST(command_npu_release_withdraws_a_want)
{
	booted_and_attached();
	want();
	command(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL((int)event().b, FLEX_STATUS_OK);
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
}

TEST(command_npu_release_while_it_is_entering_gives_it_back)
{
	booted_and_attached();
	host.npu_deaf = true;
	enter();
	command(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_LEAVING);
	host.npu_deaf = false;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NPU_BACK);
	CHECK_EQUAL(event().kind, FLEX_EVENT_DONE);
	CHECK_EQUAL(event().kind, 0);
}

TEST(command_npu_release_needs_something_to_release)
{
	boot(RAM_SMALL);
	denied(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0, 8);
	attach();
	denied(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0, 8);
	make_secure();
	command(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NPU_BACK);
	denied(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0, 8);
}

TEST(command_gone_takes_the_npu_before_any_page)
{
	struct message told;

	booted_and_attached();
	secure_pages(page_at(10), 2);
	make_secure();
	host_look();
	host.npu_deaf = true;
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while ((told = notice()).kind == FLEX_NOTICE_MORE)
		;
	CHECK_EQUAL(told.kind, FLEX_NOTICE_GONE);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_LEAVING);
	CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(10), 2), FLEX_STATUS_OK);
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
	host.npu_deaf = false;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NPU_BACK);
	CHECK_EQUAL(os(FLEX_CALL_RELAX, 0, 0), FLEX_STATUS_OK);
}

TEST(nothing_is_finished_that_cannot_be_told)
{
	booted_and_attached();
	enter();
	while (mailbox_room() > 0)
		CHECK_EQUAL(os(FLEX_CALL_ANSWER, 1, 1), FLEX_STATUS_OK);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_ENTERING);
	event();
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_SECURE);
}

/* ---- driving it ------------------------------------------------------------------------------------------------ */

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

	booted_and_attached();
	make_secure();
	memset(word_at(monitor_layout()->stack), 0x5e, FLEX_PAGE_BYTES);
	CHECK_EQUAL(drive(ARCH_RETURNED, 0), FLEX_STATUS_OK);
	CHECK_EQUAL(host.npu.arguments[0], monitor_layout()->window);
	CHECK(memcmp(host.npu.arguments + 1, arguments, sizeof(arguments)) == 0);
	CHECK(word_at(monitor_layout()->stack)[0] == 0 && word_at(monitor_layout()->stack)[511] == 0);
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
	enter();
	command(FLEX_COMMAND_NPU_DRIVE, 1, 2, 3);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL((int)event().b, FLEX_STATUS_DENIED);
}

TEST(command_npu_drive_goes_on_after_an_interrupt_and_other_commands_wait_for_it)
{
	struct message told;

	booted_and_attached();
	make_secure();
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

	booted_and_attached();
	make_secure();
	host.stop = ARCH_INTERRUPTED;
	command(FLEX_COMMAND_NPU_DRIVE, 1, 2, 6);
	while (notice().kind == FLEX_NOTICE_MORE)
		polls++;
	CHECK_EQUAL(polls, 31);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 6 && (int)told.b == FLEX_STATUS_DENIED);
	CHECK_EQUAL(drive(ARCH_RETURNED, 0), FLEX_STATUS_OK);
}

/* ---- protection off and on ---------------------------------------------------------------------------------------- */

TEST(relax_is_refused_while_the_npu_is_not_the_os_s)
{
	booted_and_attached();
	host.npu_deaf = true;
	enter();
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_WAIT)
		;
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
}

TEST(a_new_start_gives_the_npu_to_the_os)
{
	booted_and_attached();
	want();
	monitor_rebuild();
	CHECK(npu_state() == FLEX_NPU_STATE_NORMAL && os_has_registers());
	attach();
	refused(FLEX_CALL_NPU_GRANT, page_at(CODE), 100, FLEX_STATUS_DENIED);
}
