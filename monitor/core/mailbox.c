#include "core/mailbox.h"

#include "arch/arch.h"

static volatile u8 *box;
static u32 command_tail;
static u32 event_head;
static u32 rung_to; /* the head when mailbox_ring last looked */
static u64 faults;

static volatile u32 *word(u32 offset)
{
	return (volatile u32 *)(box + offset);
}

static void write_long(u32 offset, u64 value)
{
	*(volatile u64 *)(box + offset) = value;
}

static volatile u64 *slot(u32 ring, u32 count)
{
	u64 at = FLEX_MAILBOX_HEADER_BYTES;

	at += ((u64)ring * FLEX_MAILBOX_SLOTS + count % FLEX_MAILBOX_SLOTS) * FLEX_MAILBOX_SLOT_BYTES;
	return (volatile u64 *)(box + at);
}

void mailbox_init(const struct layout *layout)
{
	u32 i;

	box = arch_at(layout->mailbox);
	for (i = 0; i < MAILBOX_BYTES; i += sizeof(u64))
		write_long(i, 0);
	command_tail = event_head = rung_to = 0;
	write_long(FLEX_AT_VERSION, FLEX_ABI_VERSION);
	write_long(FLEX_AT_RAM_BASE, layout->ram_base);
	write_long(FLEX_AT_RAM_BYTES, layout->ram_bytes);
	write_long(FLEX_AT_STATES_OFFSET, layout->states - layout->ram_base);
	write_long(FLEX_AT_FAULTS, faults);
	arch_barrier();
	write_long(FLEX_AT_MAGIC, FLEX_MAILBOX_MAGIC);
}

bool mailbox_command(struct message *command)
{
	u32 waiting = *word(FLEX_AT_COMMAND_HEAD) - command_tail;
	volatile u64 *from;

	if (waiting == 0 || waiting > FLEX_MAILBOX_SLOTS)
		return false;
	arch_barrier();
	from = slot(0, command_tail);
	*command = (struct message){ from[0], from[1], from[2], from[3] };
	command_tail++;
	return true;
}

void mailbox_carried_out(void)
{
	arch_barrier();
	*word(FLEX_AT_COMMAND_TAIL) = command_tail;
}

u32 mailbox_room(void)
{
	u32 used = event_head - *word(FLEX_AT_EVENT_TAIL);

	return used > FLEX_MAILBOX_SLOTS ? 0 : FLEX_MAILBOX_SLOTS - used;
}

void mailbox_event(u64 kind, u64 a, u64 b)
{
	volatile u64 *to = slot(1, event_head);

	to[0] = kind;
	to[1] = a;
	to[2] = b;
	to[3] = 0;
	arch_barrier();
	*word(FLEX_AT_EVENT_HEAD) = ++event_head;
}

void mailbox_ring(void)
{
	u32 fresh = event_head - rung_to;

	if (fresh == 0)
		return;
	rung_to = event_head;
	/*
	 * It says that it sleeps and then looks once more: one of us sees the other. If it has not read what was
	 * there before, it was rung for that, or is about to look.
	 */
	arch_barrier();
	if (*word(FLEX_AT_SLEEPING) && event_head - *word(FLEX_AT_EVENT_TAIL) <= fresh)
		arch_ring_secure();
}

void mailbox_npu_state(enum flex_npu_state state)
{
	*word(FLEX_AT_NPU_STATE) = state;
}

void mailbox_npu_driver(const struct digest *digest)
{
	u32 i;

	for (i = 0; i < sizeof(digest->bytes); i++)
		box[FLEX_AT_NPU_DRIVER + i] = digest->bytes[i];
}

void mailbox_fault(void)
{
	write_long(FLEX_AT_FAULTS, ++faults);
}
