/*
 * Whose the NPU is: its registers, what it reaches in memory, and the code that drives it in between.
 * The states are those of abi/flex.toml. Callers hold the lock.
 *
 * Who has the registers may give it work, so nobody gets them before a reset was done and they were zeroed.
 * What it reaches is a matter of one word, the root of the tree that its accesses pass.
 */
#ifndef MONITOR_NPU_H
#define MONITOR_NPU_H

#include "core/mailbox.h"

/* The OS's, if the board has one; tables and mailbox are made already. */
void npu_init(const struct layout *layout);

enum flex_npu_state npu_state(void);

/* Whether the board has one and the OS does not. */
bool npu_is_away(void);

/* Whether it is on its way, and a reset is waited for. */
bool npu_is_between(void);

/* The call NPU_GRANT. A flex_status. */
int npu_grant(u64 code, u64 bytes);

/* Carry out a command about it, and tell what came of that: at most one notice and one event. */
void npu_obey(const struct message *command, bool attached);

/* The secure world wants it no more. */
void npu_leave(void);

/* Leaves were cleared in the tree that it goes by in this state: returns when nothing reaches what they mapped. */
void npu_forget(enum flex_npu_state user);

/*
 * Go on with what is under way, if it can: false when there was nothing to do. There must be room for a
 * notice and an event.
 */
bool npu_work(void);

/* Whether the code that drives it was interrupted: commands wait for it. */
bool npu_is_driving(void);

#endif
