// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reaching a physical address.
 *
 *   direct  through the kernel's direct map of RAM
 *   table   through a page-table entry of our own making, as ordinary memory
 *   device  the same, as device memory: past every cache
 *   code    the same as table, executable
 *
 * `peek WAY ADDRESS`: "fault" 0 and "value", or -14 when the access faulted. `poke WAY ADDRESS VALUE`.
 * `execute WAY ADDRESS`: jumps there, where a return instruction should be; "fault" -14 when that
 * killed the thread.
 */
#include <linux/mm.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/tlbflush.h>

#include "flexattack.h"

struct window {
	void *mapped;
	pte_t *entry, before;
	u64 *at;
};

static u64 *table_at(u64 entry)
{
	return __va(entry & GENMASK_ULL(47, PAGE_SHIFT));
}

/* The entry that maps a kernel address, found as the hardware finds it. */
static pte_t *entry_of(unsigned long address)
{
	u64 *table = table_at(read_sysreg(ttbr1_el1));

	for (int shift = PAGE_SHIFT + 27; shift > PAGE_SHIFT; shift -= 9)
		table = table_at(table[(address >> shift) & 511]);
	return (pte_t *)&table[(address >> PAGE_SHIFT) & 511];
}

static void redirect(struct window *window, pte_t entry)
{
	unsigned long address = (unsigned long)window->mapped;

	WRITE_ONCE(*window->entry, entry);
	dsb(ishst);
	flush_tlb_kernel_range(address, address + PAGE_SIZE);
	isb();
}

static int open_window(struct window *window, const char *way, phys_addr_t address)
{
	struct page *page = victim();
	pgprot_t how = PAGE_KERNEL;

	window->mapped = NULL;
	if (!strcmp(way, "direct")) {
		window->at = __va(address);
		return 0;
	}
	if (!strcmp(way, "device"))
		how = __pgprot(PROT_DEVICE_nGnRE);
	else if (!strcmp(way, "code"))
		how = PAGE_KERNEL_EXEC;
	else if (strcmp(way, "table"))
		return -EINVAL;
	window->mapped = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!window->mapped)
		return -ENOMEM;
	window->entry = entry_of((unsigned long)window->mapped);
	window->before = READ_ONCE(*window->entry);
	redirect(window, pfn_pte(PHYS_PFN(address), how));
	window->at = window->mapped + offset_in_page(address);
	return 0;
}

static void close_window(struct window *window)
{
	if (!window->mapped)
		return;
	redirect(window, window->before);
	vunmap(window->mapped);
}

static int load(const u64 *at, u64 *value)
{
	__get_kernel_nofault(value, at, u64, fault);
	return 0;
fault:
	return -EFAULT;
}

static int store(u64 *at, u64 value)
{
	__put_kernel_nofault(at, &value, u64, fault);
	return 0;
fault:
	return -EFAULT;
}

static void access(struct attack *attack, bool write)
{
	struct window window;
	u64 value = word(attack, 3);

	if (!attack->words[1] || open_window(&window, attack->words[1], word(attack, 2))) {
		attack->error = -EINVAL;
		return;
	}
	tell(attack, "fault", write ? store(window.at, value) : load(window.at, &value));
	tell(attack, "value", value);
	close_window(&window);
}

void peek(struct attack *attack)
{
	access(attack, false);
}

void poke(struct attack *attack)
{
	access(attack, true);
}

static void jump(void *at)
{
	((void (*)(void))at)();
}

void execute(struct attack *attack)
{
	struct window window;

	if (!attack->words[1] || open_window(&window, attack->words[1], word(attack, 2))) {
		attack->error = -EINVAL;
		return;
	}
	tell(attack, "fault", attempt(jump, window.at));
	close_window(&window);
}

/* `find STATE [SKIP]`: a run of pages in that state, after SKIP others: "ipa" and "pages", 0 for none. */
void find(struct attack *attack)
{
	struct arm_smccc_1_2_regs in = { .a0 = FLEX_SMC_BASE + FLEX_CALL_LAYOUT }, out;
	u64 wanted = word(attack, 1), skip = word(attack, 2), at, end, pages = 0;

	arm_smccc_1_2_smc(&in, &out);
	end = out.a1 + out.a2;
	for (at = out.a1; at < end; at += pages * PAGE_SIZE) {
		in.a0 = FLEX_SMC_BASE + FLEX_CALL_STATE;
		in.a1 = at;
		arm_smccc_1_2_smc(&in, &out);
		if (out.a0)
			break;
		pages = out.a2;
		if (out.a1 == wanted && !skip--)
			break;
	}
	tell(attack, "ipa", at < end && !out.a0 ? at : 0);
	tell(attack, "pages", at < end && !out.a0 ? pages : 0);
}
