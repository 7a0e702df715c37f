/*
 * Every command of the secure world: what it needs, what then is true, and that a refusal changed nothing. A
 * test's name begins with command_ and the command's; those of the NPU are in test_npu.c.
 */
#include "core/notices.h"
#include "tests/unit.h"

TEST(command_attach_is_for_one_at_a_time)
{
	struct message told;

	boot(RAM_SMALL);
	command(FLEX_COMMAND_ATTACH, 41, 0, 0);
	told = notice();
	CHECK(told.kind == FLEX_NOTICE_ATTACHED && told.a == 41);
	told = event();
	CHECK(told.kind == FLEX_EVENT_ATTACHED && told.a == 41);
	command(FLEX_COMMAND_ATTACH, 42, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 42 && (int)told.b == FLEX_STATUS_DENIED);
}

TEST(command_gone_recalls_all_that_is_secure_and_nothing_else)
{
	struct message told;

	boot(RAM_SMALL);
	attach();
	secure_pages(page_at(1000), 300);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(600), 5), FLEX_STATUS_OK);
	recalling_pages(page_at(100), 5);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	command(FLEX_COMMAND_GONE, 9, 0, 0);
	while ((told = notice()).kind == FLEX_NOTICE_MORE)
		refused(FLEX_CALL_GRANT, page_at(50), 1, FLEX_STATUS_DENIED);
	CHECK(told.kind == FLEX_NOTICE_GONE && told.a == 9);
	check_states(1000, 300, FLEX_STATE_RECALLING);
	CHECK(!opened(1000) && !opened(1000 - 299));
	check_states(600, 5, FLEX_STATE_GRANTED);
	check_states(100, 5, FLEX_STATE_RECALLING);
	CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(1000), 300), FLEX_STATUS_OK);
}

TEST(command_gone_takes_many_polls_on_a_large_machine_and_the_next_one_waits)
{
	u64 polls = 1, steps = (RAM_LARGE / FLEX_PAGE_BYTES + FLEX_CALL_PAGES_MAX - 1) / FLEX_CALL_PAGES_MAX;
	struct message told;

	boot(RAM_LARGE);
	attach();
	secure_pages(RAM_BASE, 512);
	secure_pages(page_at(512), 512);
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	command(FLEX_COMMAND_ATTACH, 2, 0, 0);
	while ((told = notice()).kind == FLEX_NOTICE_MORE)
		polls++;
	CHECK_EQUAL(told.kind, FLEX_NOTICE_GONE);
	CHECK_EQUAL(polls, (1 + steps + 63) / 64);
	CHECK_EQUAL(pages_count(FLEX_STATE_SECURE), 0);
	CHECK_EQUAL(pages_count(FLEX_STATE_RECALLING), 1024);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_ATTACHED);
}

TEST(command_gone_is_for_who_never_attached_too)
{
	boot(RAM_SMALL);
	command(FLEX_COMMAND_GONE, 3, 0, 0);
	while (notice().kind == FLEX_NOTICE_MORE)
		;
	attach();
}

TEST(command_want_is_told_to_the_os)
{
	struct message told;

	boot(RAM_SMALL);
	attach();
	command(FLEX_COMMAND_WANT, 11, 100, 10);
	told = notice();
	CHECK(told.kind == FLEX_NOTICE_WANT && told.a == 11 && told.b == 100 && told.c == 10);
	CHECK_EQUAL(event().kind, 0);
}

TEST(command_want_of_nobody_is_refused)
{
	struct message told;

	boot(RAM_SMALL);
	command(FLEX_COMMAND_WANT, 11, 100, 10);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && (int)told.b == FLEX_STATUS_DENIED);
}

TEST(command_commit_makes_granted_pages_secure)
{
	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(600), 512), FLEX_STATUS_OK);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_COMMIT, page_at(600), 512), FLEX_STATUS_OK);
	check_states(600, 512, FLEX_STATE_SECURE);
	CHECK(!reached(600));
	CHECK(opened(600) && opened(600 - 511) && !opened(601) && !opened(600 - 512));
}

TEST(command_recall_offers_secure_pages_to_the_os)
{
	struct message told;

	boot(RAM_SMALL);
	attach();
	secure_pages(page_at(10), 3);
	command(FLEX_COMMAND_RECALL, page_at(10), 3, 8);
	told = notice();
	CHECK(told.kind == FLEX_NOTICE_OFFER && told.a == page_at(10) && told.b == 3);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 8 && told.b == FLEX_STATUS_OK);
	check_states(10, 3, FLEX_STATE_RECALLING);
	CHECK(!reached(10) && !opened(10) && !opened(8));
}

TEST(command_refuse_asks_the_os_to_take_granted_pages_back)
{
	struct message told;

	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 3), FLEX_STATUS_OK);
	event();
	command(FLEX_COMMAND_REFUSE, page_at(10), 3, 8);
	told = notice();
	CHECK(told.kind == FLEX_NOTICE_UNWANTED && told.a == page_at(10) && told.b == 3);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == 8 && told.b == FLEX_STATUS_OK);
	check_states(10, 3, FLEX_STATE_GRANTED);
}

/* A command on pages that is refused: it changes no page and no table. */
static void command_refused(u64 kind, u64 ipa, u64 pages, int status)
{
	u64 counted[5], i;

	for (i = 0; i < 5; i++)
		counted[i] = pages_count((enum flex_state)i);
	CHECK_EQUAL(obeyed(kind, ipa, pages), status);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	for (i = 0; i < 5; i++)
		CHECK_EQUAL(pages_count((enum flex_state)i), counted[i]);
}

TEST(command_on_pages_needs_them_all_in_the_right_state)
{
	boot(RAM_SMALL);
	attach();
	secure_pages(page_at(20), 2);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 2), FLEX_STATUS_OK);
	command_refused(FLEX_COMMAND_COMMIT, page_at(10), 3, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_COMMIT, page_at(20), 1, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_COMMIT, page_at(0), 1, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_RECALL, page_at(20), 3, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_RECALL, page_at(10), 1, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_REFUSE, page_at(11), 2, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_REFUSE, page_at(20), 1, FLEX_STATUS_DENIED);
}

TEST(command_on_malformed_pages_is_invalid)
{
	u64 kind;

	boot(RAM_SMALL);
	attach();
	for (kind = FLEX_COMMAND_COMMIT; kind <= FLEX_COMMAND_REFUSE; kind++) {
		command_refused(kind, page_at(10) + 1, 1, FLEX_STATUS_INVALID);
		command_refused(kind, page_at(10), 0, FLEX_STATUS_INVALID);
		command_refused(kind, page_at(600), 513, FLEX_STATUS_INVALID);
		command_refused(kind, RAM_BASE + RAM_SMALL, 1, FLEX_STATUS_INVALID);
	}
}

TEST(command_that_does_not_exist_is_unknown)
{
	boot(RAM_SMALL);
	attach();
	command_refused(FLEX_COMMAND_NPU_RELEASE + 1, page_at(10), 1, FLEX_STATUS_UNKNOWN);
	command_refused(0, page_at(10), 1, FLEX_STATUS_UNKNOWN);
	command_refused(~0ULL, page_at(10), 1, FLEX_STATUS_UNKNOWN);
}

TEST(command_of_nobody_is_denied)
{
	boot(RAM_SMALL);
	command_refused(FLEX_COMMAND_COMMIT, page_at(10), 1, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_RECALL, page_at(10), 1, FLEX_STATUS_DENIED);
	command_refused(FLEX_COMMAND_REFUSE, page_at(10), 1, FLEX_STATUS_DENIED);
}
