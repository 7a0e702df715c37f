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

/* The NPU reaches what this tree maps from now on (0: nothing). Returns when it reaches nothing else any more. */
void arch_npu_root(u64 level1);

/* The NPU forgets what it knew of its tree. Returns when it has, and its accesses under way ended. */
void arch_npu_flush(void);

/* Ask for a reset of the NPU; whether it was done. */
void arch_npu_reset(void);
bool arch_npu_is_reset(void);

/* Copy what the OS wants to be run in the sandbox, so that it can be. */
void arch_copy_code(u64 to, u64 from, u64 bytes);

#define ARCH_ARGUMENTS 6

/* Why the sandbox stopped. */
enum arch_stop {
	ARCH_RETURNED,
	ARCH_INTERRUPTED, /* arch_sandbox_run goes on with it */
	ARCH_FAULTED, /* it did something that it may not do */
};

/* Have the sandbox begin anew, with these arguments, at the first byte of its code. */
void arch_sandbox_begin(const u64 arguments[ARCH_ARGUMENTS]);

/* Run it until it stops; `result` is what it returned. */
enum arch_stop arch_sandbox_run(u64 *result);

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
