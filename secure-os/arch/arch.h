/*
 * What the portable core needs of the machine. arch/aarch64 has it for real, arch/fake_host for tests.
 */
#ifndef SECURE_OS_ARCH_H
#define SECURE_OS_ARCH_H

#include "core/types.h"

/* What an exception interrupted at S-EL0; the vectors save and restore it. */
struct frame {
	u64 x[31];
	u64 sp;
	u64 pc;
	u64 pstate;
};

/* A thread's registers while no CPU runs it. */
struct context {
	struct frame frame;
	u64 tls;
	u64 fpcr;
	u64 fpsr;
	u64 unused;
	u64 vectors[64] __attribute__((aligned(16)));
};

/* What EL3 says of EL2: an enum flex_secure_state, and how often that was switched. */
struct protection {
	u64 state;
	u64 switches;
};

/* One lock for everything, held from an exception's first look to its last change. */
void arch_lock(void);
void arch_unlock(void);

/* Where the kernel reaches a physical address. Of RAM it reaches one page at a time, until the next one is asked for. */
void *arch_at(u64 pa);

/* Overwrite a page with zeros. */
void arch_scrub(u64 pa);

/* The application's tables were changed: every CPU sees it, and forgets what it knew. */
void arch_flush(void);

/* What the monitor's table says of a page (of `page` from the start of RAM), and its mailbox. */
u8 arch_page_state(u64 page);
volatile u8 *arch_mailbox(void);

/* The registers that the kernel does not use itself. */
void arch_save(struct context *context);
void arch_load(const struct context *context);

/* Nanoseconds since the machine started. */
u64 arch_now(void);

/* Have the OS call POLL, and lend cores again. */
void arch_doorbell(void);

struct protection arch_protection(void);

/* SHA-256 of EL2's image, and whether that is what runs: an enum flex_secure_state. EL3 computes it: a millisecond. */
u64 arch_measure(u8 digest[32]);

/* A letter for the console, which is the normal world's. */
void arch_say(char letter);

/* All that was written before is seen by others, their walks of tables included, before what is written after. */
void arch_barrier(void);

/* Something impossible happened. */
_Noreturn void arch_panic(const char *why);

#endif
