/*
 * The calls of the OS, as abi/flex.toml states them.
 *
 * Above each call, and above each command of the secure world (secure.c, npu.c), stands what it changes: the states
 * of pages and of the NPU, from => to, and the statuses with which it is refused. What is refused changes nothing.
 * Besides these, EL3 answers TAMPERED or BUSY to any call while protection is off (el3/modes.c).
 */
#ifndef MONITOR_CALLS_H
#define MONITOR_CALLS_H

#include "core/monitor.h"

/* Serve one call; the caller holds the lock. */
void calls_serve(u64 x[MONITOR_REGISTERS]);

#endif
