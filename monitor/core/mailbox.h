/*
 * The two rings in memory that the monitor shares with the secure world (abi/flex.toml).
 *
 * The monitor keeps its own ends' counters; what it reads of the other side's is checked before it is
 * believed, and every slot is copied once. Callers hold the lock.
 */
#ifndef MONITOR_MAILBOX_H
#define MONITOR_MAILBOX_H

#include "core/layout.h"
#include "core/sha256.h"

struct message {
	u64 kind;
	u64 a;
	u64 b;
	u64 c;
};

/* Empty rings, and a header that tells where everything is. */
void mailbox_init(const struct layout *layout);

/* Read the oldest command; false when there is none. */
bool mailbox_command(struct message *command);

/* What was read has been carried out: only now the secure world sees that it is gone, and what it changed before. */
void mailbox_carried_out(void);

/* How many events there is room for. */
u32 mailbox_room(void);

/* Put an event; there must be room. The doorbell is rung by mailbox_ring. */
void mailbox_event(u64 kind, u64 a, u64 b);

/*
 * Ring the doorbell if events were put since the last time, the secure world sleeps, and it has read all that
 * was there before: however many come, one bell is unheard at most.
 */
void mailbox_ring(void);

/* Say whose the NPU is, and what drives it. */
void mailbox_npu_state(enum flex_npu_state state);
void mailbox_npu_driver(const struct digest *digest);

/* Count an access of the normal world that was stopped. */
void mailbox_fault(void);

#endif
