/*
 * Where code of the OS runs for EL2: at EL0, with tables of its own and without stage 1. EL2's lock is held
 * meanwhile, so protection does not go off under it.
 */
#ifndef AARCH64_SANDBOX_H
#define AARCH64_SANDBOX_H

#include "arch/aarch64/system.h"

/* Why it came back: what the vectors call while it runs. They do not return to it. */
void sandbox_interrupted(struct frame *frame);
void sandbox_faulted(struct frame *frame);

/* ---- sandbox.S ---- */

/* Go where the frame says; returns what sandbox_exit is given. */
u64 sandbox_enter(const struct frame *frame);

/* Give up what an exception interrupted: it was saved in this frame, on the stack of who entered. */
_Noreturn void sandbox_exit(const struct frame *frame, u64 value);

#endif
