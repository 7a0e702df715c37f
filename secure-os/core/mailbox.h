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

/*
 * Protection was switched. The rings were emptied when it came on; if we wrote to them at that very time, what we wrote
 * lies there. Either way our ends are where the mailbox says, which nobody else can write to while protection is on; but
 * for an end that cannot be, which was written at that time: nothing was put there then.
 */
void mailbox_reset(void);

/* Put a command; false: there is no room. */
bool mailbox_put(struct message command);

/* Take the oldest event; false: there is none. */
bool mailbox_take(struct message *event);

/* Whether one waits. */
bool mailbox_waits(void);

/*
 * Whether every RECALL and GONE that was put has been carried out by the monitor. It reads a command's end from the
 * counter; of a GONE, which it carries out in steps, that counter tells the beginning, and the next command's the end.
 */
bool mailbox_settled(void);

#endif
