// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The allocator of the baselines. Memory firewalls like a TZASC protect a few contiguous regions, so
 * systems built on one take contiguous memory, from an area where the kernel keeps only what it can
 * move: CMA. Each request is one run there, beside the last where it fits. Whatever lies in it moves.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_reserved_mem.h>

#include "flexmem.h"

bool flex_contiguous;
module_param_named(contiguous, flex_contiguous, bool, 0644);
MODULE_PARM_DESC(contiguous, "allocate contiguous memory from the CMA area, as the baselines do");

static unsigned long first, count; /* of the area: frame numbers */

int flex_contiguous_init(struct device_node *node)
{
	struct device_node *area = of_parse_phandle(node, "memory-region", 0);
	struct reserved_mem *memory = area ? of_reserved_mem_lookup(area) : NULL;

	if (memory) {
		first = PHYS_PFN(memory->base);
		count = PHYS_PFN(memory->size);
	}
	of_node_put(area);
	return flex_contiguous && !count ? -ENODEV : 0;
}

int flex_contiguous_alloc(unsigned long pages, struct list_head *blocks)
{
	/* alloc_contig_range() wants whole page blocks to isolate, and gives exactly what is asked. */
	for (unsigned long at = 0; at + pages <= count; at += pageblock_nr_pages) {
		unsigned long pfn = first + at;

		if (flex_pool_holds_any(pfn, pages))
			continue;
		if (alloc_contig_range(pfn, pfn + pages, MIGRATE_CMA, GFP_KERNEL | __GFP_NOWARN))
			continue;
		for (unsigned long i = 0; i < pages; i++) {
			struct page *page = pfn_to_page(pfn + i);

			set_page_private(page, 0);
			list_add_tail(&page->lru, blocks);
		}
		return 0;
	}
	return -EBUSY;
}
