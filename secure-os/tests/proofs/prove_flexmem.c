/*
 * Which pages of RAM S-EL0 reaches, and what the monitor is asked for. From any state of the invariant: what is mapped for
 * chunks, given to the heap, or the ring's is marked as used, once. EL3 answers anything, whenever it is asked, but that it
 * counts each switch; page states and the mailbox's answers are anything. One page of RAM is watched, which may be any.
 *
 * Proved is the rule: a page is mapped or given only if it was used for nothing, and its state was read as SECURE between
 * two answers of EL3 that protection is on, with the same count, and after the mailbox said that no RECALL and no GONE is
 * under way. What may be recalled is used for nothing, and no CPU remembers it. Why that suffices stands in core/flexmem.h; that
 * the mailbox says so only then is proved in prove_mailbox.c for the counters, and argued there for the monitor's side.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#define PAGES 6 /* of RAM */
#define PLACES 3 /* pages of addresses for chunks */

#include "core/flexmem.c"

static u64 watched; /* its number */

/* What the application has: pages behind addresses, and the heap's; what a CPU remembers of the watched one. */
static u64 places[PLACES];
static u64 heap; /* bits */
static bool ring_mapped;
static bool remembered;
static bool scrubbed;

/* What was seen, in this order, since EL3 said that protection is on and counted `count`. */
static struct protection last;
static u64 on_count; /* when the states were read */
static bool asked_after; /* EL3, since they were */
static bool settled; /* after that answer */
static bool seen_secure; /* of the watched page, after that */
static u64 resets;
static struct message put;
static u32 puts;

static u64 bit_of(u64 page)
{
	return 1ULL << (page - ram_first);
}

static bool is_mapped(void)
{
	u32 i;
	bool found = false;

	for (i = 0; i < PLACES; i++)
		found = found || places[i] == watched;
	return found;
}

static bool in_heap(void)
{
	return heap & bit_of(watched);
}

static bool in_ring(void)
{
	return ring_pages > 0 && watched >= ring_page && watched - ring_page < ring_pages;
}

static bool names_watched(const struct message *command)
{
	return command->a % PAGE == 0 && watched >= command->a / PAGE && watched - command->a / PAGE < command->b;
}

/* ---- what the secure OS asks for ----------------------------------------------------------------------------- */

struct protection arch_protection(void)
{
	struct protection now = { nondet_u64() % 3, nondet_u64() };

	assume(now.switches >= last.switches && (now.switches != last.switches || now.state == last.state));
	if (now.state != FLEX_SECURE_ON || now.switches != last.switches)
		settled = seen_secure = false;
	last = now;
	asked_after = true;
	return now;
}

u8 arch_page_state(u64 page)
{
	u8 state = nondet_u8();

	prove(page < PAGES, "only states of pages that there are are read");
	asked_after = false;
	if (page + ram_first == watched && last.state == FLEX_SECURE_ON && settled) {
		seen_secure = state == FLEX_STATE_SECURE;
		on_count = last.switches;
	}
	return state;
}

void mailbox_reset(void)
{
	resets++;
}

bool mailbox_settled(void)
{
	settled = nondet_bool() && last.state == FLEX_SECURE_ON;
	return settled;
}

bool mailbox_put(struct message command)
{
	bool room = nondet_bool();

	prove(last.state == FLEX_SECURE_ON && last.switches == switches, "commands are put while protection is on");
	if (room) {
		put = command;
		puts++;
	}
	return room;
}

bool mailbox_take(struct message *event)
{
	prove(last.state == FLEX_SECURE_ON && last.switches == switches, "events are read while protection is on");
	*event = (struct message){ nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	on_count = last.switches;
	asked_after = false;
	return nondet_bool();
}

void arch_barrier(void)
{
}

void arch_doorbell(void)
{
}

void arch_flush(void)
{
	remembered = is_mapped() || (in_ring() && ring_mapped);
}

void arch_scrub(u64 pa)
{
	if (pa == watched * PAGE)
		scrubbed = true;
}

bool areas_are(u64 va, u64 bytes, enum area_kind kind)
{
	return kind == AREA_CHUNKS && va >= CHUNKS_FIRST && va < CHUNKS_FIRST + PLACES * PAGE &&
	       bytes <= CHUNKS_FIRST + PLACES * PAGE - va;
}

u64 areas_room(u64 from, u64 to, u64 bytes)
{
	(void)from;
	(void)to;
	(void)bytes;
	return nondet_bool() ? CHUNKS_FIRST : 0;
}

int areas_add(u64 va, u64 bytes, enum area_kind kind, enum use use)
{
	prove(kind == AREA_CHUNKS || (kind == AREA_RING && va == RING_AT && bytes <= RING_PAGES_MAX * PAGE), "the ring has its place");
	prove(use == USE_WRITE, "neither is ever run");
	return nondet_bool() ? 0 : ERROR_NOMEM;
}

u64 pages_left(enum purpose purpose)
{
	(void)purpose;
	return nondet_u32();
}

u64 tables_needed(u64 pages)
{
	return pages + 4;
}

static bool is_place(u64 va)
{
	return va >= CHUNKS_FIRST && va < CHUNKS_FIRST + PLACES * PAGE && va % PAGE == 0;
}

u64 tables_page(u64 va)
{
	prove(is_place(va), "only addresses for chunks are looked up");
	return places[(va - CHUNKS_FIRST) / PAGE] * PAGE;
}

void tables_map(u64 va, u64 pa, enum use use)
{
	prove(use == USE_WRITE, "chunks and ring are never run");
	prove(pa % PAGE == 0 && pa / PAGE >= ram_first && pa / PAGE < ram_end, "of RAM, and of nothing else, pages are mapped");
	if (va >= RING_AT) {
		prove(va - RING_AT == pa - ring_page * PAGE, "the ring's pages are mapped in their order");
		ring_mapped = true;
		remembered = remembered || pa / PAGE == watched;
		return;
	}
	prove(is_place(va) && places[(va - CHUNKS_FIRST) / PAGE] == 0, "a page is mapped where none is");
	places[(va - CHUNKS_FIRST) / PAGE] = pa / PAGE;
	remembered = remembered || pa / PAGE == watched;
}

u64 tables_unmap(u64 va)
{
	u64 page;

	prove(is_place(va), "only addresses for chunks are unmapped");
	page = places[(va - CHUNKS_FIRST) / PAGE];
	places[(va - CHUNKS_FIRST) / PAGE] = 0;
	return page * PAGE;
}

void pages_give(u64 pa)
{
	prove(pa / PAGE >= ram_first && pa / PAGE < ram_end && !(heap & bit_of(pa / PAGE)), "what is given is not the heap's yet");
	heap |= bit_of(pa / PAGE);
}

u64 pages_withdraw(u64 most, u64 *first)
{
	u64 page = ram_first + nondet_u8() % PAGES, count = nondet_u8() % 3, bits = ((1ULL << count) - 1) << (page - ram_first);

	prove(most <= FLEX_CALL_PAGES_MAX, "no more than a call names");
	if (count == 0 || count > most || (heap & bits) != bits)
		return 0;
	heap &= ~bits;
	*first = page * PAGE;
	return count;
}

/* ---- any state, and what is always true of it ------------------------------------------------------------------- */

static u64 ring_bits(void)
{
	return ring_pages == 0 ? 0 : ((1ULL << ring_pages) - 1) << (ring_page - ram_first);
}

static u64 place_bits(void)
{
	u64 bits = 0;
	u32 i;

	for (i = 0; i < PLACES; i++)
		bits |= places[i] ? bit_of(places[i]) : 0;
	return bits;
}

static bool is_used_now(void)
{
	return is_mapped() || in_heap();
}

static bool holds(void)
{
	u32 i, other;
	bool hold = used[0] == (place_bits() | heap | ring_bits()) && (place_bits() & heap) == 0 &&
		    ((place_bits() | heap) & ring_bits()) == 0 &&
		    used_pages == (u64)__builtin_popcountll(place_bits() | heap);

	for (i = 0; i < PLACES; i++)
		for (other = 0; other < PLACES; other++)
			hold = hold && (i == other || places[i] == 0 || places[i] != places[other]);
	/* A CPU may remember what it reaches, and nothing else while the lock is free. */
	return hold && (!remembered || is_mapped() || (in_ring() && ring_mapped));
}

static void any(void)
{
	u32 i;

	ram_base = 0x40000000ULL;
	ram_first = ram_base / PAGE;
	ram_end = ram_first + PAGES;
	watched = ram_first + nondet_u8() % PAGES;
	for (i = 0; i < PLACES; i++)
		places[i] = nondet_bool() ? ram_first + nondet_u8() % PAGES : 0;
	heap = nondet_u64() & ((1ULL << PAGES) - 1);
	ring_page = ram_first + nondet_u8() % PAGES;
	ring_pages = nondet_u8() % (FLEX_CALL_PAGES_MAX + 1);
	assume(ring_page + ring_pages <= ram_end);
	ring_mapped = ring_pages > 0;
	used[0] = nondet_u64();
	used_pages = nondet_u64();
	switches = nondet_u64();
	last = (struct protection){ nondet_u64() % 3, nondet_u64() };
	asked = nondet_bool();
	remembered = nondet_bool();
	assume(holds());
}

/* ---- the calls ---------------------------------------------------------------------------------------------------- */

static void prove_map(bool give)
{
	u64 va = nondet_u64(), page = nondet_u64(), count = nondet_u64();
	bool was = is_used_now() || in_ring();
	s64 result = give ? flexmem_give(page, count) : flexmem_map(va, page, count);
	bool named = page <= watched && watched - page < count;

	if (result == 0) {
		prove(!named || !was, "what is mapped or given was used for nothing");
		prove(!named || (seen_secure && settled), "its state was read as SECURE, with no RECALL under way");
		prove(asked_after && last.state == FLEX_SECURE_ON && (!named || last.switches == on_count), "with protection on before and after, not switched");
		prove(!named || (give ? in_heap() : is_mapped()), "and is used then");
		possible(named && count == 2);
	} else {
		prove((is_used_now() || in_ring()) == was, "what is refused changes nothing");
		possible(result == ERROR_AGAIN);
		possible(result == ERROR_PERM);
	}
}

static void prove_unmap(void)
{
	u64 va = nondet_u64(), count = nondet_u64();
	bool was = is_mapped();
	s64 result = flexmem_unmap(va, count);

	prove(!is_mapped() || was, "nothing is mapped by it");
	prove(result != 0 || remembered == is_mapped() || in_ring(), "no CPU remembers what was unmapped");
	possible(was && !is_mapped());
}

static void prove_command(void)
{
	struct message command = { nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	bool used_by_us = is_used_now() || in_ring() || remembered;
	s64 result = flexmem_command(command);

	prove((result == 0) == (puts == 1), "a command that is accepted is put, once");
	if (result != 0)
		return;
	prove(put.kind == command.kind && put.a == command.a && put.b == command.b && put.c == command.c, "as it is");
	prove(command.kind < FLEX_COMMAND_NPU_WANT, "the NPU is not asked for");
	prove(command.kind != FLEX_COMMAND_RECALL || !names_watched(&command) || !used_by_us,
	      "only what no CPU reaches or remembers may be recalled");
	prove(command.kind != FLEX_COMMAND_GONE || used_pages == 0, "who leaves uses nothing");
	possible(command.kind == FLEX_COMMAND_RECALL && names_watched(&command));
	possible(command.kind == FLEX_COMMAND_GONE);
}

static void prove_event(void)
{
	struct message event;

	if (flexmem_event(&event) == 1) {
		prove(asked_after && last.state == FLEX_SECURE_ON && last.switches == on_count, "an event was read while protection was on");
		possible(true);
	}
}

static void prove_ring(void)
{
	u64 page = nondet_u64(), pages = nondet_u64(), va, bytes;
	bool had = ring_pages > 0, was = is_used_now();
	s64 result = flexmem_ring(page, pages, &va, &bytes);

	prove(va == RING_AT && bytes == ring_pages * PAGE && bytes <= RING_PAGES_MAX * PAGE, "the ring is told as it is mapped");
	prove(is_used_now() == was, "no page that is used becomes the OS's");
	prove(result != 0 || had || (ring_page == page && ring_pages == pages), "the first ring that is named is the ring");
	possible(result == 0 && !had && in_ring());
}

static void prove_take(void)
{
	u64 page = 0;
	s64 count = flexmem_take(nondet_u64(), &page);
	bool named = page <= watched && watched - page < (u64)count;

	prove(!named || !in_heap(), "what leaves the heap is not used any more");
	possible(count == 2 && named);
}

/* S-EL0 reaches nothing any more; what it used is overwritten before the OS may have it. */
static void prove_end(void)
{
	bool was = is_used_now();
	u32 i;

	for (i = 0; i < PLACES; i++)
		places[i] = 0;
	heap = 0;
	remembered = ring_mapped = false;
	flexmem_end();
	prove(scrubbed == was, "what was used is overwritten, and nothing else");
	prove(puts <= asked && (puts == 0 || put.kind == FLEX_COMMAND_GONE), "whoever asked for something leaves");
	possible(was);
}

int main(void)
{
	any();
	switch (CASE) {
	case 0:
		prove_map(false);
		break;
	case 1:
		prove_map(true);
		break;
	case 2:
		prove_unmap();
		break;
	case 3:
		prove_command();
		break;
	case 4:
		prove_event();
		break;
	case 5:
		prove_ring();
		break;
	case 6:
		prove_take();
		break;
	default:
		prove_end();
		return 0;
	}
	prove(holds(), "pages in use are marked and counted, once each");
	return 0;
}
