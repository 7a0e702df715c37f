// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The ring of messages between the secure world and this kernel's user space: memory that the device tree
 * sets aside, whose place RUN tells. The secure OS maps it once, for as long as it runs, and goes on to write
 * there. So it is nobody else's, before this module and after it, and in the same place when it comes again.
 *
 * What is in it is the business of the two who talk, but for a few words: what this kernel wants back. It
 * tells the monitor, too (PRESSURE); but who decides what is given up is not in the secure world here.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/of.h>
#include <linux/of_reserved_mem.h>

#include "flexmem.h"
#include "uapi/ring.h"

struct reserved_mem *flex_area(struct device_node *node, const char *name)
{
	int index = of_property_match_string(node, "memory-region-names", name);
	struct device_node *area = index < 0 ? NULL : of_parse_phandle(node, "memory-region", index);
	struct reserved_mem *memory = area ? of_reserved_mem_lookup(area) : NULL;

	of_node_put(area);
	return memory;
}

int flex_ring_init(struct flexmem *fm, struct device_node *node)
{
	struct reserved_mem *memory = flex_area(node, "ring");

	if (!memory) {
		pr_err("flexmem: the device tree has no ring of messages\n");
		return -ENODEV;
	}
	spin_lock_init(&fm->ring.lock);
	fm->ring.page = PHYS_PFN(memory->base);
	fm->ring.pages = memory->size / PAGE_SIZE;
	fm->ring.demand = phys_to_virt(memory->base) + FLEXMEM_RING_DEMAND;
	return 0;
}

void flex_ring_demand(struct flexmem *fm, unsigned long pages, unsigned int ms)
{
	struct flexmem_ring_demand *demand = fm->ring.demand;
	unsigned long flags;

	spin_lock_irqsave(&fm->ring.lock, flags);
	WRITE_ONCE(demand->pages, pages);
	WRITE_ONCE(demand->deadline_ms, ms);
	smp_store_release(&demand->demands, demand->demands + 1);
	spin_unlock_irqrestore(&fm->ring.lock, flags);
}
