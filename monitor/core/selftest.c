#include "core/selftest.h"

#include "arch/arch.h"
#include "core/pages.h"
#include "core/tables.h"

#define ONE(event, old, new) +1
#define IS_LEGAL(event, old, new) || (move == FLEX_MOVE_##event && from == FLEX_STATE_##old)

enum { MOVES = 0 FLEX_TRANSITIONS(ONE) };

/* Every legal one, and back where it began. */
static const enum flex_move walk[] = {
	FLEX_MOVE_GRANT, FLEX_MOVE_RETURN, FLEX_MOVE_GRANT, FLEX_MOVE_COMMIT, FLEX_MOVE_RECALL, FLEX_MOVE_SCRUBBED,
};

static bool legal(enum flex_state from, enum flex_move move)
{
	return false FLEX_TRANSITIONS(IS_LEGAL);
}

static void require(bool held)
{
	if (!held)
		arch_panic("self-test failed");
}

/* Alone, a page moves as the interface says; together with a page of the monitor it never does. */
static void try_moves(struct range page)
{
	struct range both = { page.first, page.count + 1 };
	u32 move;

	for (move = 0; move < MOVES; move++) {
		require(pages_may((enum flex_move)move, page) == legal(pages_state(page.first), (enum flex_move)move));
		require(!pages_may((enum flex_move)move, both));
	}
}

void selftest_run(const struct layout *layout)
{
	u64 hidden = (layout->hidden_base - layout->ram_base) / FLEX_PAGE_BYTES;
	struct range last = { hidden - 1, 1 }, first_hidden = { hidden, 1 };
	u32 i;

	try_moves(first_hidden);
	require(!tables_shown(hidden));
	require(!tables_is_open(hidden));
	for (i = 0; i < sizeof(walk) / sizeof(walk[0]); i++) {
		try_moves(last);
		pages_move(walk[i], last);
		if (pages_state(last.first) == FLEX_STATE_NORMAL)
			tables_show(last);
		else
			tables_hide(last);
		if (pages_state(last.first) == FLEX_STATE_SECURE)
			tables_open(last);
		else
			tables_close(last);
		require(tables_shown(last.first) == (pages_state(last.first) == FLEX_STATE_NORMAL));
		require(tables_is_open(last.first) == (pages_state(last.first) == FLEX_STATE_SECURE));
	}
	require(pages_state(last.first) == FLEX_STATE_NORMAL);
}
