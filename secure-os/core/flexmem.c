#include "core/flexmem.h"

#include "core/areas.h"
#include "core/errors.h"
#include "core/pages.h"
#include "flex_secure.h"

#define BITS 64

static u64 ram_base;
static u64 ram_first; /* page numbers: of RAM's first page, and of the first one that is the monitor's */
static u64 ram_end;
static u64 used[RAM_PAGES_MAX / BITS]; /* a bit for each page that is mapped, given to the heap, or the ring's */
static u64 used_pages; /* of those, the ring's excepted */
static u64 switches;
static u64 ring_page;
static u64 ring_pages;
static bool asked; /* the monitor, for anything */

void flexmem_init(const struct board *board)
{
	u64 i;

	ram_base = board->ram_base;
	ram_first = board->ram_base / PAGE;
	ram_end = ram_first + (board->ram_bytes - FLEX_HIDDEN_BYTES) / PAGE;
	for (i = 0; i < RAM_PAGES_MAX / BITS; i++)
		used[i] = 0;
	used_pages = switches = ring_page = ring_pages = 0;
	asked = false;
	mailbox_reset();
}

static bool is_used(u64 page)
{
	return used[(page - ram_first) / BITS] >> (page - ram_first) % BITS & 1;
}

static void set_used(u64 page, bool is)
{
	u64 bit = 1ULL << (page - ram_first) % BITS;

	if (is)
		used[(page - ram_first) / BITS] |= bit;
	else
		used[(page - ram_first) / BITS] &= ~bit;
}

/* Whether these are pages of RAM that the OS can hand over. */
static bool are_pages(u64 page, u64 count)
{
	return count > 0 && count <= FLEX_CALL_PAGES_MAX && page >= ram_first && page < ram_end && count <= ram_end - page;
}

static bool any_used(u64 page, u64 count)
{
	u64 i;

	for (i = 0; i < count; i++)
		if (is_used(page + i))
			return true;
	return false;
}

/* What protection is; forgets the rings' counters when it was switched since. */
static u64 protection_now(void)
{
	struct protection now = arch_protection();

	if (now.switches != switches) {
		mailbox_reset();
		switches = now.switches;
	}
	return now.state;
}

static bool is_protected(void)
{
	return protection_now() == FLEX_SECURE_ON;
}

/* Whether the monitor says, and protection made it the monitor who says, that all these are SECURE and stay so. */
static s64 are_secure(u64 page, u64 count)
{
	u64 i, before;
	bool secure = true;

	if (!are_pages(page, count))
		return ERROR_INVAL;
	if (any_used(page, count) || !is_protected())
		return ERROR_PERM;
	before = switches;
	if (!mailbox_settled())
		return ERROR_AGAIN;
	for (i = 0; i < count; i++)
		secure = secure && arch_page_state(page - ram_first + i) == FLEX_STATE_SECURE;
	arch_barrier();
	return secure && is_protected() && switches == before ? 0 : ERROR_PERM;
}

s64 flexmem_reserve(u64 bytes)
{
	u64 va;

	if (bytes == 0 || bytes > CHUNKS_END - CHUNKS_FIRST)
		return ERROR_INVAL;
	bytes = (bytes + PAGE - 1) / PAGE * PAGE;
	va = areas_room(CHUNKS_FIRST, CHUNKS_END, bytes);
	if (va == 0 || areas_add(va, bytes, AREA_CHUNKS, USE_WRITE) != 0)
		return ERROR_NOMEM;
	return (s64)va;
}

/* Whether addresses are for chunks. */
static bool are_addresses(u64 va, u64 count)
{
	return va % PAGE == 0 && count > 0 && count <= FLEX_CALL_PAGES_MAX && areas_are(va, count * PAGE, AREA_CHUNKS);
}

s64 flexmem_map(u64 va, u64 page, u64 count)
{
	s64 result;
	u64 i;

	if (!are_addresses(va, count))
		return ERROR_INVAL;
	for (i = 0; i < count; i++)
		if (tables_page(va + i * PAGE) != 0)
			return ERROR_INVAL;
	if (pages_left(PAGES_TABLES) < tables_needed(count))
		return ERROR_NOMEM;
	result = are_secure(page, count);
	if (result != 0)
		return result;
	for (i = 0; i < count; i++) {
		set_used(page + i, true);
		tables_map(va + i * PAGE, (page + i) * PAGE, USE_WRITE);
	}
	used_pages += count;
	arch_barrier(); /* nothing was there that a core could have remembered */
	return 0;
}

s64 flexmem_unmap(u64 va, u64 count)
{
	u64 i, pa;

	if (!are_addresses(va, count))
		return ERROR_INVAL;
	for (i = 0; i < count; i++) {
		pa = tables_unmap(va + i * PAGE);
		if (pa == 0)
			continue;
		set_used(pa / PAGE, false);
		used_pages--;
	}
	arch_flush();
	return 0;
}

/* Whether a command may be put as it is. */
static s64 may_put(const struct message *command)
{
	switch (command->kind) {
	case FLEX_COMMAND_ATTACH:
	case FLEX_COMMAND_WANT:
		return 0;
	case FLEX_COMMAND_GONE:
		return used_pages == 0 ? 0 : ERROR_BUSY;
	case FLEX_COMMAND_COMMIT:
	case FLEX_COMMAND_RECALL:
	case FLEX_COMMAND_REFUSE:
		if (command->a % PAGE != 0 || !are_pages(command->a / PAGE, command->b))
			return ERROR_INVAL;
		return any_used(command->a / PAGE, command->b) ? ERROR_BUSY : 0;
	default:
		return ERROR_INVAL;
	}
}

s64 flexmem_command(struct message command)
{
	s64 result = may_put(&command);

	if (result != 0)
		return result;
	switch (protection_now()) {
	case FLEX_SECURE_ON:
		if (!mailbox_put(command))
			return ERROR_AGAIN;
		asked = true;
		arch_doorbell();
		return 0;
	case FLEX_SECURE_OFF:
		arch_doorbell(); /* the driver's POLL switches it on */
		return ERROR_AGAIN;
	default:
		return ERROR_PERM;
	}
}

s64 flexmem_event(struct message *event)
{
	u64 before;

	if (!is_protected())
		return 0;
	before = switches;
	return mailbox_take(event) && is_protected() && switches == before ? 1 : 0;
}

/* The first ring that the OS names is the ring. It is the OS's memory: whatever it does to it, it cannot make it ours. */
static s64 map_ring(u64 page, u64 pages)
{
	u64 i;

	if (pages > RING_PAGES_MAX || !are_pages(page, pages) || any_used(page, pages))
		return ERROR_NOENT;
	if (pages_left(PAGES_TABLES) < tables_needed(pages) || areas_add(RING_AT, pages * PAGE, AREA_RING, USE_WRITE) != 0)
		return ERROR_NOMEM;
	ring_page = page;
	ring_pages = pages;
	for (i = 0; i < pages; i++) {
		set_used(page + i, true);
		tables_map(RING_AT + i * PAGE, (page + i) * PAGE, USE_WRITE);
	}
	arch_barrier();
	return 0;
}

s64 flexmem_ring(u64 page, u64 pages, u64 *va, u64 *bytes)
{
	s64 result = ring_pages == 0 ? map_ring(page, pages) : 0;

	*va = RING_AT;
	*bytes = ring_pages * PAGE;
	return result;
}

s64 flexmem_give(u64 page, u64 count)
{
	s64 result = are_secure(page, count);
	u64 i;

	if (result != 0)
		return result;
	for (i = 0; i < count; i++) {
		set_used(page + i, true);
		pages_give((page + i) * PAGE);
	}
	used_pages += count;
	return 0;
}

s64 flexmem_take(u64 most, u64 *page)
{
	u64 pa = 0, count = pages_withdraw(most < FLEX_CALL_PAGES_MAX ? most : FLEX_CALL_PAGES_MAX, &pa), i;

	*page = pa / PAGE;
	for (i = 0; i < count; i++)
		set_used(*page + i, false);
	used_pages -= count;
	return (s64)count;
}

void flexmem_end(void)
{
	u64 page;

	for (page = ram_first; page < ram_end; page++)
		if (is_used(page) && (page < ring_page || page >= ring_page + ring_pages))
			arch_scrub(page * PAGE);
	if (asked && is_protected() && mailbox_put((struct message){ FLEX_COMMAND_GONE, 0, 0, 0 }))
		arch_doorbell();
}
