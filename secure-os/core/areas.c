#include "core/areas.h"

#include "arch/arch.h"
#include "core/errors.h"
#include "core/pages.h"

static struct area areas[AREAS_MAX]; /* by address */
static u32 count;

void areas_init(void)
{
	count = 0;
}

/* The first piece that ends behind an address. */
static u32 index_of(u64 va)
{
	u32 i = 0;

	while (i < count && areas[i].end <= va)
		i++;
	return i;
}

const struct area *areas_at(u64 va)
{
	u32 i = index_of(va);

	return i < count && areas[i].start <= va ? &areas[i] : NULL;
}

bool areas_are(u64 va, u64 bytes, enum area_kind kind)
{
	const struct area *area;
	u64 end = va + bytes;

	if (end < va)
		return false;
	for (; va < end; va = area->end) {
		area = areas_at(va);
		if (!area || area->kind != kind)
			return false;
	}
	return true;
}

u64 areas_room(u64 from, u64 to, u64 bytes)
{
	u32 i;

	for (i = index_of(from); i < count && areas[i].start < to; i++) {
		if (areas[i].start > from && areas[i].start - from >= bytes)
			return from;
		from = areas[i].end;
	}
	return from <= to && to - from >= bytes ? from : 0;
}

static void insert(u32 at, struct area area)
{
	u32 i;

	for (i = count++; i > at; i--)
		areas[i] = areas[i - 1];
	areas[at] = area;
}

static void extract(u32 at)
{
	u32 i;

	for (i = at, count--; i < count; i++)
		areas[i] = areas[i + 1];
}

int areas_add(u64 va, u64 bytes, enum area_kind kind, enum use use)
{
	u32 at = index_of(va);

	if (count == AREAS_MAX || bytes == 0 || (at < count && areas[at].start < va + bytes))
		return ERROR_NOMEM;
	insert(at, (struct area){ va, va + bytes, kind, use });
	return 0;
}

/* A piece begins at an address that lies within one. There must be room for one more. */
static void split(u64 va)
{
	u32 at = index_of(va);
	struct area rest;

	if (at == count || areas[at].start >= va)
		return;
	rest = areas[at];
	areas[at].end = rest.start = va;
	insert(at + 1, rest);
}

/* Whether there is room for what it takes to have pieces begin at both addresses. */
static bool can_split(u64 va, u64 end)
{
	const struct area *first = areas_at(va), *last = areas_at(end);

	return count + (first && first->start < va) + (last && last->start < end) <= AREAS_MAX;
}

/* Pieces that are the same and next to each other become one, so that few are needed. */
static void join(void)
{
	u32 i = 0;

	while (i + 1 < count) {
		struct area *this = &areas[i], *next = &areas[i + 1];

		if (this->kind == AREA_PRIVATE && next->kind == AREA_PRIVATE && this->use == next->use && this->end == next->start) {
			this->end = next->end;
			extract(i + 1);
		} else {
			i++;
		}
	}
}

/* Pages that a range lacks. */
static u64 missing(u64 va, u64 end)
{
	u64 pages = 0;

	for (; va < end; va += PAGE)
		pages += tables_page(va) == 0;
	return pages;
}

/* Whether they can be had, with the tables that it takes to map them; those come from the same secure RAM. */
static bool enough(u64 pages, u64 va, u64 end)
{
	u64 tables = tables_needed((end - va) / PAGE);

	return pages == 0 || (tables <= TABLES_KEPT && pages_left(PAGES_TABLES) >= tables &&
			      pages_left(PAGES_PRIVATE) >= pages + tables);
}

int areas_protect(u64 va, u64 bytes, enum use use)
{
	u64 end = va + bytes, at;
	u32 i;

	if (!areas_are(va, bytes, AREA_PRIVATE))
		return ERROR_INVAL;
	if (!can_split(va, end) || (use != USE_NONE && !enough(missing(va, end), va, end)))
		return ERROR_NOMEM;
	split(va);
	split(end);
	for (i = index_of(va); i < count && areas[i].start < end; i++)
		areas[i].use = use;
	for (at = va; at < end; at += PAGE) {
		if (tables_page(at) != 0)
			tables_protect(at, use);
		else if (use != USE_NONE)
			tables_map(at, pages_take(PAGES_PRIVATE), use);
	}
	join();
	arch_flush();
	return 0;
}

int areas_private(u64 va, u64 bytes, enum use use)
{
	int result = areas_add(va, bytes, AREA_PRIVATE, USE_NONE);

	if (result == 0 && use != USE_NONE) {
		result = areas_protect(va, bytes, use);
		if (result != 0)
			extract(index_of(va));
	}
	join();
	return result;
}

int areas_clear(u64 va, u64 bytes)
{
	u64 end = va + bytes, pa;

	if (!areas_are(va, bytes, AREA_PRIVATE))
		return ERROR_INVAL;
	for (; va < end; va += PAGE) {
		pa = tables_page(va);
		if (pa != 0)
			arch_scrub(pa);
	}
	return 0;
}

/* Whether a piece may be freed, from `va` up to `end`. */
static bool may_go(const struct area *area, u64 va, u64 end)
{
	if (area->kind == AREA_PRIVATE)
		return true;
	return area->kind == AREA_CHUNKS && missing(va, end) == (end - va) / PAGE;
}

int areas_free(u64 va, u64 bytes)
{
	u64 end = va + bytes, at, pa;
	u32 i;

	if (end < va)
		return ERROR_INVAL;
	for (i = index_of(va); i < count && areas[i].start < end; i++)
		if (!may_go(&areas[i], areas[i].start > va ? areas[i].start : va, areas[i].end < end ? areas[i].end : end))
			return ERROR_INVAL;
	if (!can_split(va, end))
		return ERROR_NOMEM;
	split(va);
	split(end);
	/* Out of everybody's reach first, and only then another's. */
	for (i = index_of(va); i < count && areas[i].start < end; i++)
		for (at = areas[i].start; at < areas[i].end; at += PAGE)
			if (tables_page(at) != 0)
				tables_protect(at, USE_NONE);
	arch_flush();
	while ((i = index_of(va)) < count && areas[i].start < end) {
		for (at = areas[i].start; at < areas[i].end; at += PAGE) {
			pa = tables_unmap(at);
			if (pa != 0)
				pages_put(pa);
		}
		extract(i);
	}
	return 0;
}
