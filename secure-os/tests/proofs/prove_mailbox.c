/*
 * The secure world's end of the rings, for any counters and any memory. `watched` is any word of the mailbox. Where a command
 * or an event is moved every read yields anything (goto-instrument --nondet-volatile), as while protection is off.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#include "core/mailbox.c"

#include "arch/arch.h"

#define WORDS ((FLEX_MAILBOX_HEADER_BYTES + 2 * FLEX_MAILBOX_SLOTS * FLEX_MAILBOX_SLOT_BYTES) / sizeof(u64))
#define SLOT_WORDS (FLEX_MAILBOX_SLOT_BYTES / sizeof(u64))

static u64 box[WORDS];

volatile u8 *arch_mailbox(void)
{
	return (volatile u8 *)box;
}

void arch_barrier(void)
{
}

/* The first word of a slot. */
static u64 slot_word(u64 ring, u32 count)
{
	return (FLEX_MAILBOX_HEADER_BYTES + (ring * FLEX_MAILBOX_SLOTS + count % FLEX_MAILBOX_SLOTS) * FLEX_MAILBOX_SLOT_BYTES) /
	       sizeof(u64);
}

static u32 *box_word(u32 offset)
{
	return (u32 *)(void *)((u8 *)box + offset);
}

/*
 * The commands that wait are the last ones that were put, as many as head and tail are apart. The last RECALL or GONE is not
 * among them; nor is the one behind a GONE, which the monitor reads when that has ended.
 */
static void prove_settled(void)
{
	u32 waits, behind;
	bool was;

	command_head = nondet_u32();
	last_leaving = nondet_u32();
	was = leaving = nondet_bool();
	gone = nondet_bool();
	*box_word(FLEX_AT_COMMAND_TAIL) = nondet_u32();
	waits = command_head - *box_word(FLEX_AT_COMMAND_TAIL);
	behind = command_head - last_leaving; /* commands that were put behind it */
	if (mailbox_settled()) {
		prove(!was || waits < behind + 1ULL, "no RECALL waits");
		prove(!was || !gone || waits < behind, "and no GONE is under way");
		possible(was && gone);
		possible(was && waits == behind);
	} else {
		prove(was && leaving, "it waits for a RECALL or a GONE alone");
		possible(waits <= FLEX_MAILBOX_SLOTS);
	}
	possible(waits > FLEX_MAILBOX_SLOTS);
}

static void prove_reset(void)
{
	u32 head, tail, events, read;

	head = *box_word(FLEX_AT_COMMAND_HEAD) = nondet_u32();
	tail = *box_word(FLEX_AT_COMMAND_TAIL) = nondet_u32();
	events = *box_word(FLEX_AT_EVENT_HEAD) = nondet_u32();
	read = *box_word(FLEX_AT_EVENT_TAIL) = nondet_u32();
	mailbox_reset();
	prove(command_head - tail <= FLEX_MAILBOX_SLOTS, "no more commands wait than there is room for");
	prove(head - tail > FLEX_MAILBOX_SLOTS || command_head == head, "what was put is behind us");
	prove(events - event_tail <= FLEX_MAILBOX_SLOTS, "no more events wait than there is room for");
	prove(events - read > FLEX_MAILBOX_SLOTS || event_tail == read, "none that was there is lost");
	prove(*box_word(FLEX_AT_EVENT_TAIL) == event_tail && !leaving, "the monitor knows what was read");
	possible(head - tail > FLEX_MAILBOX_SLOTS);
}

static void prove_moves(void)
{
	u64 watched = nondet_u64(), before;
	struct message message = { nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	u32 head = nondet_u32(), tail = nondet_u32();
	bool done, is_leaving = message.kind == FLEX_COMMAND_RECALL || message.kind == FLEX_COMMAND_GONE, was = nondet_bool();

	assume(watched < WORDS);
	before = box[watched] = nondet_u64();
	command_head = head;
	event_tail = tail;
	leaving = was;
	last_leaving = nondet_u32();
	gone = nondet_bool();
	if (nondet_bool()) {
		done = mailbox_put(message);
		prove(command_head == head + done && event_tail == tail, "a command counts once");
		prove(box[watched] == before || done, "where there is no room nothing is written");
		prove(box[watched] == before || watched == FLEX_AT_COMMAND_HEAD / sizeof(u64) ||
			      (watched >= slot_word(0, head) && watched < slot_word(0, head) + SLOT_WORDS),
		      "a command is written to its slot alone");
		if (done && watched == slot_word(0, head) + 2)
			prove(box[watched] == message.b, "as it is");
		if (done && watched == FLEX_AT_COMMAND_HEAD / sizeof(u64))
			prove((u32)box[watched] == head + 1, "its end is told");
		prove(leaving == (was || (done && is_leaving)), "that a page leaves is kept in mind");
		prove(!done || !is_leaving || (last_leaving == head + 1 && gone == (message.kind == FLEX_COMMAND_GONE)),
		      "and the last one that does");
		possible(done && is_leaving);
		possible(!done);
	} else {
		done = mailbox_take(&message);
		prove(event_tail == tail + done && command_head == head, "an event counts once");
		prove(box[watched] == before || (done && watched == FLEX_AT_EVENT_TAIL / sizeof(u64)),
		      "of the mailbox, only what was read is written");
		prove(leaving == was, "events change nothing else");
		possible(done);
		possible(!done);
	}
}

int main(void)
{
	if (CASE == 0)
		prove_moves();
	else if (CASE == 1)
		prove_settled();
	else
		prove_reset();
	return 0;
}
