/*
 * The application's private memory, in an address space of a few pages and pieces, from any state of the invariant: pieces
 * lie one behind the other; what is mapped lies in private memory, each page at one address; and no CPU reaches what is free.
 *
 * One physical page is watched. A CPU remembers whatever it could reach, until it is flushed.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#include "core/areas.c"

#define FIRST 0x1000000000ULL
#define PLACES 3 /* pages of addresses */
#define ALL 4 /* physical pages of the heap, numbered from 1; behind them, pages that are chunks */
#define CHUNKS 1

struct place {
	u64 page; /* 0: none */
	enum use use;
};

static struct place places[PLACES];
static u64 taken; /* bits of pages that are not free */
static u64 watched;
static bool remembered;
static u64 left;

static bool is_place(u64 va)
{
	return va % PAGE == 0 && va >= FIRST && va < FIRST + PLACES * PAGE;
}

static struct place *place_at(u64 va)
{
	prove(is_place(va), "only pages of the range are looked at");
	return &places[(va - FIRST) / PAGE];
}

static bool is_reached(void)
{
	bool found = false;
	u32 i;

	for (i = 0; i < PLACES; i++)
		found = found || (places[i].page == watched && places[i].use != USE_NONE);
	return found;
}

static u32 how_often(u64 page)
{
	u32 i, found = 0;

	for (i = 0; i < PLACES; i++)
		found += places[i].page == page;
	return found;
}

static void look(void)
{
	remembered = remembered || is_reached();
}

void arch_flush(void)
{
	look();
	remembered = is_reached();
}

void arch_scrub(u64 pa)
{
	prove(pa / PAGE <= ALL && taken >> pa / PAGE & 1, "only what is somebody's is overwritten");
}

u64 tables_page(u64 va)
{
	return place_at(va)->page * PAGE;
}

u64 tables_needed(u64 pages)
{
	(void)pages;
	return 1;
}

void tables_map(u64 va, u64 pa, enum use use)
{
	struct place *place = place_at(va);

	prove(pa != 0, "there is a page when one is mapped");
	prove(place->page == 0, "a page is mapped where none is");
	prove(how_often(pa / PAGE) == 0, "no page is mapped twice");
	prove(use != USE_NONE, "what is not to be used is not mapped");
	*place = (struct place){ pa / PAGE, use };
	look();
}

void tables_protect(u64 va, enum use use)
{
	struct place *place = place_at(va);

	prove(place->page != 0 && place->page <= ALL, "what is protected is private memory that is there");
	look();
	place->use = use;
	look();
}

u64 tables_unmap(u64 va)
{
	struct place *place = place_at(va);
	u64 page = place->page;

	look();
	*place = (struct place){ 0, USE_NONE };
	return page * PAGE;
}

u64 pages_left(enum purpose purpose)
{
	(void)purpose;
	return left;
}

/* As prove_pages.c has it: one that is free; there is one while there are said to be some. */
u64 pages_take(enum purpose purpose)
{
	u64 page = 1 + nondet_u8() % ALL;

	prove(purpose == PAGES_PRIVATE, "memory of the application is not of the kind that tables have");
	if (left == 0)
		return 0;
	left--;
	assume(!(taken >> page & 1));
	taken |= 1ULL << page;
	return page * PAGE;
}

void pages_put(u64 pa)
{
	u64 page = pa / PAGE;

	prove(page >= 1 && page <= ALL && (taken >> page & 1), "only what was taken is given back");
	prove(how_often(page) == 0, "nothing that is mapped becomes free");
	prove(page != watched || !remembered, "nor what a CPU still remembers");
	taken &= ~(1ULL << page);
}

static bool holds(void)
{
	bool hold = count <= AREAS_MAX;
	const struct area *area;
	u64 i;

	for (i = 0; i < AREAS_MAX; i++)
		if (i < count)
			hold = hold && areas[i].start < areas[i].end && areas[i].start % PAGE == 0 && areas[i].end % PAGE == 0 &&
			       areas[i].start >= FIRST && areas[i].end <= FIRST + PLACES * PAGE &&
			       (i == 0 || areas[i - 1].end <= areas[i].start) && areas[i].use != USE_RUN &&
			       (areas[i].kind == AREA_PRIVATE || areas[i].kind == AREA_CHUNKS);
	for (i = 0; i < PLACES; i++) {
		area = areas_at(FIRST + i * PAGE);
		if (places[i].page > ALL)
			hold = hold && area && area->kind == AREA_CHUNKS;
		else if (places[i].page > 0)
			hold = hold && area && area->kind == AREA_PRIVATE && area->use == places[i].use && (taken >> places[i].page & 1);
		hold = hold && (places[i].page == 0 || how_often(places[i].page) == 1);
		/* Memory is there when it is promised. */
		hold = hold && (!area || area->kind != AREA_PRIVATE || area->use == USE_NONE || places[i].page != 0);
	}
	return hold && (!remembered || is_reached());
}

static void any(void)
{
	u32 i;

	count = nondet_u8() % (AREAS_MAX + 1);
	for (i = 0; i < AREAS_MAX; i++)
		areas[i] = (struct area){ FIRST + nondet_u8() % (PLACES + 1) * PAGE, FIRST + nondet_u8() % (PLACES + 1) * PAGE,
					  nondet_bool() ? AREA_PRIVATE : AREA_CHUNKS, nondet_u8() % USE_RUN };
	for (i = 0; i < PLACES; i++)
		places[i] = (struct place){ nondet_u8() % (ALL + CHUNKS + 1), nondet_u8() % USE_RUN };
	taken = nondet_u64();
	watched = 1 + nondet_u8() % ALL;
	remembered = nondet_bool();
	left = nondet_u8() % (ALL + 1);
	assume(left <= (u64)__builtin_popcountll(~taken & ((1ULL << (ALL + 1)) - 2)));
	assume(holds());
}

/* Whole pages of the range that the callers make sure of (prove_calls.c). */
static u64 some_pages(u64 va)
{
	u64 bytes = (1 + nondet_u8() % PLACES) * PAGE;

	assume(bytes <= FIRST + PLACES * PAGE - va);
	return bytes;
}

int main(void)
{
	u64 va = FIRST + nondet_u8() % PLACES * PAGE, bytes = some_pages(va), other = nondet_u8() % PLACES;
	enum use use = nondet_u8() % USE_RUN;
	struct place before;
	bool within;
	int result;

	any();
	before = places[other];
	within = FIRST + other * PAGE >= va && FIRST + other * PAGE < va + bytes;
	switch (CASE) {
	case 0:
		result = areas_private(va, bytes, use);
		prove(result != 0 || !within || before.page == 0, "new memory lies where nothing was");
		possible(result == 0 && use == USE_WRITE && count == 1);
		break;
	case 1:
		result = areas_protect(va, bytes, use);
		prove(result != 0 || !within || before.page == 0 || places[other].page == before.page, "memory stays where it is");
		possible(result == 0 && count == 3);
		break;
	default:
		result = areas_free(va, bytes);
		prove(result != 0 || !within || places[other].page == 0, "what is freed is gone");
		possible(result == 0 && within && before.page == watched);
	}
	if (result != 0 || !within)
		prove(places[other].page == before.page && places[other].use == before.use, "no other page is touched");
	prove(holds(), "each page has one address, and no CPU remembers what is free");
	return 0;
}
