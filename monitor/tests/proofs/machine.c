#include "tests/proofs/machine.h"
#include "tests/proofs/device.h"

#include "arch/arch.h"

struct small small;
struct machine machine;

static u8 states[PAGES];
static u64 stage2[PAGES];
static u64 devices[PAGES];
static u64 secure[PAGES];
static u64 mailbox[MAILBOX_WORDS];

/* What others remember of the watched page, and what is in it. */
static bool reached_by_cpu;
static bool reached_by_device;
static bool secret;

/* Whether the watched page is one of the registers that the OS has. */
static bool lent(void)
{
	return is_register(small.watched) && npu_state() == FLEX_NPU_STATE_NORMAL;
}

/* Any machine of 1 to PAGES pages in any state of the invariant, and the worst that others can remember. */
static void machine_any(void)
{
	u8 state;

	small.base = (u64)(1 + nondet_u8() % 3) << 30;
	small.pages = 1 + nondet_u8() % PAGES;
	small.hidden = nondet_u8() % (PAGES + 1);
	small.states = states;
	small.stage2 = stage2;
	small.devices = devices;
	small.secure = secure;
	small.mailbox = mailbox;
	small.watched = nondet_u8() % PAGES;
	small.watched_word = nondet_u8() % MAILBOX_WORDS;
	small.watched_slot = nondet_u8() % SMALL_NOTICES;
	small.npus = nondet_bool();
	small.window = nondet_u8() % PAGES;
	assume(small.hidden <= small.pages && small.watched < small.pages);
	assume(!small.npus || (small.window >= small.hidden &&
			       small.window + FLEX_NPU_WINDOW_BYTES / FLEX_PAGE_BYTES <= small.pages));
	monitor_any();
	pages_any();
	npu_any();
	tables_any();
	mailbox_any();
	notices_any();
	secure_any();
	assume(npu_holds());
	device_any();
	state = pages_state(small.watched);
	reached_by_device = state == FLEX_STATE_NORMAL;
	reached_by_cpu = state == FLEX_STATE_NORMAL || lent();
	secret = state == FLEX_STATE_SECURE || state == FLEX_STATE_RECALLING;
}

static struct view view(void)
{
	struct view now;

	pages_view(&now);
	tables_view(&now);
	mailbox_view(&now);
	notices_view(&now);
	secure_view(&now);
	npu_view(&now);
	return now;
}

static bool leads_home(u64 leaf)
{
	return leaf == 0 || (leaf & 0x0000fffffffff000ULL) == small.base + small.watched * FLEX_PAGE_BYTES;
}

void machine_moment(void)
{
	u8 state = pages_state(small.watched);
	struct view now;

	prove(machine.held, "nothing is done without the lock");
	tables_view(&now);
	prove(leads_home(now.stage2) && leads_home(now.devices) && leads_home(now.secure),
	      "a leaf leads to its own page, or nowhere");
	reached_by_cpu |= now.stage2 != 0;
	reached_by_device |= now.devices != 0;
	secret |= state == FLEX_STATE_SECURE;
	prove(!reached_by_cpu || state == FLEX_STATE_NORMAL || lent(), "a page that a CPU can reach is NORMAL");
	prove(!reached_by_device || state == FLEX_STATE_NORMAL, "a page that a device can reach is NORMAL");
	prove(!secret || (state != FLEX_STATE_NORMAL && state != FLEX_STATE_GRANTED),
	      "what is NORMAL or GRANTED holds no secret");
	device_moment();
}

bool machine_may_step(u8 from, u8 to)
{
	return from == to || (from == FLEX_STATE_GRANTED && to == FLEX_STATE_SECURE) ||
	       (from == FLEX_STATE_SECURE && to == FLEX_STATE_RECALLING);
}

bool machine_may_pass(enum flex_npu_state from, enum flex_npu_state to)
{
	return from == to || (from == FLEX_NPU_STATE_ENTERING && to == FLEX_NPU_STATE_SECURE) ||
	       (from == FLEX_NPU_STATE_ENTERING && to == FLEX_NPU_STATE_LEAVING) ||
	       (from == FLEX_NPU_STATE_SECURE && to == FLEX_NPU_STATE_LEAVING) ||
	       (from == FLEX_NPU_STATE_LEAVING && to == FLEX_NPU_STATE_NORMAL);
}

bool machine_has_secret(void)
{
	return secret;
}

bool machine_kept(void)
{
	const struct view *old = &machine.before, *new = &machine.after;
	bool same = old->state == new->state && old->stage2 == new->stage2 && old->devices == new->devices &&
		    old->secure == new->secure;
	u32 i;

	for (i = 0; i < STATES; i++)
		same = same && old->counts[i] == new->counts[i];
	same = same && old->notice.kind == new->notice.kind && old->notice.a == new->notice.a &&
	       old->notice.b == new->notice.b && old->notice.c == new->notice.c &&
	       old->notice_head == new->notice_head && old->notice_tail == new->notice_tail;
	same = same && old->word == new->word && old->command_tail == new->command_tail &&
	       old->event_head == new->event_head && old->faults == new->faults;
	same = same && old->npu == new->npu && old->wanted == new->wanted &&
	       old->wanted_serial == new->wanted_serial && old->driving == new->driving &&
	       old->driving_turns == new->driving_turns && old->driving_serial == new->driving_serial;
	return same && old->attached == new->attached && old->leaving == new->leaving &&
	       old->leaving_epoch == new->leaving_epoch && old->leaving_next == new->leaving_next;
}

/* ---- what arch/arch.h asks for ------------------------------------------------------------------- */

void arch_lock(void)
{
	prove(!machine.held, "the lock is not taken twice");
	machine_any();
	machine.before = view();
	machine.held = true;
	machine_moment();
}

void arch_unlock(void)
{
	machine_moment();
	machine.after = view();
	machine.held = false;
	prove(pages_hold(), "each page is in one state, the monitor's pages are the monitor's, the counts are true");
	prove(tables_hold(), "the normal world's tables have exactly what is NORMAL, the secure NPU's what is SECURE");
	prove(mailbox_holds(), "the mailbox stays where it is");
	prove(notices_hold(), "no notice was lost");
	prove(secure_holds(), "no page stays SECURE when its user is gone");
	prove(npu_holds(), "only who is attached has the NPU, and only that it is driven");
	prove(device_holds(), "what the NPU reaches, and who reaches it, is what its state says");
}

static void prove_untold(void)
{
	struct view now;

	mailbox_view(&now);
	prove(now.event_head == machine.before.event_head, "nothing is told before the flush");
}

void arch_flush_stage2(void)
{
	machine_moment();
	prove_untold();
	reached_by_cpu = false;
	device_flush_stage2();
}

void arch_flush_devices(void)
{
	machine_moment();
	prove_untold();
	reached_by_device = false;
}

void arch_scrub(u64 pa, u64 pages)
{
	u64 watched = small.base + small.watched * FLEX_PAGE_BYTES;

	machine_moment();
	if (small.npus && device_scrubs(pa, pages))
		return;
	prove(pa >= small.base && pa % FLEX_PAGE_BYTES == 0 && pages <= small.pages &&
		      pa <= small.base + (small.pages - pages) * FLEX_PAGE_BYTES,
	      "only RAM is scrubbed");
	if (watched < pa || watched >= pa + pages * FLEX_PAGE_BYTES)
		return;
	prove(pages_state(small.watched) == FLEX_STATE_RECALLING, "only what is RECALLING is scrubbed");
	machine.scrubbed = true;
	secret = false;
}

void arch_ring_secure(void)
{
	machine_moment();
	machine.rings++;
}

int arch_relax(void)
{
	u8 state = pages_state(small.watched);

	machine_moment();
	prove(state == FLEX_STATE_NORMAL || state == FLEX_STATE_MONITOR,
	      "protection stays on while a page is handed over");
	prove(!secure_attached(), "protection stays on while somebody is attached");
	prove(!npu_is_away(), "protection stays on while the OS does not have the NPU");
	if (nondet_bool())
		return FLEX_STATUS_BUSY;
	machine.relaxed++;
	return FLEX_STATUS_OK;
}

void arch_barrier(void)
{
	machine_moment();
}

_Noreturn void arch_panic(const char *why)
{
	(void)why;
	prove(false, "the monitor never panics");
	assume(false);
	while (true)
		;
}
