/* What the OS sees of a redistributor's control frame: enough for Linux, and no LPIs. */
#include "core/redistributor.h"
#include "tests/unit.h"

#define CONFIGURATION 0x0070 /* where the tables of LPIs are … */
#define PENDING 0x0078

TEST(a_redistributor_has_no_lpis)
{
	CHECK_EQUAL(redistributor_shown(0x0000, 4) & 1, 0); /* … and whether they are on */
	CHECK_EQUAL(redistributor_shown(0x0008, 8) & 0x0f, 0);
	CHECK_EQUAL(redistributor_shown(0x0008, 4) & 0x0f, 0);
	CHECK_EQUAL(redistributor_shown(CONFIGURATION, 8), 0);
	CHECK_EQUAL(redistributor_shown(PENDING, 8), 0);
	CHECK_EQUAL(redistributor_shown(PENDING, 4), 0);
}

TEST(a_redistributor_tells_which_cpu_it_is_of_and_whether_it_is_the_last)
{
	CHECK_EQUAL(redistributor_shown(0x0008, 8) >> 32, 0xffffffff);
	CHECK_EQUAL(redistributor_shown(0x000c, 4), 0xffffffff);
	CHECK_EQUAL(redistributor_shown(0x0008, 4) & 0x00ffff10, 0x00ffff10);
	CHECK_EQUAL(redistributor_shown(0xffe8, 4), 0xffffffff);
	CHECK_EQUAL(redistributor_shown(REDISTRIBUTOR_WAKER, 4), 6);
}

TEST(what_is_no_register_of_a_redistributor_reads_as_zero)
{
	CHECK_EQUAL(redistributor_shown(0x0000, 8), 0);
	CHECK_EQUAL(redistributor_shown(0x0001, 4), 0);
	CHECK_EQUAL(redistributor_shown(0x0008, 1), 0);
	CHECK_EQUAL(redistributor_shown(0xfffe, 4), 0);
	CHECK_EQUAL(redistributor_shown(0x10000, 4), 0);
}
