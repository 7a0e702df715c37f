#include "tests/proofs/parts.h"

#include "core/tables.c"

/* The leaves of the interface between the core and the MMUs; written down once more on purpose. */
#define STAGE2_LEAF 0x7ffULL /* valid page, write-back memory, read and write, inner shareable, accessed */
#define DEVICE_LEAF 0x743ULL /* valid page, attribute 0, any privilege, inner shareable, accessed */
#define REGISTER_LEAF 0x400000000004c7ULL /* valid page, device memory, read and write, never executed, accessed */

static u64 leaf(u64 page, u64 attributes)
{
	return (small.base + page * FLEX_PAGE_BYTES) | attributes;
}

static u64 stage2_leaf(u64 page)
{
	if (is_register(page) && npu_state() == FLEX_NPU_STATE_NORMAL)
		return leaf(page, REGISTER_LEAF);
	return pages_state(page) == FLEX_STATE_NORMAL ? leaf(page, STAGE2_LEAF) : 0;
}

static u64 device_leaf(u64 page, enum flex_state user)
{
	return pages_state(page) == user ? leaf(page, DEVICE_LEAF) : 0;
}

/*
 * Each leaf leads to its own page. Both trees of the normal world have exactly the pages that are NORMAL, and
 * Stage-2 the NPU's registers while it is NORMAL; the tree of a secure NPU, exactly the pages that are SECURE.
 */
void tables_any(void)
{
	u64 page;

	here = monitor_layout();
	stage2_leaves = small.stage2;
	device_leaves = small.devices;
	secure_leaves = small.secure;
	for (page = 0; page < PAGES; page++) {
		stage2_leaves[page] = stage2_leaf(page);
		device_leaves[page] = device_leaf(page, FLEX_STATE_NORMAL);
		secure_leaves[page] = device_leaf(page, FLEX_STATE_SECURE);
	}
}

bool tables_hold(void)
{
	return here == monitor_layout() && stage2_leaves == small.stage2 && device_leaves == small.devices &&
	       secure_leaves == small.secure && stage2_leaves[small.watched] == stage2_leaf(small.watched) &&
	       device_leaves[small.watched] == device_leaf(small.watched, FLEX_STATE_NORMAL) &&
	       secure_leaves[small.watched] == device_leaf(small.watched, FLEX_STATE_SECURE);
}

void tables_view(struct view *view)
{
	view->stage2 = stage2_leaves[small.watched];
	view->devices = device_leaves[small.watched];
	view->secure = secure_leaves[small.watched];
}
