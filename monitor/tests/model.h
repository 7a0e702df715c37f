/*
 * What abi/flex.toml promises, as a program of its own: it shares no line with the core, and holds one page
 * in one byte without tables, flushes or rings. The core must answer as it does, call for call.
 */
#ifndef MODEL_H
#define MODEL_H

#include "arch/arch.h"
#include "core/mailbox.h"

#define MODEL_PAGES_MAX 16 /* that are not the monitor's */
#define MODEL_QUEUE_MAX 4 /* a machine with longer rings is not a small one */

struct model_queue {
	u32 count;
	struct message at[MODEL_QUEUE_MAX];
};

struct model {
	u64 base;
	u64 end;
	u32 pages; /* that are not the monitor's: the first of RAM */
	u32 notice_slots;
	u32 event_slots;
	u32 steps; /* for the secure world in one POLL */
	u8 state[MODEL_PAGES_MAX];
	bool attached;
	bool leaving;
	u64 epoch;
	u32 unread; /* events that the secure world did not read yet */
	struct model_queue commands;
	struct model_queue notices;
	u8 npu; /* a flex_npu_state */
	bool npu_resetting; /* asked for, not done */
	bool npu_wanted;
	u64 npu_serial;
	u32 turns; /* of what drives it, at most */
	bool driving;
	u32 turn;
	u64 driving_serial;
};

/*
 * What befalls a call. Numbers of the secure world may be nonsense: then no command is seen, no event has room. The
 * NPU may do no reset, and the code that drives it end in different ways.
 */
struct model_lies {
	bool command_head;
	bool event_tail;
	bool npu_deaf;
	enum arch_stop stop;
	u64 result;
};

/* What a call must answer, and the events that it must lead to. */
struct model_answer {
	u64 x[5];
	struct model_queue events;
};

void model_reset(struct model *model, u32 npus);

/* The state of the page at `ipa` of RAM. */
u8 model_state(const struct model *model, u64 ipa);

/* Serve a call. `relax` is what EL3 answers when asked to switch off. */
struct model_answer model_call(struct model *model, const u64 x[5], struct model_lies lies, int relax);

/* The machine is about to end. */
void model_end(struct model *model);

/* Whether an access of the normal world to `ipa` that was stopped is to be tried again. */
bool model_retries(const struct model *model, u64 ipa);

#endif
