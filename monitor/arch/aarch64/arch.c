/* What the portable core needs, at EL2 of an Armv8 machine. */

#include "arch/arch.h"

#include "arch/aarch64/smmu.h"
#include "arch/aarch64/system.h"

#define LINE 64 /* bytes that one DC ZVA clears on every core we know; checked below */

static u32 next_ticket;
static u32 serving;

void arch_lock(void)
{
	u32 ticket = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_RELAXED);

	while (__atomic_load_n(&serving, __ATOMIC_ACQUIRE) != ticket)
		__asm__ volatile("yield");
}

void arch_unlock(void)
{
	__atomic_store_n(&serving, serving + 1, __ATOMIC_RELEASE);
}

void *arch_at(u64 pa)
{
	return (void *)pa;
}

void arch_flush_stage2(void)
{
	__asm__ volatile("dsb ishst\n\ttlbi vmalls12e1is\n\tdsb ish\n\tisb" ::: "memory");
}

void arch_flush_devices(void)
{
	smmu_flush();
}

void arch_scrub(u64 pa, u64 pages)
{
	u64 at = pa, end = pa + pages * FLEX_PAGE_BYTES;

	if ((read_register("dczid_el0") & 0x1f) != 4)
		arch_panic("DC ZVA of another size");
	for (; at < end; at += LINE)
		__asm__ volatile("dc zva, %0" ::"r"(at) : "memory");
	for (at = pa; at < end; at += LINE)
		__asm__ volatile("dc cvac, %0" ::"r"(at) : "memory");
	barrier();
}

void arch_barrier(void)
{
	__asm__ volatile("dmb ish" ::: "memory");
}
