/*
 * The small machine: a core whose RAM, rings and queues were shrunk when it was compiled (see Makefile), the
 * model beside it, and the normal and the secure world around both. A step is something one of the worlds
 * does; after each, and at each moment in the middle of it, the laws are checked:
 *
 *   1. a page that is not NORMAL is in no table of the normal world, and nobody remembers a way to it,
 *      neither a CPU nor a device;
 *   2. no byte that the secure world wrote is in a page that anybody else can reach;
 *   3. a page that was TAKEn is all zeros; one that was RETURNed is as it was;
 *   4. the tables are exactly those that the states ask for, the upper levels exactly as they were built;
 *   5. every page is in one state, and the counts kept are the counts there are;
 *   6. a refused call changed no byte of the monitor's memory and no variable of the core;
 *   7. answers, events, notices and bells are the model's;
 *   8. the NPU's registers are the OS's while it is NORMAL and no longer, and nobody finds there what the other
 *      world left; its work reaches NORMAL pages for the OS, SECURE pages for the secure world, and no others;
 *   9. what drives it there is what was hashed, and it finds nothing of before on its stack.
 */
#ifndef WORLD_H
#define WORLD_H

#include "tests/model.h"

enum step_kind {
	STEP_CALL, /* the OS calls, x[0..2] */
	STEP_FAULT, /* the normal world's access to x[0] was stopped */
	STEP_COMMAND, /* the secure world writes the command x[0..3], if the ring has room */
	STEP_READ, /* the secure world reads an event, if there is one */
	STEP_RELAX_FAILS, /* RELAX, and EL3 says BUSY */
	STEP_CALL_LYING_HEAD, /* a call while the secure world's head of commands is nonsense */
	STEP_CALL_LYING_TAIL, /* a call while its tail of events is nonsense */
	STEP_CALL_DEAF, /* a call while the NPU does no reset */
	STEP_CALL_INTERRUPTED, /* a call while what drives the NPU would be interrupted … */
	STEP_CALL_FAULTED, /* … would do what it may not … */
	STEP_CALL_FAILED, /* … would return that it failed */
};

struct step {
	enum step_kind kind;
	u64 x[4];
};

extern struct model world;

/* A machine with SMALL_PAGES pages for the normal world, just booted. */
void world_make(void);

/* Boot it again. */
void world_reset(void);

/* Take a step; a broken law ends the process (host_fail). */
void world_step(const struct step *step);

/*
 * The machine ends: nothing that was secret is left, and what never was stays. No step comes after that; load a
 * state, or boot again.
 */
void world_end(void);

/* Check what only a stray write could break: too slow for every step. */
void world_check_rest(void);

/* Everything that a step depends on or changes, as bytes. */
u64 world_bytes(void);
void world_save(u8 *to);
void world_load(const u8 *from);

#endif
