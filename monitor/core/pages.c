#include "core/pages.h"

#include "arch/arch.h"

#define STATES (FLEX_STATE_MONITOR + 1)

struct step {
	enum flex_state from;
	enum flex_state to;
};

/* Indexed by move: each is legal from one state only. */
static const struct step steps[] = {
#define STEP(move, old, new) [FLEX_MOVE_##move] = { FLEX_STATE_##old, FLEX_STATE_##new },
	FLEX_TRANSITIONS(STEP)
#undef STEP
};

static u8 *states;
static u64 total;
static u64 base;
static u64 counts[STATES];

void pages_init(const struct layout *layout)
{
	u64 page, hidden = (layout->hidden_base - layout->ram_base) / FLEX_PAGE_BYTES;

	states = arch_at(layout->states);
	total = layout->pages;
	base = layout->ram_base;
	for (page = 0; page < total; page++)
		states[page] = page < hidden ? FLEX_STATE_NORMAL : FLEX_STATE_MONITOR;
	for (page = 0; page < STATES; page++)
		counts[page] = 0;
	counts[FLEX_STATE_NORMAL] = hidden;
	counts[FLEX_STATE_MONITOR] = total - hidden;
}

bool pages_range(u64 ipa, u64 pages, struct range *range)
{
	u64 end = base + total * FLEX_PAGE_BYTES;

	if (ipa % FLEX_PAGE_BYTES || pages == 0 || pages > FLEX_CALL_PAGES_MAX)
		return false;
	if (ipa < base || ipa >= end || pages > (end - ipa) / FLEX_PAGE_BYTES)
		return false;
	range->first = (ipa - base) / FLEX_PAGE_BYTES;
	range->count = pages;
	return true;
}

/* By pointers of their own: a store of a byte may be one to any variable, and `states` would be read anew. */
bool pages_may(enum flex_move move, struct range range)
{
	const u8 *at = &states[range.first], *end = at + range.count;
	u8 from = steps[move].from;

	for (; at < end; at++)
		if (*at != from)
			return false;
	return true;
}

void pages_move(enum flex_move move, struct range range)
{
	u8 *at = &states[range.first], *end = at + range.count;
	u8 from = steps[move].from, to = steps[move].to;

	for (; at < end; at++) {
		if (*at != from)
			arch_panic("illegal move of a page");
		*at = to;
	}
	counts[from] -= range.count;
	counts[to] += range.count;
}

struct range pages_from(u64 first)
{
	u64 left = total - first;

	return (struct range){ first, left < FLEX_CALL_PAGES_MAX ? left : FLEX_CALL_PAGES_MAX };
}

bool pages_may_sweep(enum flex_move move, struct range range)
{
	const u8 *at = &states[range.first], *end = at + range.count;
	u8 from = steps[move].from, to = steps[move].to;

	if (*at != from || end[-1] != from)
		return false;
	for (; at < end; at++)
		if (*at != from && *at != to)
			return false;
	return true;
}

void pages_sweep(enum flex_move move, struct range range)
{
	u8 *at = &states[range.first], *end = at + range.count;
	u8 from = steps[move].from, to = steps[move].to;
	u64 moved = 0;

	for (; at < end; at++)
		if (*at == from) {
			*at = to;
			moved++;
		}
	counts[from] -= moved;
	counts[to] += moved;
}

enum flex_state pages_state(u64 page)
{
	return states[page];
}

u64 pages_alike(u64 page, u64 most)
{
	u64 count = 1;

	while (count < most && page + count < total && states[page + count] == states[page])
		count++;
	return count;
}

u64 pages_count(enum flex_state state)
{
	return counts[state];
}
