#include "tests/proofs/parts.h"

#include "core/tables.c"

/* The leaves of the interface between the core and the MMUs; written down once more on purpose. */
#define STAGE2_LEAF 0x7ffULL /* valid page, write-back memory, read and write, inner shareable, accessed */
#define DEVICE_LEAF 0x743ULL /* valid page, attribute 0, any privilege, inner shareable, accessed */

static u64 leaf_of(u64 page, u64 attributes)
{
	return pages_state(page) == FLEX_STATE_NORMAL ? (small.base + page * FLEX_PAGE_BYTES) | attributes : 0;
}

/* A page is in both tables, at its own address, or in neither; it is in them exactly while it is NORMAL. */
void tables_any(void)
{
	u64 page;

	here = monitor_layout();
	stage2_leaves = small.stage2;
	device_leaves = small.devices;
	for (page = 0; page < PAGES; page++) {
		stage2_leaves[page] = leaf_of(page, STAGE2_LEAF);
		device_leaves[page] = leaf_of(page, DEVICE_LEAF);
	}
}

bool tables_hold(void)
{
	return here == monitor_layout() && stage2_leaves == small.stage2 && device_leaves == small.devices &&
	       stage2_leaves[small.watched] == leaf_of(small.watched, STAGE2_LEAF) &&
	       device_leaves[small.watched] == leaf_of(small.watched, DEVICE_LEAF);
}

void tables_view(struct view *view)
{
	view->stage2 = stage2_leaves[small.watched];
	view->devices = device_leaves[small.watched];
}
