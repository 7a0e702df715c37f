/* The secure world's side: its commands, and whether there is one. Callers hold the lock. */
#ifndef MONITOR_SECURE_H
#define MONITOR_SECURE_H

#include "core/types.h"

void secure_init(void);

bool secure_attached(void);

/* Carry out waiting commands, a bounded number of them, as long as there is room to tell what came of them. */
void secure_work(void);

#endif
