/*
 * One step for the secure world, from any state of the invariant: a command that is anything, or as many pages
 * of what a GONE recalls as a call may name. It keeps the invariant, so any number of steps in a POLL does.
 */
#include "tests/proofs/machine.h"

#include "arch/arch.h"

int main(void)
{
	u8 from, to;
	enum flex_npu_state npu_from, npu_to;

	arch_lock();
	secure_work();
	arch_unlock();
	from = machine.before.state;
	to = machine.after.state;
	npu_from = machine.before.npu;
	npu_to = machine.after.npu;
	prove(machine_may_step(from, to), "the secure world moves a page as the interface has it");
	prove(machine_may_pass(npu_from, npu_to), "the NPU changes hands as the interface has it");
	prove(from == to || to != FLEX_STATE_SECURE || machine.before.attached,
	      "a page becomes SECURE only while somebody is attached");
	prove(machine.before.attached || !machine.after.attached || !machine.before.leaving,
	      "nobody attaches while a GONE is under way");
	prove(!machine.before.driving || !machine.after.driving ||
		      machine.after.driving_turns == machine.before.driving_turns + machine.driven,
	      "each time that what drives the NPU goes on is counted");
	possible(from == FLEX_STATE_GRANTED && to == FLEX_STATE_SECURE);
	possible(from == FLEX_STATE_SECURE && to == FLEX_STATE_RECALLING && machine.before.attached);
	possible(from == FLEX_STATE_SECURE && to == FLEX_STATE_RECALLING && machine.after.leaving);
	possible(machine.before.attached && machine.after.leaving);
	possible(!machine.before.attached && machine.after.attached);
	possible(npu_from == FLEX_NPU_STATE_ENTERING && npu_to == FLEX_NPU_STATE_SECURE);
	possible(npu_from == FLEX_NPU_STATE_SECURE && npu_to == FLEX_NPU_STATE_LEAVING);
	possible(npu_from == FLEX_NPU_STATE_LEAVING && npu_to == FLEX_NPU_STATE_NORMAL);
	possible(!machine.before.driving && machine.after.driving);
	possible(machine.before.driving && !machine.after.driving);
	return 0;
}
