// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The ring of messages between the secure world and this kernel's user space: pages of ours, whose place RUN
 * tells. The secure OS maps them once, for as long as it runs. So they are never freed: it would go on to
 * write there. What is in them is the business of the two who talk.
 */
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>

#include "flexmem.h"

int flex_ring_init(struct flexmem *fm)
{
	void *pages = alloc_pages_exact(FLEX_RING_PAGES * PAGE_SIZE, GFP_KERNEL | __GFP_ZERO);

	if (!pages)
		return -ENOMEM;
	fm->ring.page = virt_to_phys(pages) / PAGE_SIZE;
	fm->ring.pages = FLEX_RING_PAGES;
	return 0;
}
