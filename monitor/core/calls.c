#include "core/calls.h"

#include "arch/arch.h"
#include "core/mailbox.h"
#include "core/notices.h"
#include "core/npu.h"
#include "core/pages.h"
#include "core/secure.h"
#include "core/tables.h"

/* a: the arguments, copied; r: the results, zero. */
struct call {
	u64 a[2];
	u64 r[MONITOR_REGISTERS - 1];
};

/*
 * VERSION: changes no page.
 * Refused: never.
 */
static int version(struct call *call)
{
	call->r[0] = FLEX_ABI_VERSION;
	return FLEX_STATUS_OK;
}

/*
 * LAYOUT: changes no page.
 * Refused: never.
 */
static int layout(struct call *call)
{
	const struct layout *where = monitor_layout();

	call->r[0] = where->ram_base;
	call->r[1] = where->ram_bytes;
	call->r[2] = where->hidden_base;
	return FLEX_STATUS_OK;
}

/* What every call that tells the secure world something needs first. */
static int can_tell(void)
{
	if (!secure_attached())
		return FLEX_STATUS_DENIED;
	return mailbox_room() > 0 ? FLEX_STATUS_OK : FLEX_STATUS_BUSY;
}

static int tell(u64 kind, struct call *call)
{
	int status = can_tell();

	if (status == FLEX_STATUS_OK)
		mailbox_event(kind, call->a[0], call->a[1]);
	return status;
}

/*
 * GRANT: each page NORMAL => GRANTED.
 * Refused: INVALID (no range of RAM); DENIED (nobody is attached, or a page is not NORMAL); BUSY (no room for an event).
 */
static int grant(struct call *call)
{
	struct range range;
	int status;

	if (!pages_range(call->a[0], call->a[1], &range))
		return FLEX_STATUS_INVALID;
	status = can_tell();
	if (status != FLEX_STATUS_OK)
		return status;
	if (!pages_may(FLEX_MOVE_GRANT, range))
		return FLEX_STATUS_DENIED;
	/* Published before the flush, a page could still be written by whoever knew its mapping. */
	tables_hide(range);
	arch_flush_stage2();
	arch_flush_devices();
	npu_forget(FLEX_NPU_STATE_NORMAL);
	pages_move(FLEX_MOVE_GRANT, range);
	mailbox_event(FLEX_EVENT_GRANTED, call->a[0], call->a[1]);
	return FLEX_STATUS_OK;
}

/* Pages that are NORMAL, some of them again. */
static int show(struct call *call, struct range range)
{
	tables_show(range);
	arch_barrier();
	if (can_tell() == FLEX_STATUS_OK)
		mailbox_event(FLEX_EVENT_TAKEN, call->a[0], call->a[1]);
	return FLEX_STATUS_OK;
}

/*
 * RETURN: each page that is GRANTED => NORMAL, as it came. Other pages of the OS may lie between those it gets back:
 * one call does for many small blocks.
 * Refused: INVALID (no range of RAM); DENIED (the first page or the last is not GRANTED, or one between them is neither
 * GRANTED nor NORMAL).
 */
static int give_back_unused(struct call *call)
{
	struct range range;

	if (!pages_range(call->a[0], call->a[1], &range))
		return FLEX_STATUS_INVALID;
	if (!pages_may_sweep(FLEX_MOVE_RETURN, range))
		return FLEX_STATUS_DENIED;
	pages_sweep(FLEX_MOVE_RETURN, range);
	return show(call, range);
}

/*
 * TAKE: each page RECALLING => NORMAL, overwritten with zeros before.
 * Refused: INVALID (no range of RAM); DENIED (a page is not RECALLING).
 */
static int take(struct call *call)
{
	struct range range;

	if (!pages_range(call->a[0], call->a[1], &range))
		return FLEX_STATUS_INVALID;
	if (!pages_may(FLEX_MOVE_SCRUBBED, range))
		return FLEX_STATUS_DENIED;
	arch_scrub(call->a[0], range.count);
	pages_move(FLEX_MOVE_SCRUBBED, range);
	return show(call, range);
}

/*
 * STATE: changes no page.
 * Refused: INVALID (no page of RAM).
 */
static int state(struct call *call)
{
	struct range range;

	if (!pages_range(call->a[0], 1, &range))
		return FLEX_STATUS_INVALID;
	call->r[0] = pages_state(range.first);
	call->r[1] = pages_alike(range.first, FLEX_CALL_PAGES_MAX);
	return FLEX_STATUS_OK;
}

/*
 * POLL: changes what the commands change that it carries out (secure.c), and the NPU as its resets end (npu.c).
 * Refused: never.
 */
static int poll(struct call *call)
{
	bool more = secure_work();
	struct message notice = notices_take();

	if (notice.kind == FLEX_NOTICE_NONE && more)
		notice.kind = FLEX_NOTICE_MORE;
	else if (notice.kind == FLEX_NOTICE_NONE && npu_is_between())
		notice.kind = FLEX_NOTICE_WAIT;
	call->r[0] = notice.kind;
	call->r[1] = notice.a;
	call->r[2] = notice.b;
	call->r[3] = notice.c;
	return FLEX_STATUS_OK;
}

/*
 * ANSWER: changes no page.
 * Refused: DENIED (nobody is attached); BUSY (no room for an event).
 */
static int answer(struct call *call)
{
	return tell(FLEX_EVENT_ANSWER, call);
}

/*
 * PRESSURE: changes no page: the secure world may RECALL some.
 * Refused: DENIED (nobody is attached); BUSY (no room for an event).
 */
static int pressure(struct call *call)
{
	return tell(FLEX_EVENT_PRESSURE, call);
}

/*
 * DETACH: changes no page: the secure world may RECALL or REFUSE them.
 * Refused: DENIED (nobody is attached); BUSY (no room for an event).
 */
static int detach(struct call *call)
{
	call->a[0] = call->a[1] = 0;
	return tell(FLEX_EVENT_DETACHED, call);
}

/*
 * COUNTS: changes no page.
 * Refused: never.
 */
static int counts(struct call *call)
{
	call->r[0] = pages_count(FLEX_STATE_NORMAL);
	call->r[1] = pages_count(FLEX_STATE_GRANTED);
	call->r[2] = pages_count(FLEX_STATE_SECURE);
	call->r[3] = pages_count(FLEX_STATE_RECALLING);
	return FLEX_STATUS_OK;
}

/*
 * RELAX: changes no page. Each is NORMAL or MONITOR, and stays so.
 * Refused: HELD (somebody is attached, the NPU is not the OS's, or a page is GRANTED, SECURE or RECALLING);
 * BUSY (another CPU is in the midst of EL2: EL3 says so).
 */
static int relax(struct call *call)
{
	(void)call;
	if (secure_attached() || npu_is_away() || pages_count(FLEX_STATE_GRANTED) || pages_count(FLEX_STATE_SECURE) ||
	    pages_count(FLEX_STATE_RECALLING))
		return FLEX_STATUS_HELD;
	return arch_relax();
}

/*
 * NPU_GRANT: the NPU NORMAL => ENTERING. The pages of its code are read, and stay NORMAL.
 * Refused: INVALID (no pages of RAM, or more than the sandbox holds); DENIED (the NPU is not NORMAL, nobody wants it, or
 * a page of the code is not NORMAL).
 */
static int grant_npu(struct call *call)
{
	return npu_grant(call->a[0], call->a[1]);
}

/*
 * NPU_ASK: changes neither a page nor the NPU: the secure world may NPU_RELEASE it.
 * Refused: DENIED (there is no NPU, it is NORMAL, or nobody is attached); BUSY (no room for an event).
 */
static int ask_for_npu(struct call *call)
{
	call->a[1] = 0;
	return npu_is_away() ? tell(FLEX_EVENT_NPU_ASKED, call) : FLEX_STATUS_DENIED;
}

/*
 * NPU_STATE: changes neither a page nor the NPU.
 * Refused: never.
 */
static int state_of_npu(struct call *call)
{
	call->r[0] = npu_state();
	return FLEX_STATUS_OK;
}

static int (*const served[])(struct call *) = {
	[FLEX_CALL_VERSION] = version,
	[FLEX_CALL_LAYOUT] = layout,
	[FLEX_CALL_GRANT] = grant,
	[FLEX_CALL_RETURN] = give_back_unused,
	[FLEX_CALL_TAKE] = take,
	[FLEX_CALL_STATE] = state,
	[FLEX_CALL_POLL] = poll,
	[FLEX_CALL_ANSWER] = answer,
	[FLEX_CALL_PRESSURE] = pressure,
	[FLEX_CALL_COUNTS] = counts,
	[FLEX_CALL_RELAX] = relax,
	[FLEX_CALL_DETACH] = detach,
	[FLEX_CALL_NPU_GRANT] = grant_npu,
	[FLEX_CALL_NPU_ASK] = ask_for_npu,
	[FLEX_CALL_NPU_STATE] = state_of_npu,
};

#define CALLS (sizeof(served) / sizeof(served[0]))

_Static_assert(CALLS == FLEX_CALL_NPU_STATE + 1, "a call without a function, or the other way round");

void calls_serve(u64 x[MONITOR_REGISTERS])
{
	struct call call = { { x[1], x[2] }, { 0, 0, 0, 0 } };
	u64 number = x[0] - FLEX_SMC_BASE;
	u32 i;

	x[0] = (u64)(number < CALLS ? served[number](&call) : FLEX_STATUS_UNKNOWN);
	for (i = 1; i < MONITOR_REGISTERS; i++)
		x[i] = call.r[i - 1];
}
