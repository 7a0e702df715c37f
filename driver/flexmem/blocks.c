// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Blocks of pages that are to be handed over: as large as the buddy allocator has them at hand, or, for
 * baselines, one run of the CMA area. Their LRU links are ours to use, and their private word holds the order.
 */
#include <linux/list_sort.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/timekeeping.h>

#include "flexmem.h"

static unsigned int reserve_percent = FLEX_RESERVE_PERCENT_DEFAULT;
module_param(reserve_percent, uint, 0644);
MODULE_PARM_DESC(reserve_percent, "of RAM: what a grant leaves available to this kernel");

bool flex_blocks_allocating(struct flexmem *fm)
{
	return READ_ONCE(fm->allocating) == current;
}

/* An OS decides, and keeps some for itself. */
long flex_blocks_spare(void)
{
	long reserve = totalram_pages() * min(reserve_percent, 100U) / 100;

	/* Free pages of the CMA area are for what can be moved. */
	reserve += global_zone_page_state(NR_FREE_CMA_PAGES);
	return si_mem_available() - reserve;
}

static unsigned long allowed(unsigned long pages)
{
	return min_t(unsigned long, pages, max(flex_blocks_spare(), 0L));
}

/*
 * Large blocks only as they lie there: looking for them by compaction or reclaim, here or in kswapd,
 * costs more than small ones do, and would press on the secure world for its own sake. Single pages
 * may come out of the page cache; they never wake the OOM killer.
 */
static struct page *alloc_block(unsigned int order)
{
	gfp_t flags = GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY;

	return alloc_pages(order ? flags & ~__GFP_RECLAIM : flags, order);
}

static unsigned long alloc_any(unsigned long pages, struct list_head *blocks)
{
	unsigned int order = FLEX_ORDER_MAX;
	unsigned long got = 0;

	pages = allowed(pages);
	while (got < pages) {
		struct page *block = NULL;

		if (1UL << order <= pages - got)
			block = alloc_block(order);
		if (block) {
			set_page_private(block, order);
			list_add_tail(&block->lru, blocks);
			got += 1UL << order;
		} else if (order-- == 0) {
			break;
		}
		if (!order && !(got % FLEX_CALL_PAGES_MAX)) {
			cond_resched();
			pages = got + allowed(pages - got); /* others allocate, too */
		}
	}
	return got;
}

static int by_address(void *unused, const struct list_head *a, const struct list_head *b)
{
	return list_entry(a, struct page, lru) > list_entry(b, struct page, lru);
}

void flex_blocks_free(struct list_head *blocks)
{
	struct page *block, *next;

	list_for_each_entry_safe(block, next, blocks, lru) {
		unsigned int order = page_private(block);

		list_del(&block->lru);
		set_page_private(block, 0);
		__free_pages(block, order);
	}
}

unsigned long flex_blocks_alloc(struct flexmem *fm, unsigned long pages, struct list_head *blocks)
{
	unsigned long got;
	u64 start = ktime_get_ns();

	WRITE_ONCE(fm->allocating, current);
	if (!flex_contiguous_chosen())
		got = alloc_any(pages, blocks);
	else
		got = flex_contiguous_alloc(fm, pages, blocks) ? 0 : pages;
	WRITE_ONCE(fm->allocating, NULL);
	list_sort(NULL, blocks, by_address);
	flex_count(&fm->counters, FLEX_COUNT_ALLOCATE_NS, ktime_get_ns() - start);
	return got;
}
