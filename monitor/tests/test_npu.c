/*
 * The NPU between the worlds: its calls, its commands, and what each does to who. See test_calls.c for names;
 * that the NPU works for nobody where it must not is watched at each moment (unit.c).
 */
#include "core/npu.h"
#include "tests/unit.h"

#include <string.h>

static u64 *registers(void)
{
	return hidden(monitor_layout()->window);
}

static bool os_has_registers(void)
{
	u64 pa;

	return host_walk(HOST_CPUS, monitor_layout()->window, &pa) != 0;
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
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_NPU_ASK, 5, 0, FLEX_STATUS_DENIED);
	denied(FLEX_COMMAND_NPU_WANT, 3, 0, 0, 3);
	denied(FLEX_COMMAND_NPU_RELEASE, 3, 0, 0, 3);
	denied(FLEX_COMMAND_NPU_DRIVE, 1, 2, 3, 3);
}

/* ---- to the secure world ------------------------------------------------------------------------------------ */

TEST(command_npu_want_is_told_to_the_os)
{
	boot_and_attach();
	want_npu();
	CHECK_EQUAL(event().kind, 0);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_NORMAL);
}

TEST(command_npu_want_is_for_who_is_attached_and_has_it_not)
{
	boot(RAM_SMALL);
	denied(FLEX_COMMAND_NPU_WANT, 4, 0, 0, 4);
	attach();
	host.npu_deaf = true;
	enter_npu();
	command(FLEX_COMMAND_NPU_WANT, 5, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL((int)event().b, FLEX_STATUS_DENIED);
	host.npu_deaf = false;
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	denied(FLEX_COMMAND_NPU_WANT, 5, 0, 0, 5);
}

TEST(npu_grant_hides_registers_and_reaches_nothing_until_it_was_reset)
{
	boot_and_attach();
	secure_pages(page_at(10), 2);
	host_look();
	CHECK(host.npu.works_for_os && host.reached[HOST_NPU][page_number(20)]);
	fill_registers();
	host.npu_deaf = true;
	enter_npu();
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
		boot_and_attach();
		for (at = 0; at < sizeof(code); at++)
			code[at] = (u8)(at * 7 + 1);
		memcpy(words_at(page_at(NPU_CODE)), code, sizeof(code));
		want_npu();
		CHECK_EQUAL(os(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), sizes[i]), FLEX_STATUS_OK);
		CHECK(memcmp(words_at(monitor_layout()->code), code, sizes[i]) == 0);
		digest = sha256(code, sizes[i]);
		CHECK(memcmp(field(FLEX_AT_NPU_DRIVER), &digest, sizeof(digest)) == 0);
		memset(code, 0, sizeof(code));
		CHECK(memcmp((u8 *)words_at(monitor_layout()->code) + sizes[i], code, sizeof(code) - sizes[i]) == 0);
	}
}

TEST(npu_grant_needs_somebody_who_wants_it)
{
	boot(RAM_SMALL);
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
	attach();
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
	want_npu();
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_NORMAL);
}

TEST(npu_grant_happens_once)
{
	boot_and_attach();
	secure_npu();
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
	command(FLEX_COMMAND_NPU_RELEASE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
}

TEST(npu_grant_needs_code_of_the_os_s_own)
{
	boot_and_attach();
	secure_pages(page_at(10), 1);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(20), 1), FLEX_STATUS_OK);
	while (event().kind)
		;
	want_npu();
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
	boot_and_attach();
	want_npu();
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 0, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), FLEX_NPU_CODE_BYTES_MAX + 1, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), ~0ULL, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE) + 8, 8, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, RAM_BASE + RAM_SMALL, 8, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, RAM_BASE + RAM_SMALL - FLEX_PAGE_BYTES, FLEX_PAGE_BYTES + 1, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_NPU_GRANT, RAM_BASE - FLEX_PAGE_BYTES, 8, FLEX_STATUS_INVALID);
}

TEST(an_access_to_registers_that_are_hidden_is_blocked)
{
	boot_and_attach();
	secure_npu();
	CHECK_EQUAL(monitor_fault(monitor_layout()->window + 8), MONITOR_BLOCK);
}

TEST(pages_of_the_secure_world_are_reached_once_committed_and_no_more_once_recalled)
{
	boot_and_attach();
	secure_npu();
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

	boot_and_attach();
	refused(FLEX_CALL_NPU_ASK, 7, 9, FLEX_STATUS_DENIED);
	secure_npu();
	CHECK_EQUAL(os(FLEX_CALL_NPU_ASK, 7, 9), FLEX_STATUS_OK);
	told = event();
	CHECK(told.kind == FLEX_EVENT_NPU_ASKED && told.a == 7 && told.b == 0);
	while (mailbox_room() > 0)
		CHECK_EQUAL(os(FLEX_CALL_NPU_ASK, 7, 9), FLEX_STATUS_OK);
	refused(FLEX_CALL_NPU_ASK, 7, 9, FLEX_STATUS_BUSY);
}

TEST(npu_ask_is_for_somebody_who_is_attached)
{
	boot_and_attach();
	secure_npu();
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
	boot_and_attach();
	secure_pages(page_at(10), 2);
	secure_npu();
	fill_registers();
	memset(words_at(monitor_layout()->code), 0x5e, SANDBOX_PAGES * FLEX_PAGE_BYTES);
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
	CHECK(words_at(monitor_layout()->code)[0] == 0 && words_at(monitor_layout()->stack)[511] == 0);
	host_look();
	CHECK(!host.reached[HOST_NPU][page_number(10)] && host.reached[HOST_NPU][page_number(20)]);
	secure_npu();
}

TEST(command_npu_release_withdraws_a_want)
{
	boot_and_attach();
	want_npu();
	command(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL((int)event().b, FLEX_STATUS_OK);
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
}

TEST(command_npu_release_while_it_is_entering_gives_it_back)
{
	boot_and_attach();
	host.npu_deaf = true;
	enter_npu();
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
	secure_npu();
	command(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NPU_BACK);
	denied(FLEX_COMMAND_NPU_RELEASE, 8, 0, 0, 8);
}

TEST(command_gone_takes_the_npu_before_any_page)
{
	struct message told;

	boot_and_attach();
	secure_pages(page_at(10), 2);
	secure_npu();
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
	boot_and_attach();
	enter_npu();
	while (mailbox_room() > 0)
		CHECK_EQUAL(os(FLEX_CALL_ANSWER, 1, 1), FLEX_STATUS_OK);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_WAIT);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_ENTERING);
	event();
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_SECURE);
}

/* ---- protection off and on ---------------------------------------------------------------------------------------- */

TEST(relax_is_refused_while_the_npu_is_not_the_os_s)
{
	boot_and_attach();
	host.npu_deaf = true;
	enter_npu();
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_WAIT)
		;
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
}

TEST(a_new_start_gives_the_npu_to_the_os)
{
	boot_and_attach();
	want_npu();
	monitor_rebuild();
	CHECK(npu_state() == FLEX_NPU_STATE_NORMAL && os_has_registers());
	attach();
	refused(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100, FLEX_STATUS_DENIED);
}
