/* What the OS is to hear at its next POLLs: a short queue, oldest first. Callers hold the lock. */
#ifndef MONITOR_NOTICES_H
#define MONITOR_NOTICES_H

#include "core/mailbox.h"

void notices_init(void);
bool notices_full(void);

/* Queue a notice; the queue must not be full. */
void notices_put(u64 kind, u64 a, u64 b, u64 c);

/* Take the oldest; FLEX_NOTICE_NONE when there is none. */
struct message notices_take(void);

#endif
