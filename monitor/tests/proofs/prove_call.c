/*
 * Any call of the OS, with any registers, from any state of the invariant; its function, CALL, comes from the
 * compiler's command line, for CBMC follows one call much faster than all. POLL is among them, with one step
 * for the secure world, which is any: what its ring holds is anything. POLLs of more steps: prove_step.c.
 */
#include "tests/proofs/machine.h"

#define IS(name) (call == FLEX_SMC_BASE + FLEX_CALL_##name)

#define NEVER_REFUSED (IS(VERSION) || IS(LAYOUT) || IS(POLL) || IS(COUNTS) || IS(NPU_STATE))
#define MOVES (IS(GRANT) || IS(RETURN) || IS(TAKE))

/* Whether the interface lets `call` bring a page, or the NPU, from one state to the other. */
static bool may_become(u64 call, u8 from, u8 to)
{
	return from == to || (IS(GRANT) && from == FLEX_STATE_NORMAL && to == FLEX_STATE_GRANTED) ||
	       (IS(RETURN) && from == FLEX_STATE_GRANTED && to == FLEX_STATE_NORMAL) ||
	       (IS(TAKE) && from == FLEX_STATE_RECALLING && to == FLEX_STATE_NORMAL) ||
	       (IS(POLL) && machine_may_step(from, to));
}

static bool may_pass(u64 call, enum flex_npu_state from, enum flex_npu_state to)
{
	return from == to || (IS(NPU_GRANT) && from == FLEX_NPU_STATE_NORMAL && to == FLEX_NPU_STATE_ENTERING) ||
	       (IS(POLL) && machine_may_pass(from, to));
}

int main(void)
{
	u64 x[MONITOR_REGISTERS] = { CALL, nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	u64 call = x[0], ipa = x[1], pages = x[2], watched;
	u8 from, to;
	bool done, named, moved;

	monitor_call(x);
	done = x[0] == FLEX_STATUS_OK;
	watched = small.base + small.watched * FLEX_PAGE_BYTES;
	named = watched >= ipa && watched - ipa < pages * FLEX_PAGE_BYTES;
	from = machine.before.state;
	to = machine.after.state;
	prove(!machine.held, "the lock is given back");
	prove(done || machine_kept(), "a refused call changes nothing");
	prove(may_become(call, from, to), "a page changes its state as the interface has it");
	prove(may_pass(call, machine.before.npu, machine.after.npu), "the NPU changes hands as the interface has it");
	prove(from != FLEX_STATE_MONITOR || to == FLEX_STATE_MONITOR, "the monitor's pages stay its own");
	/* RETURN passes over pages that are the OS's already. */
	moved = done && named && !(IS(RETURN) && from == FLEX_STATE_NORMAL);
	if (MOVES)
		prove((from != to) == moved, "those pages move that the call names, and no others");
	if (IS(RETURN) && done && (watched == ipa || watched == ipa + (pages - 1) * FLEX_PAGE_BYTES))
		prove(from == FLEX_STATE_GRANTED, "a RETURN begins and ends with pages that come back");
	prove(machine.scrubbed == (IS(TAKE) && done && named), "what was TAKEn was scrubbed, and nothing else");
	prove((machine.relaxed > 0) == (IS(RELAX) && done), "protection goes off by RELAX alone");
	prove(machine.rings <= (machine.before.bell_owed || machine.before.event_head != machine.after.event_head),
	      "no bell without an event");
	prove(!machine.after.bell_owed, "no bell stays owed");
	possible(done);
	possible(!done || NEVER_REFUSED);
	possible((from != to && pages == FLEX_CALL_PAGES_MAX) || !MOVES);
	possible((done && named && from == FLEX_STATE_NORMAL) || !IS(RETURN));
	return 0;
}
