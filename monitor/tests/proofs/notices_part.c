#include "tests/proofs/parts.h"

#include "core/notices.c"

/* The counters are no further apart than the queue is long. */
void notices_any(void)
{
	u32 i;

	for (i = 0; i < NOTICES_MAX; i++)
		queue[i] = (struct message){ nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	head = nondet_u32();
	tail = nondet_u32();
	assume(notices_hold());
}

bool notices_hold(void)
{
	return head - tail <= NOTICES_MAX;
}

void notices_view(struct view *view)
{
	view->notice = queue[small.watched_slot];
	view->notice_head = head;
	view->notice_tail = tail;
}
