// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The pages handed over, in the blocks in which they were allocated (blocks.c). They are freed in the same
 * blocks where a block comes back in one piece. The secure world gives back what it likes, so a block that
 * comes back in parts is split then, into pages of their own.
 * A page belongs to us from the allocator until it is freed: it is on no LRU list, cannot be moved
 * or swapped, and nobody but us knows it. Between GRANT and TAKE nobody may touch it.
 *
 * A page that the monitor does not give back is never freed. The module cannot be unloaded then.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "flexmem.h"

int flex_pool_init(struct flexmem *fm, const struct flex_layout *layout)
{
	fm->pool.first = PHYS_PFN(layout->ram_base);
	fm->pool.count = PHYS_PFN(layout->hidden_base) - fm->pool.first;
	fm->pool.held = bitmap_zalloc(fm->pool.count, GFP_KERNEL);
	fm->pool.heads = bitmap_zalloc(fm->pool.count, GFP_KERNEL);
	if (fm->pool.held && fm->pool.heads)
		return 0;
	flex_pool_exit(fm);
	return -ENOMEM;
}

void flex_pool_exit(struct flexmem *fm)
{
	bitmap_free(fm->pool.held);
	bitmap_free(fm->pool.heads);
}

unsigned long flex_pool_held(struct flexmem *fm)
{
	return atomic_long_read(&fm->pool.pages);
}

unsigned long flex_pool_held_of(struct flexmem *fm, unsigned int order)
{
	return atomic_long_read(&fm->pool.of_order[order]);
}

bool flex_pool_holds_any(struct flexmem *fm, unsigned long pfn, unsigned long pages)
{
	unsigned long index = pfn - fm->pool.first, end = min(index + pages, fm->pool.count);

	return find_next_bit(fm->pool.held, end, index) < end;
}

/* ---- keeping account of blocks, by the index of a page in the pool ---- */

static void hold(struct flexmem *fm, struct page *block)
{
	unsigned int order = page_private(block);
	unsigned long index = page_to_pfn(block) - fm->pool.first, pages = 1UL << order;

	bitmap_set(fm->pool.held, index, pages);
	__set_bit(index, fm->pool.heads);
	atomic_long_add(pages, &fm->pool.of_order[order]);
	/* While anything is handed over, this module stays: its code has to get it back. */
	if (atomic_long_add_return(pages, &fm->pool.pages) == pages)
		__module_get(THIS_MODULE);
}

/* Where the block of a held page begins. Blocks lie at multiples of their size. */
static unsigned long head_of(struct flexmem *fm, unsigned long index)
{
	unsigned long pfn = fm->pool.first + index;
	unsigned int order = 0;

	while (!test_bit(ALIGN_DOWN(pfn, 1UL << order) - fm->pool.first, fm->pool.heads))
		order++;
	return ALIGN_DOWN(pfn, 1UL << order) - fm->pool.first;
}

static unsigned int order_at(struct flexmem *fm, unsigned long head)
{
	return page_private(pfn_to_page(fm->pool.first + head));
}

/* Makes each page of a block a block, since some of them go and others stay. */
static void split(struct flexmem *fm, unsigned long head)
{
	struct page *page = pfn_to_page(fm->pool.first + head);
	unsigned int order = page_private(page);

	split_page(page, order);
	bitmap_set(fm->pool.heads, head, 1UL << order);
	for (unsigned long i = 0; i < 1UL << order; i++)
		set_page_private(page + i, 0);
	atomic_long_sub(1UL << order, &fm->pool.of_order[order]);
	atomic_long_add(1UL << order, &fm->pool.of_order[0]);
}

static void let_go(struct flexmem *fm, unsigned long head)
{
	struct page *block = pfn_to_page(fm->pool.first + head);
	unsigned int order = page_private(block);

	__clear_bit(head, fm->pool.heads);
	atomic_long_sub(1UL << order, &fm->pool.of_order[order]);
	set_page_private(block, 0);
	__free_pages(block, order);
}

/* Frees a range of held pages that came back, in the largest pieces that it has. Returns how many. */
static unsigned long let_all_go(struct flexmem *fm, unsigned long index, unsigned long pages)
{
	unsigned long at = index, end = index + pages;

	bitmap_clear(fm->pool.held, index, pages);
	while (at < end) {
		unsigned long head = head_of(fm, at), size = 1UL << order_at(fm, head);

		if (head < at || head + size > end) {
			split(fm, head);
			size = 1;
		}
		let_go(fm, at);
		at += size;
	}
	if (atomic_long_sub_return(pages, &fm->pool.pages) == 0)
		module_put(THIS_MODULE);
	return pages;
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

static bool grant_run(struct flexmem *fm, struct list_head *run, unsigned long pages)
{
	struct page *block, *next;
	phys_addr_t ipa = page_to_phys(list_first_entry(run, struct page, lru));

	if (flex_call_patiently(fm, FLEX_CALL_GRANT, ipa, pages) != FLEX_STATUS_OK)
		return false;
	list_for_each_entry_safe(block, next, run, lru) {
		list_del(&block->lru);
		hold(fm, block);
	}
	return true;
}

unsigned long flex_pool_grant_blocks(struct flexmem *fm, struct list_head *blocks)
{
	LIST_HEAD(run);
	unsigned long granted = 0;
	u64 start = ktime_get_ns();

	while (!list_empty(blocks)) {
		unsigned long size = cut_run(blocks, &run);

		if (!grant_run(fm, &run, size))
			break;
		granted += size;
		cond_resched();
	}
	list_splice(&run, blocks);
	flex_count(&fm->counters, FLEX_COUNT_GRANT_NS, ktime_get_ns() - start);
	flex_count(&fm->counters, FLEX_COUNT_GRANTED, granted);
	return granted;
}

unsigned long flex_pool_grant(struct flexmem *fm, unsigned long pages, unsigned long minimum)
{
	LIST_HEAD(blocks);
	unsigned long granted = 0;

	if (!try_module_get(THIS_MODULE))
		return 0; /* it is being unloaded */
	if (flex_blocks_alloc(fm, pages, &blocks) >= minimum)
		granted = flex_pool_grant_blocks(fm, &blocks);
	flex_blocks_free(&blocks);
	module_put(THIS_MODULE);
	return granted;
}

/* ---- getting back ---- */

typedef unsigned long step_fn(struct flexmem *fm, unsigned long index, unsigned long pages);

/* Calls `step` for every run of held pages from `index` to `end`, a call's worth at a time. */
static unsigned long for_each_run(struct flexmem *fm, unsigned long index, unsigned long end, step_fn *step)
{
	unsigned long came = 0, stop;

	while ((index = find_next_bit(fm->pool.held, end, index)) < end) {
		stop = find_next_zero_bit(fm->pool.held, min(end, index + FLEX_CALL_PAGES_MAX), index);
		came += step(fm, index, stop - index);
		index = stop;
	}
	return came;
}

/* Gets the held pages of one call back by `call`. Returns how many came: all of them or none. */
static unsigned long get_back(struct flexmem *fm, enum flex_call call, unsigned long index, unsigned long pages)
{
	unsigned long pfn = fm->pool.first + index, came;
	u64 start = ktime_get_ns(), taken;
	int status = flex_call(fm, call, PFN_PHYS(pfn), pages, 0, NULL);

	taken = ktime_get_ns();
	flex_count(&fm->counters, FLEX_COUNT_TAKE_NS, taken - start);
	if (status != FLEX_STATUS_OK)
		return 0;
	came = for_each_run(fm, index, index + pages, let_all_go);
	flex_count(&fm->counters, FLEX_COUNT_FREE_NS, ktime_get_ns() - taken);
	flex_count(&fm->counters, call == FLEX_CALL_TAKE ? FLEX_COUNT_TAKEN : FLEX_COUNT_RETURNED, came);
	flex_ondemand_touch(fm);
	return came;
}

/* Calls `step` for every run of held pages of a range of addresses. */
static unsigned long for_each_held(struct flexmem *fm, phys_addr_t ipa, unsigned long pages, step_fn *step)
{
	unsigned long index = PHYS_PFN(ipa) - fm->pool.first;

	if (!PAGE_ALIGNED(ipa) || index >= fm->pool.count)
		return 0;
	return for_each_run(fm, index, index + min(pages, fm->pool.count - index), step);
}

static unsigned long take_step(struct flexmem *fm, unsigned long index, unsigned long pages)
{
	return get_back(fm, FLEX_CALL_TAKE, index, pages);
}

static unsigned long return_step(struct flexmem *fm, unsigned long index, unsigned long pages)
{
	return get_back(fm, FLEX_CALL_RETURN, index, pages);
}

/* Asks for the state of each part of a run, and gets it back accordingly. */
static unsigned long recover_step(struct flexmem *fm, unsigned long index, unsigned long pages)
{
	unsigned long came = 0, end = index + pages;

	while (index < end) {
		struct flex_results state;
		unsigned long size;

		if (flex_call(fm, FLEX_CALL_STATE, PFN_PHYS(fm->pool.first + index), 0, 0, &state))
			break;
		size = clamp_t(u64, state.x[1], 1, end - index);
		if (state.x[0] == FLEX_STATE_RECALLING)
			came += take_step(fm, index, size);
		else if (state.x[0] == FLEX_STATE_GRANTED)
			came += return_step(fm, index, size);
		index += size;
		cond_resched();
	}
	return came;
}

unsigned long flex_pool_take(struct flexmem *fm, phys_addr_t ipa, unsigned long pages)
{
	return for_each_held(fm, ipa, pages, take_step);
}

/*
 * One call for all that is held of the range: the monitor passes over pages that are ours. It refuses when
 * some were committed after all; then the others come by themselves.
 */
unsigned long flex_pool_return(struct flexmem *fm, phys_addr_t ipa, unsigned long pages)
{
	unsigned long index = PHYS_PFN(ipa) - fm->pool.first, end, came;

	if (!PAGE_ALIGNED(ipa) || index >= fm->pool.count)
		return 0;
	end = index + min(pages, fm->pool.count - index);
	index = find_next_bit(fm->pool.held, end, index);
	if (index >= end)
		return 0;
	came = return_step(fm, index, find_last_bit(fm->pool.held, end) + 1 - index);
	return came ? came : for_each_run(fm, index, end, recover_step);
}

unsigned long flex_pool_recover(struct flexmem *fm)
{
	return for_each_held(fm, PFN_PHYS(fm->pool.first), fm->pool.count, recover_step);
}
