/* Protection goes off by RELAX, when nothing needs it, and what comes on again is a monitor made anew. */
#include <string.h>

#include "arch/arch.h"
#include "core/notices.h"
#include "tests/unit.h"

TEST(relax_switches_protection_off_when_nothing_is_held)
{
	boot(RAM_SMALL);
	CHECK_EQUAL(os(FLEX_CALL_RELAX, 0, 0), FLEX_STATUS_OK);
	CHECK_EQUAL(host.relaxed, 1);
}

TEST(relax_is_refused_while_a_secure_world_is_attached)
{
	boot(RAM_SMALL);
	attach();
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
	CHECK_EQUAL(host.relaxed, 0);
}

TEST(relax_is_refused_while_a_page_is_not_back)
{
	boot(RAM_SMALL);
	attach();
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(10), 2), FLEX_STATUS_OK);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_COMMIT, page_at(10), 1), FLEX_STATUS_OK);
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
	while (notice().kind != FLEX_NOTICE_NONE)
		;
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD); /* one page RECALLING, one GRANTED */
	CHECK_EQUAL(os(FLEX_CALL_RETURN, page_at(9), 1), FLEX_STATUS_OK);
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
	CHECK_EQUAL(os(FLEX_CALL_TAKE, page_at(10), 1), FLEX_STATUS_OK);
	CHECK_EQUAL(os(FLEX_CALL_RELAX, 0, 0), FLEX_STATUS_OK);
}

TEST(relax_is_refused_while_what_a_dead_secure_world_used_is_being_recalled)
{
	boot(RAM_LARGE);
	attach();
	secure_pages(page_at(1), 1);
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_MORE);
	check_states(1, 1, FLEX_STATE_SECURE);
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_HELD);
}

TEST(relax_says_what_el3_says)
{
	boot(RAM_SMALL);
	host.relax_status = FLEX_STATUS_BUSY;
	refused(FLEX_CALL_RELAX, 0, 0, FLEX_STATUS_BUSY);
}

TEST(before_the_machine_ends_all_that_may_hold_a_secret_is_overwritten)
{
	static const u8 mark = 0x5a;
	u32 page;

	boot(RAM_SMALL);
	attach();
	secure_pages(page_at(10), 2);
	recalling_pages(page_at(20), 1);
	CHECK_EQUAL(os(FLEX_CALL_GRANT, page_at(30), 1), FLEX_STATUS_OK);
	for (page = 9; page < 32; page++)
		memset(host.ram + (page_at(page) - host.ram_base), mark, FLEX_PAGE_BYTES);
	monitor_end();
	for (page = 9; page < 32; page++) {
		const u8 *at = host.ram + (page_at(page) - host.ram_base);
		bool kept = pages_state((page_at(page) - host.ram_base) / FLEX_PAGE_BYTES) <= FLEX_STATE_GRANTED; /* that never held one */

		CHECK_EQUAL(at[0], kept ? mark : 0);
		CHECK_EQUAL(at[FLEX_PAGE_BYTES - 1], kept ? mark : 0);
	}
	arch_unlock(); /* it keeps the lock: on a machine nothing comes after it */
}

TEST(a_new_start_makes_everything_normal)
{
	boot(RAM_SMALL);
	attach();
	recalling_pages(page_at(10), 1);
	secure_pages(page_at(20), 2);
	monitor_rebuild();
	CHECK_EQUAL(pages_count(FLEX_STATE_NORMAL), ALL - MONITORS);
	CHECK(reached(10) && reached(20));
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	refused(FLEX_CALL_GRANT, page_at(10), 1, FLEX_STATUS_DENIED);
}
