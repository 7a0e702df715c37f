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

static bool contiguous;
module_param(contiguous, bool, 0644);
MODULE_PARM_DESC(contiguous, "allocate contiguous memory from the CMA area, as the baselines do");

bool flex_contiguous_chosen(void)
{
	return contiguous;
}

int flex_contiguous_init(struct flexmem *fm, struct device_node *node)
{
	int index = of_property_match_string(node, "memory-region-names", "contiguous");
	struct device_node *area = index < 0 ? NULL : of_parse_phandle(node, "memory-region", index);
	struct reserved_mem *memory = area ? of_reserved_mem_lookup(area) : NULL;

	if (memory) {
		fm->contiguous.first = PHYS_PFN(memory->base);
		fm->contiguous.count = PHYS_PFN(memory->size);
	}
	of_node_put(area);
	return contiguous && !fm->contiguous.count ? -ENODEV : 0;
}

int flex_contiguous_alloc(struct flexmem *fm, unsigned long pages, struct list_head *blocks)
{
	unsigned long count = fm->contiguous.count;

	/* alloc_contig_range() wants whole page blocks to isolate, and gives exactly what is asked. */
	for (unsigned long at = 0; at + pages <= count; at += pageblock_nr_pages) {
		unsigned long pfn = fm->contiguous.first + at;

		if (flex_pool_holds_any(fm, pfn, pages))
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
