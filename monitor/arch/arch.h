/*
 * What the portable core needs of the machine. arch/aarch64 has it for real, arch/fake_host for tests.
 */
#ifndef MONITOR_ARCH_H
#define MONITOR_ARCH_H

#include "core/types.h"

/* One lock for everything: a call holds it from its first look at a page to its last change. */
void arch_lock(void);
void arch_unlock(void);

/* Where the monitor reaches physical memory. */
void *arch_at(u64 pa);

/* Every CPU forgets what it knew of Stage-2. Returns when all have, and their accesses under way ended. */
void arch_flush_stage2(void);

/* The same for the devices behind the SMMU. */
void arch_flush_devices(void);

/* Overwrite whole pages with zeros, and clean them to memory. */
void arch_scrub(u64 pa, u64 pages);

/* Ring the secure world's doorbell. */
void arch_ring_secure(void);

/* Have EL3 switch protection off on every CPU when this call returns to the OS. A flex_status. */
int arch_relax(void);

/* All that was written before is seen by others before what is written after, and reads too. */
void arch_barrier(void);

/* Something impossible happened: stop the machine. */
_Noreturn void arch_panic(const char *why);

#endif
