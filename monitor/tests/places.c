#include "tests/places.h"

#include "arch/fake_host/fake_host.h"
#include "core/monitor.h"

u8 *ram(u64 pa)
{
	return host.ram + (pa - host.ram_base);
}

u32 *field(u32 offset)
{
	return (u32 *)(void *)(ram(monitor_layout()->mailbox) + offset);
}

struct message *slot(u32 ring, u32 count)
{
	u8 *rings = ram(monitor_layout()->mailbox) + FLEX_MAILBOX_HEADER_BYTES;

	return (struct message *)(void *)rings + ring * FLEX_MAILBOX_SLOTS + count % FLEX_MAILBOX_SLOTS;
}

u64 *words_of(u32 page)
{
	return (u64 *)(void *)(host.ram + page * (u64)FLEX_PAGE_BYTES);
}

u64 *registers(void)
{
	return (u64 *)(void *)ram(monitor_layout()->window) + 1;
}

u64 *registers_leaves(void)
{
	u64 page = (monitor_layout()->window - monitor_layout()->ram_base) / FLEX_PAGE_BYTES;

	return (u64 *)(void *)ram(monitor_layout()->stage2.level3) + page;
}

u64 *sandbox_word(u32 number)
{
	u64 *words = (u64 *)(void *)ram(monitor_layout()->code + number / 2 * (u64)FLEX_PAGE_BYTES);

	return number % 2 ? words + WORDS_OF_A_PAGE - 1 : words;
}
