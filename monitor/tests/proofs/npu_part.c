#include "tests/proofs/parts.h"

#include "core/npu.c"

void npu_any(void)
{
	here = monitor_layout();
	state = (enum flex_npu_state)(nondet_u8() % (FLEX_NPU_STATE_LEAVING + 1));
	wanted = nondet_bool();
	wanted_serial = nondet_u64();
	driving = (struct driving){ nondet_bool(), nondet_u32(), nondet_u64() };
}

/*
 * Only who is attached wants it, has it or is given it, and only a wanted one is given; only a SECURE one is
 * driven, by code that was not interrupted too often.
 */
bool npu_holds(void)
{
	bool given = state == FLEX_NPU_STATE_ENTERING || state == FLEX_NPU_STATE_SECURE;

	return here == monitor_layout() && (state == FLEX_NPU_STATE_ABSENT) == (small.npus == 0) &&
	       state <= FLEX_NPU_STATE_LEAVING && (secure_attached() || (!wanted && !given)) &&
	       (!wanted || state == FLEX_NPU_STATE_NORMAL || state == FLEX_NPU_STATE_ENTERING) &&
	       (wanted || state != FLEX_NPU_STATE_ENTERING) &&
	       (!driving.under_way || (state == FLEX_NPU_STATE_SECURE && driving.turns < NPU_TURNS_MAX));
}

void npu_view(struct view *view)
{
	view->npu = state;
	view->wanted = wanted;
	view->wanted_serial = wanted_serial;
	view->driving = driving.under_way;
	view->driving_turns = driving.turns;
	view->driving_serial = driving.serial;
}
