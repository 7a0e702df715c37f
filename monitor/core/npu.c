#include "core/npu.h"

#include "arch/arch.h"
#include "core/limits.h"
#include "core/notices.h"
#include "core/pages.h"
#include "core/tables.h"

/* What is left to do of an NPU_DRIVE. */
struct driving {
	bool under_way;
	u32 turns;
	u64 serial;
};

static const struct layout *here;
static enum flex_npu_state state;
static bool wanted; /* by an NPU_WANT that was not met yet … */
static u64 wanted_serial; /* … with this serial */
static struct driving driving;

static void become(enum flex_npu_state next)
{
	state = next;
	mailbox_npu_state(next);
}

void npu_init(const struct layout *layout)
{
	here = layout;
	wanted = false;
	driving = (struct driving){ false, 0, 0 };
	become(layout->npu ? FLEX_NPU_STATE_NORMAL : FLEX_NPU_STATE_ABSENT);
	if (!layout->npu)
		return;
	arch_scrub(layout->code, SANDBOX_PAGES);
	arch_npu_root(layout->devices.level1);
	tables_show_registers();
}

enum flex_npu_state npu_state(void)
{
	return state;
}

bool npu_is_between(void)
{
	return state == FLEX_NPU_STATE_ENTERING || state == FLEX_NPU_STATE_LEAVING;
}

bool npu_is_away(void)
{
	return npu_is_between() || state == FLEX_NPU_STATE_SECURE;
}

bool npu_is_driving(void)
{
	return driving.under_way;
}

void npu_forget(enum flex_npu_state user)
{
	if (state == user)
		arch_npu_flush();
}

/* ---- to the secure world, and back ---------------------------------------------------------------------- */

/* The OS can change its code at any time: so it is the copy that is hashed. */
static void load(u64 code, u64 bytes)
{
	struct digest digest;

	arch_copy_code(here->code, code, bytes);
	digest = sha256(arch_at(here->code), bytes);
	mailbox_npu_driver(&digest);
}

/* For NPU_GRANT (calls.c), the NPU NORMAL => ENTERING. */
int npu_grant(u64 code, u64 bytes)
{
	struct range range;

	if (bytes > FLEX_NPU_CODE_BYTES_MAX ||
	    !pages_range(code, (bytes + FLEX_PAGE_BYTES - 1) / FLEX_PAGE_BYTES, &range))
		return FLEX_STATUS_INVALID;
	if (state != FLEX_NPU_STATE_NORMAL || !wanted || !pages_may(FLEX_MOVE_GRANT, range))
		return FLEX_STATUS_DENIED;
	/* First of all nobody can give it work any more: a reset would not end what begins after it. */
	tables_hide_registers();
	arch_flush_stage2();
	arch_npu_root(0);
	arch_npu_reset();
	load(code, bytes);
	become(FLEX_NPU_STATE_ENTERING);
	return FLEX_STATUS_OK;
}

/* The NPU ENTERING or SECURE => LEAVING; in any other state it is only wanted no more. */
void npu_leave(void)
{
	wanted = false;
	if (state != FLEX_NPU_STATE_ENTERING && state != FLEX_NPU_STATE_SECURE)
		return;
	arch_npu_root(0);
	arch_npu_reset();
	become(FLEX_NPU_STATE_LEAVING);
}

/* All but those that say which device it is. */
static void zero_registers(void)
{
	volatile u64 *registers = arch_at(here->window);
	u32 i;

	for (i = FLEX_NPU_WINDOW_KEPT / sizeof(u64); i < FLEX_NPU_WINDOW_BYTES / sizeof(u64); i++)
		registers[i] = 0;
	arch_barrier();
}

/* Its reset is done: the NPU ENTERING => SECURE. */
static void entered(void)
{
	arch_npu_root(here->secure.level1);
	wanted = false;
	become(FLEX_NPU_STATE_SECURE);
	mailbox_event(FLEX_EVENT_NPU_GRANTED, wanted_serial, 0);
}

/* Its reset is done: the NPU LEAVING => NORMAL. */
static void left(void)
{
	arch_scrub(here->code, SANDBOX_PAGES);
	arch_npu_root(here->devices.level1);
	become(FLEX_NPU_STATE_NORMAL);
	tables_show_registers();
	arch_barrier();
	notices_put(FLEX_NOTICE_NPU_BACK, 0, 0, 0);
}

/* ---- driving it ------------------------------------------------------------------------------------------- */

static void done(u64 serial, int status)
{
	mailbox_event(FLEX_EVENT_DONE, serial, (u64)status);
}

static void drive_on(void)
{
	u64 result = 0;
	enum arch_stop stop = arch_sandbox_run(&result);

	if (stop == ARCH_INTERRUPTED && ++driving.turns < NPU_TURNS_MAX)
		return;
	driving.under_way = false;
	if (stop != ARCH_RETURNED)
		done(driving.serial, FLEX_STATUS_DENIED);
	else
		done(driving.serial, result == 0 ? FLEX_STATUS_OK : FLEX_STATUS_BUSY);
}

/*
 * NPU_DRIVE: the NPU stays SECURE; changes no page. The list of a job and how many commands it has share a word.
 * Refused: DENIED (nobody is attached, or the NPU is not SECURE; or its code did what it may not, or took too long);
 * BUSY (its code returned that it could not).
 */
static void drive(const struct message *command)
{
	const u64 arguments[ARCH_ARGUMENTS] = { here->window, FLEX_NPU_START, command->a & 0xffffffff,
						command->a >> 32, command->b, command->c };

	arch_scrub(here->stack, 1);
	arch_sandbox_begin(arguments);
	driving = (struct driving){ true, 0, command->c };
	drive_on();
}

/* ---- commands, and what is under way ------------------------------------------------------------------------ */

/*
 * NPU_WANT: changes neither a page nor the NPU, which the OS may NPU_GRANT.
 * Refused: DENIED (nobody is attached, or the NPU is not NORMAL).
 */
static void want(u64 serial)
{
	wanted = true;
	wanted_serial = serial;
	notices_put(FLEX_NOTICE_NPU_WANTED, serial, 0, 0);
}

/*
 * NPU_RELEASE: the NPU ENTERING or SECURE => LEAVING (npu_leave); changes no page.
 * Refused: DENIED (nobody is attached, or the NPU is neither wanted nor SECURE).
 */
void npu_obey(const struct message *command, bool attached)
{
	bool secure = attached && state == FLEX_NPU_STATE_SECURE;

	if (command->kind == FLEX_COMMAND_NPU_DRIVE) {
		if (secure)
			drive(command);
		else
			done(command->c, FLEX_STATUS_DENIED);
	} else if (command->kind == FLEX_COMMAND_NPU_WANT && attached && state == FLEX_NPU_STATE_NORMAL) {
		want(command->a);
	} else if (command->kind == FLEX_COMMAND_NPU_RELEASE && (wanted || secure)) {
		npu_leave();
		done(command->a, FLEX_STATUS_OK);
	} else {
		done(command->a, FLEX_STATUS_DENIED);
	}
}

bool npu_work(void)
{
	if (driving.under_way) {
		drive_on();
		return true;
	}
	if (!npu_is_between() || !arch_npu_is_reset())
		return false;
	zero_registers();
	if (state == FLEX_NPU_STATE_ENTERING)
		entered();
	else
		left();
	return true;
}
