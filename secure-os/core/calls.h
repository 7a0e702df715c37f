/* System calls of the application: Linux's, as far as the C and C++ libraries of a static program need them, and ours. */
#ifndef SECURE_OS_CALLS_H
#define SECURE_OS_CALLS_H

#include "core/threads.h"

/* Where the application's data end, where brk begins; and how many cores may be lent. */
void calls_init(u64 data_end, u64 cpus);

/*
 * Serve the call that a core's thread made, whose registers `frame` holds. The answer is put there. The thread may wait
 * or have ended afterwards (threads_current). False: the application ends, with what is in x0.
 */
bool calls_serve(u32 cpu, struct frame *frame);

#endif
