/* The calls of the OS, as abi/flex.toml states them. */
#ifndef MONITOR_CALLS_H
#define MONITOR_CALLS_H

#include "core/monitor.h"

/* Serve one call; the caller holds the lock. */
void calls_serve(u64 x[MONITOR_REGISTERS]);

#endif
