/*
 * The NPU, as the neighbour who does what it is told by whoever reaches its registers, as long as no reset was
 * done since, and with whatever tree its accesses pass.
 *
 * At each moment, too: a CPU of the normal world that can reach the registers gives it work; so does the secure
 * world while it has it; and while it has any work it looks up the watched page, and remembers what it found
 * until its tree is changed or flushed. A reset may be done at any time after it was asked for, or never.
 * Proved is then, besides machine.h's laws:
 *
 *   5. what it reaches on behalf of the OS is NORMAL, what it reaches for the secure world is SECURE;
 *   6. whoever gets its registers finds zeros there;
 *   7. what drives it runs only while it is SECURE, is the copy that was hashed, and finds an empty stack.
 */
#ifndef DEVICE_H
#define DEVICE_H

#include "tests/proofs/parts.h"

/* Addresses that are told apart, and no more. */
#define DEVICES_TREE 0xd000ULL
#define SECURE_TREE 0x5000ULL
#define SANDBOX 0xf0000000ULL

/* All that the invariant allows for the NPU's state, at its worst. */
void device_any(void);

/* What it does at a moment. */
void device_moment(void);

/* The CPUs forget how to reach its registers. */
void device_flush_stage2(void);

/* Whether it is as its state says, now that nobody holds the lock. */
bool device_holds(void);

/* Whether an address is the sandbox's; it was scrubbed. */
bool device_scrubs(u64 pa, u64 pages);

#endif
