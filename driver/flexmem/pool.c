// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The pages handed over. They are allocated in blocks, as large as the buddy allocator has them at
 * hand, and split at once into pages of their own, since the secure world gives back what it likes.
 * A page belongs to us from the allocator until it is freed: it is on no LRU list, cannot be moved
 * or swapped, and nobody but us knows it. Between GRANT and TAKE nobody may touch it.
 *
 * A page that the monitor does not give back is never freed. The module cannot be unloaded then.
 */
#include <linux/bitmap.h>
#include <linux/list_sort.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "flexmem.h"

static unsigned int reserve_percent = 4;
module_param(reserve_percent, uint, 0644);
MODULE_PARM_DESC(reserve_percent, "of RAM: what a grant leaves available to this kernel");

static const unsigned int patience_ms = 1000; /* for the secure world to read its events */

static struct {
	unsigned long first, count; /* pages that could be handed over: by frame number */
	unsigned long *held;	    /* a bit for each: it is handed over */
	atomic_long_t pages;
	atomic_long_t of_order[FLEX_ORDERS];
	struct task_struct *granting;
} pool;

int flex_pool_init(const struct flex_layout *layout)
{
	pool.first = PHYS_PFN(layout->ram_base);
	pool.count = PHYS_PFN(layout->hidden_base) - pool.first;
	pool.held = bitmap_zalloc(pool.count, GFP_KERNEL);
	return pool.held ? 0 : -ENOMEM;
}

void flex_pool_exit(void)
{
	bitmap_free(pool.held);
}

unsigned long flex_pool_held(void)
{
	return atomic_long_read(&pool.pages);
}

unsigned long flex_pool_held_of(unsigned int order)
{
	return atomic_long_read(&pool.of_order[order]);
}

bool flex_pool_is_granting(void)
{
	return READ_ONCE(pool.granting) == current;
}

bool flex_pool_holds_any(unsigned long pfn, unsigned long pages)
{
	unsigned long index = pfn - pool.first, end = min(index + pages, pool.count);

	return find_next_bit(pool.held, end, index) < end;
}

/* ---- keeping account: a page remembers the order of the block it came in ---- */

static void hold(unsigned long pfn, unsigned int order)
{
	struct page *page = pfn_to_page(pfn);

	set_page_private(page, order);
	__set_bit(pfn - pool.first, pool.held);
	atomic_long_inc(&pool.of_order[order]);
	/* While anything is handed over, this module stays: its code has to get it back. */
	if (atomic_long_inc_return(&pool.pages) == 1)
		__module_get(THIS_MODULE);
}

static void let_go(unsigned long pfn)
{
	struct page *page = pfn_to_page(pfn);

	__clear_bit(pfn - pool.first, pool.held);
	atomic_long_dec(&pool.of_order[page_private(page)]);
	set_page_private(page, 0);
	__free_page(page);
	if (atomic_long_dec_return(&pool.pages) == 0)
		module_put(THIS_MODULE);
}

/* ---- allocating ---- */

/* Pages that a grant may take now: an OS decides, and keeps some for itself. */
static unsigned long spare(void)
{
	long reserve = totalram_pages() * min(reserve_percent, 100U) / 100;

	/* Free pages of the CMA area are for what can be moved. */
	reserve += global_zone_page_state(NR_FREE_CMA_PAGES);
	return max(si_mem_available() - reserve, 0L);
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

/*
 * Adds blocks of together at most `pages` pages to `blocks`; returns how many pages. Their LRU links
 * are ours to use, and their private word holds the order.
 */
static unsigned long alloc_blocks(unsigned long pages, struct list_head *blocks)
{
	unsigned int order = FLEX_ORDER_MAX;
	unsigned long got = 0;

	pages = min(pages, spare());
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
			pages = min(pages, got + spare()); /* others allocate, too */
		}
	}
	return got;
}

static int by_address(void *unused, const struct list_head *a, const struct list_head *b)
{
	return list_entry(a, struct page, lru) > list_entry(b, struct page, lru);
}

static void free_blocks(struct list_head *blocks)
{
	struct page *block, *next;

	list_for_each_entry_safe(block, next, blocks, lru) {
		unsigned int order = page_private(block);

		list_del(&block->lru);
		set_page_private(block, 0);
		__free_pages(block, order);
	}
}

/* ---- handing over ---- */

/* Moves the blocks at the head of `blocks` that lie side by side, one call's worth, to `run`. */
static unsigned long cut_run(struct list_head *blocks, struct list_head *run)
{
	unsigned long pages = 0;
	struct page *block, *next, *first = list_first_entry(blocks, struct page, lru);

	list_for_each_entry_safe(block, next, blocks, lru) {
		unsigned long size = 1UL << page_private(block);

		if (block != first + pages || pages + size > FLEX_CALL_PAGES_MAX)
			break;
		list_move_tail(&block->lru, run);
		pages += size;
	}
	return pages;
}

static bool grant_run(struct list_head *run, unsigned long pages)
{
	struct page *block, *next;
	phys_addr_t ipa = page_to_phys(list_first_entry(run, struct page, lru));

	if (flex_call_patiently(FLEX_CALL_GRANT, ipa, pages, patience_ms) != FLEX_STATUS_OK)
		return false;
	list_for_each_entry_safe(block, next, run, lru) {
		unsigned int order = page_private(block);
		unsigned long pfn = page_to_pfn(block);

		list_del(&block->lru);
		split_page(block, order);
		for (unsigned long i = 0; i < 1UL << order; i++)
			hold(pfn + i, order);
	}
	return true;
}

unsigned long flex_pool_grant(unsigned long pages, unsigned long minimum)
{
	LIST_HEAD(blocks);
	LIST_HEAD(run);
	unsigned long got, granted = 0;
	u64 start = ktime_get_ns(), allocated;

	if (!try_module_get(THIS_MODULE))
		return 0; /* it is being unloaded */
	WRITE_ONCE(pool.granting, current);
	if (!flex_contiguous)
		got = alloc_blocks(pages, &blocks);
	else
		got = flex_contiguous_alloc(pages, &blocks) ? 0 : pages;
	WRITE_ONCE(pool.granting, NULL);
	list_sort(NULL, &blocks, by_address);
	allocated = ktime_get_ns();
	flex_count(FLEX_COUNT_ALLOCATE_NS, allocated - start);

	while (got >= minimum && !list_empty(&blocks)) {
		unsigned long size = cut_run(&blocks, &run);

		if (!grant_run(&run, size))
			break;
		granted += size;
		cond_resched();
	}
	list_splice(&run, &blocks);
	free_blocks(&blocks);
	flex_count(FLEX_COUNT_GRANT_NS, ktime_get_ns() - allocated);
	flex_count(FLEX_COUNT_GRANTED, granted);
	module_put(THIS_MODULE);
	return granted;
}

/* ---- getting back ---- */

/* Gets one call's worth of held pages back by `call`. Returns how many came: all of them or none. */
static unsigned long get_back(enum flex_call call, unsigned long index, unsigned long pages)
{
	unsigned long pfn = pool.first + index;
	u64 start = ktime_get_ns(), taken;
	int status = flex_call(call, PFN_PHYS(pfn), pages, 0, NULL);

	taken = ktime_get_ns();
	flex_count(FLEX_COUNT_TAKE_NS, taken - start);
	if (status != FLEX_STATUS_OK)
		return 0;
	for (unsigned long i = 0; i < pages; i++)
		let_go(pfn + i);
	flex_count(FLEX_COUNT_FREE_NS, ktime_get_ns() - taken);
	flex_count(call == FLEX_CALL_TAKE ? FLEX_COUNT_TAKEN : FLEX_COUNT_RETURNED, pages);
	flex_ondemand_touch();
	return pages;
}

/* Calls `step` for every run of held pages of a range, a call's worth at a time. */
static unsigned long for_each_held(phys_addr_t ipa, unsigned long pages,
				   unsigned long (*step)(unsigned long index, unsigned long pages))
{
	unsigned long index = PHYS_PFN(ipa) - pool.first, end, came = 0, stop;

	if (!PAGE_ALIGNED(ipa) || index >= pool.count)
		return 0;
	end = index + min(pages, pool.count - index);
	while ((index = find_next_bit(pool.held, end, index)) < end) {
		stop = find_next_zero_bit(pool.held, min(end, index + FLEX_CALL_PAGES_MAX), index);
		came += step(index, stop - index);
		index = stop;
	}
	return came;
}

static unsigned long take_step(unsigned long index, unsigned long pages)
{
	return get_back(FLEX_CALL_TAKE, index, pages);
}

static unsigned long return_step(unsigned long index, unsigned long pages)
{
	return get_back(FLEX_CALL_RETURN, index, pages);
}

/* Asks for the state of each part of a run, and gets it back accordingly. */
static unsigned long recover_step(unsigned long index, unsigned long pages)
{
	unsigned long came = 0, end = index + pages;

	while (index < end) {
		struct flex_results state;
		unsigned long size;

		if (flex_call(FLEX_CALL_STATE, PFN_PHYS(pool.first + index), 0, 0, &state))
			break;
		size = clamp_t(u64, state.x[1], 1, end - index);
		if (state.x[0] == FLEX_STATE_RECALLING)
			came += take_step(index, size);
		else if (state.x[0] == FLEX_STATE_GRANTED)
			came += return_step(index, size);
		index += size;
		cond_resched();
	}
	return came;
}

unsigned long flex_pool_take(phys_addr_t ipa, unsigned long pages)
{
	return for_each_held(ipa, pages, take_step);
}

unsigned long flex_pool_return(phys_addr_t ipa, unsigned long pages)
{
	return for_each_held(ipa, pages, return_step);
}

unsigned long flex_pool_recover(void)
{
	return for_each_held(PFN_PHYS(pool.first), pool.count, recover_step);
}
