// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Ways to a physical address, each through page tables that the kernel wrote:
 *
 *   direct  the kernel's direct map of RAM
 *   opened  the same, with its entries altered so that it is executable
 *   table   an entry of our own making, as ordinary memory
 *   device  the same, as device memory: past every cache
 *   code    the same as table, executable
 *   tree    a new tree of tables, below an entry of the root that nobody used; executable
 *   walk    the same, with the page itself as the last table of that tree: the CPU's walk reads it
 */
#include <linux/mm.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/tlbflush.h>

#include "flexattack.h"

enum { TABLE = 3, LEVEL_BITS = 9, LEVEL_ENTRIES = 1 << LEVEL_BITS, LAST_LEVEL = 3 };
static const u64 nothing_runs = 1UL << 59; /* of a table's entry: whatever the entries below say */
static const int root_shift = PAGE_SHIFT + LAST_LEVEL * LEVEL_BITS;

static u64 *table_at(u64 entry)
{
	return __va(entry & GENMASK_ULL(47, PAGE_SHIFT));
}

static u64 *root(void)
{
	return table_at(read_sysreg(ttbr1_el1));
}

static unsigned int index_at(unsigned long address, int level)
{
	return address >> (root_shift - level * LEVEL_BITS) & (LEVEL_ENTRIES - 1);
}

/* The entry of a level (0: of the root) that leads to an address, as the hardware finds it; NULL after a block. */
static u64 *entry_at(unsigned long address, int level)
{
	u64 *entry = level ? entry_at(address, level - 1) : NULL;

	if (level && (!entry || (*entry & TABLE) != TABLE))
		return NULL;
	return &(entry ? table_at(*entry) : root())[index_at(address, level)];
}

static pte_t *entry_of(unsigned long address)
{
	return (pte_t *)entry_at(address, LAST_LEVEL);
}

static void redirect(struct window *window, pte_t entry)
{
	WRITE_ONCE(*window->entry, entry);
	dsb(ishst);
	flush_tlb_kernel_range(window->address, window->address + PAGE_SIZE);
	isb();
}

/* ---- one entry altered ---- */

static int alter(struct window *window, u64 clear, u64 set)
{
	window->entry = entry_of(window->address);
	if (!window->entry)
		return -EOPNOTSUPP;
	window->before = READ_ONCE(*window->entry);
	redirect(window, __pte((pte_val(window->before) & ~clear) | set));
	return 0;
}

static int open_mapped(struct window *window, phys_addr_t address, pgprot_t how)
{
	struct page *page = victim();

	window->mapped = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!window->mapped)
		return -ENOMEM;
	window->address = (unsigned long)window->mapped;
	return alter(window, ~0UL, pte_val(pfn_pte(PHYS_PFN(address), how)));
}

/* The root is read-only in the direct map: it is written through a window of its own. */
static int set_root(unsigned int slot, u64 entry)
{
	struct window window = { NULL };
	int error = open_mapped(&window, __pa(root()), PAGE_KERNEL);

	if (!error) {
		WRITE_ONCE(((u64 *)window.mapped)[slot], entry);
		dsb(ishst);
		isb();
	}
	close_window(&window);
	return error;
}

/* ---- the direct map made executable ---- */

static int set_level(unsigned long address, int level, u64 entry)
{
	if (!level)
		return set_root(index_at(address, level), entry);
	WRITE_ONCE(*entry_at(address, level), entry);
	return 0;
}

static int open_direct(struct window *window)
{
	int error = alter(window, PTE_PXN, 0);

	for (int level = 0; !error && level < LAST_LEVEL; level++) {
		u64 entry = *entry_at(window->address, level);

		if (!(entry & nothing_runs))
			continue;
		error = set_level(window->address, level, entry & ~nothing_runs);
		window->opened |= !error << level;
	}
	dsb(ishst);
	flush_tlb_all();
	isb();
	return error;
}

static void close_direct(struct window *window)
{
	for (int level = 0; level < LAST_LEVEL; level++)
		if (window->opened & 1 << level)
			set_level(window->address, level, *entry_at(window->address, level) | nothing_runs);
	dsb(ishst);
	flush_tlb_all();
	isb();
}

/* ---- a tree ---- */

static void plant(u64 *at, u64 entry)
{
	__put_kernel_nofault(at, &entry, u64, fault);
fault:
	return;
}

static int open_tree(struct window *window, phys_addr_t address, bool walk)
{
	u64 leaf = pte_val(pfn_pte(PHYS_PFN(address), PAGE_KERNEL_EXEC));
	u64 **levels = window->levels;

	for (int i = 0; i < ARRAY_SIZE(window->levels); i++)
		if (!(levels[i] = (u64 *)get_zeroed_page(GFP_KERNEL)))
			return -ENOMEM;
	levels[0][0] = __pa(levels[1]) | TABLE;
	levels[1][0] = (walk ? address & PAGE_MASK : __pa(levels[2])) | TABLE;
	levels[2][0] = leaf;
	if (walk) /* so that there is something for the walk to find, where this can be written */
		plant(__va(address & PAGE_MASK), leaf);
	window->slot = LEVEL_ENTRIES / 2; /* vmalloc's half, of which little is in use */
	while (READ_ONCE(root()[window->slot]))
		window->slot++;
	window->address = ~0UL << (root_shift + LEVEL_BITS) | (unsigned long)window->slot << root_shift;
	return set_root(window->slot, __pa(levels[0]) | TABLE);
}

static void close_tree(struct window *window)
{
	if (window->slot && set_root(window->slot, 0))
		return; /* in use for ever */
	flush_tlb_all();
	for (int i = 0; i < ARRAY_SIZE(window->levels); i++)
		free_page((unsigned long)window->levels[i]);
}

/* ---- all of them ---- */

int open_window(struct window *window, const char *way, phys_addr_t address)
{
	bool direct = !strcmp(way, "direct"), opened = !strcmp(way, "opened"), walk = !strcmp(way, "walk");
	int error = -EINVAL;

	*window = (struct window){ NULL };
	window->address = (unsigned long)__va(address & PAGE_MASK);
	if (direct)
		error = 0;
	else if (opened)
		error = open_direct(window);
	else if (walk || !strcmp(way, "tree"))
		error = open_tree(window, address, walk);
	else if (!strcmp(way, "table"))
		error = open_mapped(window, address, PAGE_KERNEL);
	else if (!strcmp(way, "device"))
		error = open_mapped(window, address, __pgprot(PROT_DEVICE_nGnRE));
	else if (!strcmp(way, "code"))
		error = open_mapped(window, address, PAGE_KERNEL_EXEC);
	window->at = (void *)(window->address + offset_in_page(address));
	if (error)
		close_window(window);
	return error;
}

void close_window(struct window *window)
{
	if (window->opened)
		close_direct(window);
	if (window->entry)
		redirect(window, window->before);
	if (window->mapped)
		vunmap(window->mapped);
	if (window->levels[0])
		close_tree(window);
	*window = (struct window){ NULL };
}
