/* Every number that is not a call's, 2^64 of them but for CALLS, with any other registers. */
#include "tests/proofs/machine.h"

int main(void)
{
	u64 x[MONITOR_REGISTERS] = { nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	u32 i;

	assume(x[0] - FLEX_SMC_BASE >= CALLS);
	monitor_call(x);
	prove(!machine.held, "the lock is given back");
	prove(x[0] == (u64)FLEX_STATUS_UNKNOWN && machine_kept(),
	      "what is not a call is UNKNOWN, and changes nothing");
	for (i = 1; i < MONITOR_REGISTERS; i++)
		prove(x[i] == 0, "it is told nothing");
	possible(machine.before.attached);
	return 0;
}
