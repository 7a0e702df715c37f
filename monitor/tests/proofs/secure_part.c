#include "tests/proofs/parts.h"

#include "core/secure.c"

/* While nobody is attached no page is SECURE, but those that a GONE under way has not come to. */
void secure_any(void)
{
	attached = nondet_bool();
	leaving = (struct leaving){ nondet_bool(), nondet_u64(), nondet_u64() };
	assume(secure_holds());
}

bool secure_holds(void)
{
	u64 page, first = leaving.under_way ? leaving.next : PAGES;
	bool hold = !leaving.under_way || (!attached && leaving.next < small.pages);

	for (page = 0; page < PAGES; page++)
		hold = hold && (attached || page >= first || pages_state(page) != FLEX_STATE_SECURE);
	return hold;
}

void secure_view(struct view *view)
{
	view->attached = attached;
	view->leaving = leaving.under_way;
	view->leaving_epoch = leaving.epoch;
	view->leaving_next = leaving.next;
}
