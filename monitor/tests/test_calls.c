/*
 * Every call of the OS: what it needs, what then is true, and that a refusal changed nothing. A test's name
 * begins with the call's; that none of abi/flex.toml is without tests is checked in tests/monitor/test_core.py.
 */
#include "core/notices.h"
#include "tests/unit.h"

#include <string.h>

static u64 *words(u64 ipa)
{
	return hidden(ipa);
}

static void fill_events(void)
{
	while (mailbox_room() > 0)
		CHECK_EQUAL(os(FLEX_CALL_ANSWER, 1, 1), FLEX_STATUS_OK);
}

static void refuses_malformed(u64 call)
{
	u64 end = RAM_BASE + RAM_SMALL;

	refused(call, page_at(10) + 8, 1, FLEX_STATUS_INVALID);
	refused(call, page_at(10), 0, FLEX_STATUS_INVALID);
	refused(call, page_at(1000), FLEX_CALL_PAGES_MAX + 1, FLEX_STATUS_INVALID);
	refused(call, page_at(10), ~0ULL, FLEX_STATUS_INVALID);
	refused(call, RAM_BASE - FLEX_PAGE_BYTES, 1, FLEX_STATUS_INVALID);
	refused(call, end, 1, FLEX_STATUS_INVALID);
	refused(call, end - FLEX_PAGE_BYTES, 2, FLEX_STATUS_INVALID);
	refused(call, 0, 1, FLEX_STATUS_INVALID);
}

/* ---- calls ---------------------------------------------------------------------------------------------- */

TEST(version_is_that_of_the_interface)
{
	boot(RAM_SMALL);
	CHECK_EQUAL(os(FLEX_CALL_VERSION, 0, 0), FLEX_STATUS_OK);
	CHECK_EQUAL(answer[0], FLEX_ABI_VERSION);
}

TEST(layout_says_where_ram_lies_and_what_is_hidden)
{
	boot(RAM_SMALL);
	CHECK_EQUAL(os(FLEX_CALL_LAYOUT, 0, 0), FLEX_STATUS_OK);
	CHECK(answer[0] == RAM_BASE && answer[1] == RAM_SMALL && answer[2] == RAM_BASE + RAM_SMALL - FLEX_HIDDEN_BYTES);
}

TEST(grant_takes_pages_out_of_reach_and_tells_the_secure_world)
{
	static const u64 sizes[] = { 1, 2, 511, 512 };
	struct message told;
	u32 i;

	for (i = 0; i < 4; i++) {
		boot(RAM_SMALL);
		attach();
		CHECK(reached(1000) && reached(1000 - sizes[i] + 1));
		CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(1000), sizes[i]), FLEX_STATUS_OK);
		check_states(1000, sizes[i], FLEX_STATE_GRANTED);
		CHECK(!reached(1000) && !reached(1000 - sizes[i] + 1));
		CHECK(reached(1001) && reached(1000 - sizes[i]));
		told = event();
		CHECK(told.kind == FLEX_EVENT_GRANTED && told.a == page_at(1000) && told.b == sizes[i]);
		CHECK_EQUAL(event().kind, 0);
	}
}

TEST(grant_needs_a_secure_world)
{
	boot(RAM_SMALL);
	refused(FLEX_CALL_GRANT, page_at(10), 1, FLEX_STATUS_DENIED);
}

TEST(grant_needs_every_page_normal)
{
	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 1), FLEX_STATUS_OK);
	refused(FLEX_CALL_GRANT, page_at(10), 1, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_GRANT, page_at(12), 3, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_GRANT, page_at(10), 2, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_GRANT, page_at(1), 2, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_GRANT, page_at(0), 1, FLEX_STATUS_DENIED);
}

TEST(grant_needs_room_for_its_event)
{
	boot(RAM_SMALL);
	attach();
	fill_events();
	refused(FLEX_CALL_GRANT, page_at(10), 1, FLEX_STATUS_BUSY);
	event();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 1), FLEX_STATUS_OK);
}

TEST(grant_refuses_malformed_ranges)
{
	boot(RAM_SMALL);
	attach();
	refuses_malformed(FLEX_CALL_GRANT);
}

TEST(return_gives_back_as_it_came_what_was_never_used)
{
	struct message told;

	boot(RAM_SMALL);
	attach();
	words(page_at(10))[3] = 42;
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 4), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_RETURN, page_at(10), 3), FLEX_STATUS_OK);
	check_states(10, 3, FLEX_STATE_NORMAL);
	check_states(7, 1, FLEX_STATE_GRANTED);
	CHECK(reached(10) && reached(8) && !reached(7));
	CHECK_EQUAL(words(page_at(10))[3], 42);
	event();
	told = event();
	CHECK(told.kind == FLEX_EVENT_TAKEN && told.a == page_at(10) && told.b == 3);
}

TEST(return_passes_over_pages_that_the_os_has)
{
	struct message told;

	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 2), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(6), 1), FLEX_STATUS_OK);
	words(page_at(8))[3] = 42;
	CHECK_EQUAL(os(FLEX_CALL_RETURN, page_at(10), 5), FLEX_STATUS_OK);
	check_states(10, 5, FLEX_STATE_NORMAL);
	CHECK_EQUAL(pages_count(FLEX_STATE_GRANTED), 0);
	CHECK(reached(10) && reached(9) && reached(8) && reached(6));
	CHECK_EQUAL(words(page_at(8))[3], 42);
	event();
	event();
	told = event();
	CHECK(told.kind == FLEX_EVENT_TAKEN && told.a == page_at(10) && told.b == 5);
}

TEST(return_needs_both_ends_granted_and_nothing_used_between)
{
	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 2), FLEX_STATUS_OK);
	refused(FLEX_CALL_RETURN, page_at(10), 3, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_RETURN, page_at(11), 2, FLEX_STATUS_DENIED);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(31), 3), FLEX_STATUS_OK);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_COMMIT, page_at(30), 1), FLEX_STATUS_OK);
	refused(FLEX_CALL_RETURN, page_at(31), 3, FLEX_STATUS_DENIED);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_RECALL, page_at(30), 1), FLEX_STATUS_OK);
	refused(FLEX_CALL_RETURN, page_at(31), 3, FLEX_STATUS_DENIED);
	secure_pages(page_at(20), 2);
	refused(FLEX_CALL_RETURN, page_at(20), 1, FLEX_STATUS_DENIED);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_RECALL, page_at(20), 2), FLEX_STATUS_OK);
	refused(FLEX_CALL_RETURN, page_at(20), 1, FLEX_STATUS_DENIED);
	refuses_malformed(FLEX_CALL_RETURN);
}

TEST(take_gives_back_zeros)
{
	static const u64 sizes[] = { 1, 512 };
	struct message told;
	u64 i, word;

	for (i = 0; i < 2; i++) {
		boot(RAM_SMALL);
		attach();
		secure_pages(page_at(600), sizes[i]);
		memset(words(page_at(600)), 0x5e, sizes[i] * FLEX_PAGE_BYTES);
		CHECK_EQUAL(obeyed(FLEX_COMMAND_RECALL, page_at(600), sizes[i]), FLEX_STATUS_OK);
		CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(600), sizes[i]), FLEX_STATUS_OK);
		for (word = 0; word < sizes[i] * FLEX_PAGE_BYTES / 8; word++)
			CHECK_EQUAL(words(page_at(600))[word], 0);
		check_states(600, sizes[i], FLEX_STATE_NORMAL);
		CHECK(reached(600) && reached(600 - sizes[i] + 1));
		told = event();
		CHECK(told.kind == FLEX_EVENT_TAKEN && told.a == page_at(600) && told.b == sizes[i]);
	}
}

TEST(take_of_a_part_leaves_the_rest)
{
	boot(RAM_SMALL);
	attach();
	recalling_pages(page_at(10), 4);
	CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(9), 2), FLEX_STATUS_OK);
	CHECK(!reached(10) && reached(9) && reached(8) && !reached(7));
	check_states(10, 1, FLEX_STATE_RECALLING);
	check_states(7, 1, FLEX_STATE_RECALLING);
}

TEST(take_needs_every_page_recalling)
{
	boot(RAM_SMALL);
	attach();
	recalling_pages(page_at(10), 2);
	refused(FLEX_CALL_TAKE, page_at(10), 3, FLEX_STATUS_DENIED);
	refused(FLEX_CALL_TAKE, page_at(20), 1, FLEX_STATUS_DENIED);
	secure_pages(page_at(30), 1);
	refused(FLEX_CALL_TAKE, page_at(30), 1, FLEX_STATUS_DENIED);
	refuses_malformed(FLEX_CALL_TAKE);
}

TEST(take_and_return_need_no_room_and_nobody_to_tell)
{
	boot(RAM_SMALL);
	attach();
	recalling_pages(page_at(10), 2);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(20), 2), FLEX_STATUS_OK);
	fill_events();
	CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(10), 1), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_RETURN, page_at(20), 1), FLEX_STATUS_OK);
	while (event().kind)
		;
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(9), 1), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_RETURN, page_at(19), 1), FLEX_STATUS_OK);
	CHECK_EQUAL(event().kind, 0);
}

TEST(state_names_the_owner_and_how_far_it_goes)
{
	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 4), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_STATE, page_at(9), 0), FLEX_STATUS_OK);
	CHECK(answer[0] == FLEX_STATE_GRANTED && answer[1] == 3);
	CHECK_EQUAL(os(FLEX_CALL_STATE, page_at(6), 0), FLEX_STATUS_OK);
	CHECK(answer[0] == FLEX_STATE_NORMAL && answer[1] == 6);
	CHECK_EQUAL(os(FLEX_CALL_STATE, page_at(0), 0), FLEX_STATUS_OK);
	CHECK(answer[0] == FLEX_STATE_MONITOR && answer[1] == FLEX_CALL_PAGES_MAX);
	refused(FLEX_CALL_STATE, page_at(3) + 1, 0, FLEX_STATUS_INVALID);
	refused(FLEX_CALL_STATE, RAM_BASE + RAM_SMALL, 0, FLEX_STATUS_INVALID);
}

TEST(poll_has_nothing_to_say_when_nothing_happened)
{
	boot(RAM_SMALL);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
}

TEST(poll_does_a_bounded_number_of_commands_and_says_when_more_wait)
{
	u32 i;

	boot(RAM_SMALL);
	attach();
	for (i = 0; i < 100; i++)
		command(FLEX_COMMAND_COMMIT, 0, 0, i);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_MORE);
	CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), 1 + 64);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), 1 + 100);
}

TEST(poll_loses_no_notice_however_many_commands_wait)
{
	u64 i, seen = 0;
	struct message got;

	boot(RAM_SMALL);
	attach();
	for (i = 0; i < 1000; i++)
		command(FLEX_COMMAND_WANT, i, 7, 3);
	while ((got = notice()).kind == FLEX_NOTICE_WANT) {
		CHECK(got.a == seen && got.b == 7 && got.c == 3);
		seen++;
	}
	CHECK_EQUAL(got.kind, FLEX_NOTICE_NONE);
	CHECK_EQUAL(seen, 1000);
}

TEST(poll_carries_out_nothing_that_it_cannot_tell_of)
{
	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 1), FLEX_STATUS_OK);
	fill_events();
	command(FLEX_COMMAND_COMMIT, page_at(10), 1, 5);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	check_states(10, 1, FLEX_STATE_GRANTED);
	event();
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	check_states(10, 1, FLEX_STATE_SECURE);
}

static void tells(u64 call, u64 kind, u64 a, u64 b)
{
	struct message told;

	boot(RAM_SMALL);
	refused(call, 7, 9, FLEX_STATUS_DENIED);
	attach();
	host.rings = 0;
	CHECK_EQUAL(os(call, 7, 9), FLEX_STATUS_OK);
	CHECK_EQUAL(host.rings, 1);
	told = event();
	CHECK(told.kind == kind && told.a == a && told.b == b && told.c == 0);
	fill_events();
	refused(call, 7, 9, FLEX_STATUS_BUSY);
}

TEST(answer_is_told_to_the_secure_world)
{
	tells(FLEX_CALL_ANSWER, FLEX_EVENT_ANSWER, 7, 9);
}

TEST(pressure_is_told_to_the_secure_world)
{
	tells(FLEX_CALL_PRESSURE, FLEX_EVENT_PRESSURE, 7, 9);
}

TEST(detach_is_told_to_the_secure_world)
{
	tells(FLEX_CALL_DETACH, FLEX_EVENT_DETACHED, 0, 0);
}

TEST(counts_and_the_monitors_own_are_all_of_ram)
{
	boot(RAM_SMALL);
	attach();
	recalling_pages(page_at(10), 1);
	secure_pages(page_at(20), 2);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(30), 3), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_COUNTS, 0, 0), FLEX_STATUS_OK);
	CHECK(answer[0] == ALL - MONITORS - 6 && answer[1] == 3 && answer[2] == 2 && answer[3] == 1);
}

TEST(a_call_that_does_not_exist_is_unknown)
{
	boot(RAM_SMALL);
	refused(FLEX_CALL_NPU_STATE + 1, page_at(1), 1, FLEX_STATUS_UNKNOWN);
	refused(0ULL - FLEX_SMC_BASE, page_at(1), 1, FLEX_STATUS_UNKNOWN);
	refused(0x84000000ULL - FLEX_SMC_BASE, page_at(1), 1, FLEX_STATUS_UNKNOWN);
	refused(1ULL << 32, page_at(1), 1, FLEX_STATUS_UNKNOWN);
}

/* ---- faults ------------------------------------------------------------------------------------------------- */

TEST(an_access_is_blocked_and_counted_unless_the_page_is_normal)
{
	u64 *faults;

	boot(RAM_SMALL);
	attach();
	secure_pages(page_at(10), 1);
	faults = (u64 *)(void *)field(FLEX_AT_FAULTS);
	*faults = 0;
	CHECK_EQUAL(monitor_fault(page_at(11) + 123), MONITOR_RETRY);
	CHECK_EQUAL(*faults, 0);
	CHECK_EQUAL(monitor_fault(page_at(10) + 4095), MONITOR_BLOCK);
	CHECK(*faults != 0);
	CHECK_EQUAL(monitor_fault(page_at(0)), MONITOR_BLOCK);
	CHECK_EQUAL(monitor_fault(0x09020000), MONITOR_BLOCK); /* fw_cfg */
	CHECK_EQUAL(monitor_fault(RAM_BASE + RAM_SMALL), MONITOR_BLOCK);
}

/* ---- notices -------------------------------------------------------------------------------------------------- */

static void overfill(void)
{
	u32 i;

	for (i = 0; i <= 64; i++)
		notices_put(FLEX_NOTICE_WANT, i, 0, 0);
}

TEST(a_notice_without_room_stops_the_machine)
{
	boot(RAM_SMALL);
	CHECK(host_panic_of(overfill) != NULL);
	boot(RAM_SMALL);
}
