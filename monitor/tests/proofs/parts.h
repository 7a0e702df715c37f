/*
 * The invariant, module by module.
 *
 * NAME_part.c is core/NAME.c as it is, with functions beside it that may look into its variables:
 *
 *     NAME_any     gives them any values that satisfy the invariant: what is true while nobody holds the lock
 *     NAME_hold    whether they satisfy it
 *     NAME_view    what of them a step may change
 *
 * The proofs start from any state in which all NAME_hold. Every state that can be reached is among these, as
 * prove_start.c shows that they hold at first, and the other proofs that each step keeps them.
 *
 * What is proved of each page is proved of one, `small.watched`, which may be any; so with words and slots.
 *
 * How far this reaches. No bound lies on registers, commands, counters, addresses and the order of calls: they
 * are anything, and so is the state that a call begins with. Bounds lie on sizes (prove.py): a machine has 1 to
 * 8 pages, at any GiB, any number of them the monitor's; a call names at most 4; rings and the queue of notices
 * have two slots; the NPU has two pages of registers, and what drives it may be interrupted once. That speaks
 * for larger ones because the core looks at pages one by one: its loops compare or set one entry a round and
 * carry nothing to the next but the counts, so what can go wrong does so at the first page of a range, the
 * last, one between, or one beside it; and a ring or a queue is empty, has room, or is full. The arithmetic
 * that does depend on size is proved with the constants of the real monitor, for all addresses and lengths and
 * every board: prove_range.c, prove_layout.c.
 *
 * What is left out: the code behind arch/arch.h, of which is taken for granted what that header asks (a flush
 * flushes, a scrub scrubs, the lock locks, the sandbox holds); SHA-256, whose result may be any; the compiler;
 * the order in which other CPUs see the monitor's writes between two moments (machine.h), for which
 * test_stress.c runs threads; and that a call ends in time.
 */
#ifndef PARTS_H
#define PARTS_H

#include "core/mailbox.h"
#include "core/monitor.h"
#include "core/npu.h"
#include "core/pages.h"
#include "core/secure.h"
#include "tests/proofs/cbmc.h"

#define MAILBOX_WORDS (MAILBOX_BYTES / sizeof(u64))
#define STATES (FLEX_STATE_MONITOR + 1)

/* The machine: where its RAM lies, how many pages it has, how many of them, the first, are not the monitor's. */
struct small {
	u64 base;
	u64 pages;
	u64 hidden;
	u64 npus; /* 0 or 1 */
	u64 window; /* the number of the first page of its registers */
	u8 *states; /* memory, as the core finds it by arch_at: the leaves of all pages, and the mailbox */
	u64 *stage2;
	u64 *devices;
	u64 *secure;
	u64 *mailbox;
	u64 watched; /* a page */
	u64 watched_word; /* of the mailbox */
	u64 watched_slot; /* of the notices */
};

extern struct small small;

/* What a step of the core may change. */
struct view {
	u8 state; /* of the watched page, as its leaves */
	u64 stage2;
	u64 devices;
	u64 secure;
	u64 counts[STATES];
	u32 command_tail;
	u32 event_head;
	bool bell_owed;
	u64 faults;
	u64 word;
	struct message notice;
	u32 notice_head;
	u32 notice_tail;
	bool attached;
	bool leaving;
	u64 leaving_epoch;
	u64 leaving_next;
	enum flex_npu_state npu;
	bool wanted;
	u64 wanted_serial;
	bool driving;
	u32 driving_turns;
	u64 driving_serial;
};

/* Whether a page is one of the NPU's registers, which the OS's CPUs reach while it is NORMAL. */
static inline bool is_register(u64 page)
{
	return small.npus && page >= small.window && page - small.window < FLEX_NPU_WINDOW_BYTES / FLEX_PAGE_BYTES;
}

void pages_any(void);
bool pages_hold(void);
void pages_view(struct view *view);

void tables_any(void);
bool tables_hold(void);
void tables_view(struct view *view);

void mailbox_any(void);
bool mailbox_holds(void);
void mailbox_view(struct view *view);

void notices_any(void);
bool notices_hold(void);
void notices_view(struct view *view);

void secure_any(void);
bool secure_holds(void);
void secure_view(struct view *view);

void npu_any(void);
bool npu_holds(void);
void npu_view(struct view *view);

void monitor_any(void);

#endif
