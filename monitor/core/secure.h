/* The secure world's side: its commands, and whether there is one. Callers hold the lock. */
#ifndef MONITOR_SECURE_H
#define MONITOR_SECURE_H

#include "core/types.h"

void secure_init(void);

bool secure_attached(void);

/*
 * Do a bounded number of steps of what the secure world waits for, as long as there is room to tell what
 * came of them. True when the bound ended it: there may be more.
 */
bool secure_work(void);

#endif
