/* The ways into the portable core. But for monitor_end none of them returns with the lock held. */
#ifndef MONITOR_H
#define MONITOR_H

#include "core/types.h"

#define MONITOR_REGISTERS 5

enum monitor_verdict {
	MONITOR_RETRY, /* the page is the normal world's: it was being changed, let it try again */
	MONITOR_BLOCK, /* the access must fail */
};

/* Once, on the first CPU: false when the board cannot be protected. `windows` must stay. */
bool monitor_init(const struct board *board, const struct window *windows, u32 count);

/* Make tables, page states, rings and lock anew: everything is NORMAL, nobody is attached. */
void monitor_rebuild(void);

/* Serve a call: x[0] is the function and then the status, x[1] and on are arguments and then results. */
void monitor_call(u64 x[MONITOR_REGISTERS]);

/*
 * The machine is about to be switched off or reset: overwrite all that may hold a secret. It does return with
 * the lock held, so that nothing is handed over any more.
 */
void monitor_end(void);

/* The normal world's access to `ipa` was stopped by Stage-2. */
enum monitor_verdict monitor_fault(u64 ipa);

/* Where things lie. */
const struct layout *monitor_layout(void);

#endif
