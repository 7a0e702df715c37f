#include "core/mailbox.h"

#include "arch/arch.h"

static u32 command_head;
static u32 event_tail;
static u32 last_leaving; /* the head behind the last RECALL or GONE */
static bool leaving;
static bool gone; /* that was a GONE: it is carried out when the command behind it is read */

static volatile u32 *word(u32 offset)
{
	return (volatile u32 *)(arch_mailbox() + offset);
}

static volatile u64 *slot(u32 ring, u32 count)
{
	u64 at = FLEX_MAILBOX_HEADER_BYTES;

	at += ((u64)ring * FLEX_MAILBOX_SLOTS + count % FLEX_MAILBOX_SLOTS) * FLEX_MAILBOX_SLOT_BYTES;
	return (volatile u64 *)(arch_mailbox() + at);
}

/* Commands that the monitor has not taken; more than there can be: what it says is nonsense. */
static u32 waiting(void)
{
	return command_head - *word(FLEX_AT_COMMAND_TAIL);
}

void mailbox_reset(void)
{
	command_head = *word(FLEX_AT_COMMAND_HEAD);
	if (waiting() > FLEX_MAILBOX_SLOTS)
		command_head = *word(FLEX_AT_COMMAND_TAIL);
	event_tail = *word(FLEX_AT_EVENT_TAIL);
	if (*word(FLEX_AT_EVENT_HEAD) - event_tail > FLEX_MAILBOX_SLOTS)
		*word(FLEX_AT_EVENT_TAIL) = event_tail = *word(FLEX_AT_EVENT_HEAD);
	leaving = gone = false;
}

bool mailbox_put(struct message command)
{
	volatile u64 *to = slot(0, command_head);

	if (waiting() >= FLEX_MAILBOX_SLOTS)
		return false;
	to[0] = command.kind;
	to[1] = command.a;
	to[2] = command.b;
	to[3] = command.c;
	arch_barrier();
	*word(FLEX_AT_COMMAND_HEAD) = ++command_head;
	if (command.kind == FLEX_COMMAND_RECALL || command.kind == FLEX_COMMAND_GONE) {
		leaving = true;
		gone = command.kind == FLEX_COMMAND_GONE;
		last_leaving = command_head;
	}
	return true;
}

bool mailbox_waits(void)
{
	u32 events = *word(FLEX_AT_EVENT_HEAD) - event_tail;

	return events != 0 && events <= FLEX_MAILBOX_SLOTS;
}

bool mailbox_take(struct message *event)
{
	volatile u64 *from = slot(1, event_tail);

	if (!mailbox_waits())
		return false;
	arch_barrier();
	*event = (struct message){ from[0], from[1], from[2], from[3] };
	arch_barrier();
	*word(FLEX_AT_EVENT_TAIL) = ++event_tail;
	return true;
}

bool mailbox_settled(void)
{
	u64 left = waiting();

	/* What was put behind the last one that leaves may still wait. */
	if (leaving && left + gone <= command_head - last_leaving)
		leaving = false;
	arch_barrier();
	return !leaving;
}
