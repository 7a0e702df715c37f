#include "tests/proofs/parts.h"
#undef STATES

#include "core/pages.c"

static u64 how_many(u8 state)
{
	u32 page, found = 0;

	for (page = 0; page < PAGES; page++)
		found += page < small.pages && states[page] == state;
	return found;
}

/* Each page is in a state that exists; the monitor's pages are exactly the last ones; the counts are true. */
void pages_any(void)
{
	u64 page;

	states = small.states;
	base = small.base;
	total = small.pages;
	for (page = 0; page < PAGES; page++)
		states[page] = page < small.hidden ? nondet_u8() % FLEX_STATE_MONITOR : FLEX_STATE_MONITOR;
	for (page = 0; page < STATES; page++)
		counts[page] = how_many(page);
}

bool pages_hold(void)
{
	bool hold = states == small.states && base == small.base && total == small.pages;
	u64 page;

	for (page = 0; page < PAGES; page++)
		hold = hold && states[page] < STATES && (states[page] == FLEX_STATE_MONITOR) == (page >= small.hidden);
	for (page = 0; page < STATES; page++)
		hold = hold && counts[page] == how_many(page);
	return hold;
}

void pages_view(struct view *view)
{
	u64 state;

	view->state = states[small.watched];
	for (state = 0; state < STATES; state++)
		view->counts[state] = counts[state];
}
