/* An access of the normal world to any address that Stage-2 stopped, from any state of the invariant. */
#include "tests/proofs/machine.h"

int main(void)
{
	u64 ipa = nondet_u64(), page;
	enum monitor_verdict verdict = monitor_fault(ipa);

	page = (ipa - small.base) / FLEX_PAGE_BYTES;
	prove(!machine.held, "the lock is given back");
	if (ipa < small.base || page >= small.pages)
		prove(verdict == MONITOR_BLOCK, "outside of RAM nothing is tried again");
	else if (page == small.watched)
		prove((verdict == MONITOR_RETRY) == (machine.before.state == FLEX_STATE_NORMAL),
		      "an access is tried again exactly when the page is NORMAL");
	prove(machine.after.state == machine.before.state, "no access changes the state of a page");
	prove(machine.after.faults == machine.before.faults + (verdict == MONITOR_BLOCK),
	      "what is blocked is counted");
	prove(verdict == MONITOR_BLOCK || machine_kept(), "what is tried again changes nothing");
	possible(verdict == MONITOR_RETRY);
	possible(verdict == MONITOR_BLOCK && page < small.pages);
	return 0;
}
