/*
 * The secure world's end of the monitor's mailbox (abi/flex.toml). While protection is off anybody may write there:
 * what is read of the other end's counters is checked, our own are kept here. Callers hold the lock.
 */
#ifndef SECURE_OS_MAILBOX_H
#define SECURE_OS_MAILBOX_H

#include "core/types.h"

struct message {
	u64 kind;
	u64 a;
	u64 b;
	u64 c;
};

/* Protection has come on: the rings are empty. */
void mailbox_reset(void);

/* Put a command; false: there is no room. */
bool mailbox_put(struct message command);

/* Take the oldest event; false: there is none. */
bool mailbox_take(struct message *event);

/* Whether one waits. */
bool mailbox_waits(void);

/* Whether every RECALL and GONE that was put has been taken out by the monitor. */
bool mailbox_settled(void);

#endif
