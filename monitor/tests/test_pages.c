#include "tests/unit.h"

/* The ownership table once more, as a reader of abi/flex.toml would write it down. */
static const struct {
	enum flex_move move;
	enum flex_state from;
	enum flex_state to;
} legal[] = {
	{ FLEX_MOVE_GRANT, FLEX_STATE_NORMAL, FLEX_STATE_GRANTED },
	{ FLEX_MOVE_COMMIT, FLEX_STATE_GRANTED, FLEX_STATE_SECURE },
	{ FLEX_MOVE_RETURN, FLEX_STATE_GRANTED, FLEX_STATE_NORMAL },
	{ FLEX_MOVE_RECALL, FLEX_STATE_SECURE, FLEX_STATE_RECALLING },
	{ FLEX_MOVE_SCRUBBED, FLEX_STATE_RECALLING, FLEX_STATE_NORMAL },
};

#define MOVES (sizeof(legal) / sizeof(legal[0]))

static struct range range(u64 before, u64 count)
{
	return (struct range){ page_number(before), count };
}

/* Bring a NORMAL page to a state along legal moves. */
static void bring(struct range page, enum flex_state state)
{
	static const enum flex_move way[] = { FLEX_MOVE_GRANT, FLEX_MOVE_COMMIT, FLEX_MOVE_RECALL };
	u32 i;

	for (i = 0; i < (u32)state; i++)
		pages_move(way[i], page);
}

static struct range subject;
static enum flex_move attempt;

static void try_attempt(void)
{
	pages_move(attempt, subject);
}

TEST(every_legal_move_is_made_and_every_illegal_one_stops_the_machine)
{
	u32 state, move;

	for (state = FLEX_STATE_NORMAL; state <= FLEX_STATE_MONITOR; state++)
		for (move = 0; move < MOVES; move++) {
			boot(RAM_SMALL);
			subject = range(state == FLEX_STATE_MONITOR ? 0 : 1, 1);
			if (state != FLEX_STATE_MONITOR)
				bring(subject, (enum flex_state)state);
			attempt = legal[move].move;
			CHECK_EQUAL(pages_may(attempt, subject), legal[move].from == state);
			CHECK_EQUAL(host_panic_of(try_attempt) == NULL, legal[move].from == state);
			CHECK_EQUAL(pages_state(subject.first), legal[move].from == state ? legal[move].to : state);
		}
}

TEST(one_page_in_the_wrong_state_rules_out_the_whole_range)
{
	u64 odd;

	for (odd = 0; odd < 5; odd++) {
		boot(RAM_SMALL);
		pages_move(FLEX_MOVE_GRANT, range(5 - odd, 1));
		CHECK(!pages_may(FLEX_MOVE_GRANT, range(5, 5)));
		CHECK(!pages_may(FLEX_MOVE_COMMIT, range(5, 5)));
	}
}

TEST(a_range_is_whole_pages_inside_ram)
{
	u64 end = RAM_BASE + RAM_SMALL;
	struct range got;

	boot(RAM_SMALL);
	CHECK(pages_range(RAM_BASE, 1, &got) && got.first == 0 && got.count == 1);
	CHECK(pages_range(RAM_BASE, FLEX_CALL_PAGES_MAX, &got) && got.count == FLEX_CALL_PAGES_MAX);
	CHECK(pages_range(end - FLEX_PAGE_BYTES, 1, &got) && got.first == RAM_SMALL / FLEX_PAGE_BYTES - 1);
	CHECK(!pages_range(RAM_BASE, 0, &got));
	CHECK(!pages_range(RAM_BASE, FLEX_CALL_PAGES_MAX + 1, &got));
	CHECK(!pages_range(RAM_BASE, (1ULL << 52) + 1, &got));
	CHECK(!pages_range(RAM_BASE + 1, 1, &got));
	CHECK(!pages_range(RAM_BASE - FLEX_PAGE_BYTES, 1, &got));
	CHECK(!pages_range(RAM_BASE - FLEX_PAGE_BYTES, 2, &got));
	CHECK(!pages_range(end, 1, &got));
	CHECK(!pages_range(end - FLEX_PAGE_BYTES, 2, &got));
	CHECK(!pages_range(0ULL - FLEX_PAGE_BYTES, 2, &got));
	CHECK(!pages_range(1ULL << 63, 1, &got));
}

TEST(pages_are_counted_whatever_they_do)
{
	u64 all = RAM_SMALL / FLEX_PAGE_BYTES, monitor = FLEX_HIDDEN_BYTES / FLEX_PAGE_BYTES;

	boot(RAM_SMALL);
	pages_move(FLEX_MOVE_GRANT, range(10, 10));
	pages_move(FLEX_MOVE_COMMIT, range(10, 6));
	pages_move(FLEX_MOVE_RECALL, range(10, 3));
	pages_move(FLEX_MOVE_RETURN, range(4, 2));
	pages_move(FLEX_MOVE_SCRUBBED, range(10, 1));
	CHECK_EQUAL(pages_count(FLEX_STATE_NORMAL), all - monitor - 7);
	CHECK_EQUAL(pages_count(FLEX_STATE_GRANTED), 2);
	CHECK_EQUAL(pages_count(FLEX_STATE_SECURE), 3);
	CHECK_EQUAL(pages_count(FLEX_STATE_RECALLING), 2);
	CHECK_EQUAL(pages_count(FLEX_STATE_MONITOR), monitor);
}

TEST(a_sweep_moves_what_it_may_and_goes_on_where_it_stopped)
{
	struct range some;
	u64 steps = 0;

	boot(RAM_SMALL);
	pages_move(FLEX_MOVE_GRANT, range(1000, 1000));
	pages_move(FLEX_MOVE_COMMIT, range(1000, 1));
	pages_move(FLEX_MOVE_COMMIT, range(500, 500));
	for (some = pages_from(0); some.count > 0; some = pages_from(some.first + some.count), steps++)
		pages_sweep(FLEX_MOVE_RECALL, some);
	CHECK_EQUAL(steps, RAM_SMALL / FLEX_PAGE_BYTES / FLEX_CALL_PAGES_MAX);
	CHECK_EQUAL(pages_count(FLEX_STATE_RECALLING), 501);
	CHECK_EQUAL(pages_count(FLEX_STATE_SECURE), 0);
	CHECK_EQUAL(pages_count(FLEX_STATE_GRANTED), 499);
}

TEST(pages_alike_are_counted_up_to_a_bound_and_the_end_of_ram)
{
	boot(RAM_SMALL);
	pages_move(FLEX_MOVE_GRANT, range(10, 4));
	CHECK_EQUAL(pages_alike(page_number(10), 512), 4);
	CHECK_EQUAL(pages_alike(page_number(10), 3), 3);
	CHECK_EQUAL(pages_alike(page_number(6), 512), 6);
	CHECK_EQUAL(pages_alike(RAM_SMALL / FLEX_PAGE_BYTES - 2, 512), 2);
}
