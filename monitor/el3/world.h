/*
 * The two worlds of a CPU: the OS lends it by RUN, and has it back when one of its interrupts is pending or the secure
 * OS yields. secure_os.h says how the secure OS is entered, and what it may ask.
 *
 * While one world runs, the registers of EL1 and EL0 that the other one left lie here, for each CPU: a CPU may be
 * gathered, or be off for the OS, while its secure world waits in the midst of anything. EL2 knows nothing of it.
 */
#ifndef EL3_WORLD_H
#define EL3_WORLD_H

#include "arch/aarch64/system.h"

/* Look for a secure OS; once, by the first CPU. */
void world_boot(void);

/* RUN: `frame` is the OS's, and what it continues with. */
void world_run(struct frame *frame);

/* A call of the secure OS. */
void world_serve(struct frame *frame);

/* What ended the interrupt that was taken from `frame`: may give the CPU back to the OS. */
void world_interrupted(struct frame *frame, u32 intid);

/* Whether the secure world is on this CPU. */
bool world_is_secure(void);

/* Set what of EL3's registers confines the secure world, if it is on this CPU; else nothing. */
void world_confine(void);

/* No CPU is lent any more, on none the secure world runs, and its RAM and registers are overwritten. */
void world_end(void);

#endif
