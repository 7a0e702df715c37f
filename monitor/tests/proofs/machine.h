/*
 * A machine for CBMC: memory, and others who are as nasty as the laws of physics allow.
 *
 * When the monitor takes the lock it finds the small machine in any state that the invariant allows: that is
 * all that it may rely on, since others held the lock before. At each moment at which others can notice what
 * it does (it takes or gives the lock, flushes, scrubs, orders its writes, has protection switched off), all
 * CPUs and devices of the normal world look up the watched page, remember what they found until they are
 * flushed, and the secure world writes a secret into it if it is SECURE. At each of these moments is proved:
 *
 *   1. whoever remembers a way to a page, remembers it of a page that is NORMAL;
 *   2. such a page, and one that is GRANTED, holds no secret: it was never SECURE, or scrubbed since;
 *   3. a leaf leads to its own page, or nowhere;
 *   4. no event was published before the flushes of its call.
 *
 * When it gives the lock back, the invariant must hold again.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include "tests/proofs/parts.h"

struct machine {
	bool held; /* the lock */
	u32 rings; /* of the secure world's bell */
	u32 relaxed; /* how often EL3 was asked to switch protection off, and agreed */
	bool scrubbed; /* the watched page, in this step */
	u32 driven; /* how often the sandbox ran */
	struct view before; /* when the lock was taken */
	struct view after; /* when it was given back */
};

extern struct machine machine;

/* Others notice what was done so far. */
void machine_moment(void);

/* Whether steps for the secure world may bring a page, or the NPU, from one state to the other. */
bool machine_may_step(u8 from, u8 to);
bool machine_may_pass(enum flex_npu_state from, enum flex_npu_state to);

/* Whether the watched page holds something that was secret and was not overwritten since. */
bool machine_has_secret(void);

/* Whether nothing changed while the lock was held. */
bool machine_kept(void);

#endif
