/*
 * The machine is about to be switched off or reset, from any state of the invariant. Nothing comes after it: the
 * lock is never given back, so no NPU that was driven is asked to be idle, and no page is handed over any more.
 */
#include "tests/proofs/machine.h"

int main(void)
{
	u8 from, to;

	monitor_end();
	machine_moment();
	from = machine.before.state;
	to = pages_state(small.watched);
	prove(machine.held, "nobody gets the lock any more");
	prove(!machine_has_secret(), "no page holds what was secret");
	prove(machine.scrubbed == (from == FLEX_STATE_SECURE || from == FLEX_STATE_RECALLING),
	      "what may hold a secret is overwritten, and nothing else");
	prove(to == from || (from == FLEX_STATE_SECURE && to == FLEX_STATE_RECALLING), "what is SECURE is recalled");
	prove(to != FLEX_STATE_SECURE, "the secure world has no page any more");
	prove(pages_hold(), "each page is in one state, the monitor's pages are the monitor's, the counts are true");
	prove(tables_hold(), "the normal world's tables have exactly what is NORMAL, the secure NPU's nothing");
	prove(npu_state() != FLEX_NPU_STATE_SECURE && npu_state() != FLEX_NPU_STATE_ENTERING,
	      "the NPU writes nothing for the secure world any more");
	possible(from == FLEX_STATE_SECURE);
	possible(from == FLEX_STATE_RECALLING);
	possible(from == FLEX_STATE_GRANTED);
	possible(machine.before.npu == FLEX_NPU_STATE_SECURE && from == FLEX_STATE_SECURE);
	possible(machine.before.driving);
	return 0;
}
