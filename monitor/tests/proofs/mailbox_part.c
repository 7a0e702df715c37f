#include "tests/proofs/parts.h"

#include "core/mailbox.c"

/*
 * Anything is allowed, a bell that is owed included: it may be owed by the steps of a POLL before this one.
 * What lies in the mailbox's memory is of no matter. It is `volatile`, and in the proofs every single read of
 * volatile memory yields anything (goto-instrument --nondet-volatile), for whoever took over the secure world
 * may write there at any moment.
 */
void mailbox_any(void)
{
	box = (volatile u8 *)small.mailbox;
	command_tail = nondet_u32();
	event_head = nondet_u32();
	rung_to = nondet_u32();
	faults = nondet_u64();
	small.mailbox[small.watched_word] = nondet_u64();
}

bool mailbox_holds(void)
{
	return box == (volatile u8 *)small.mailbox;
}

void mailbox_view(struct view *view)
{
	view->command_tail = command_tail;
	view->event_head = event_head;
	view->bell_owed = rung_to != event_head;
	view->faults = faults;
	view->word = small.mailbox[small.watched_word];
}
