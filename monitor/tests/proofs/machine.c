#include "tests/proofs/machine.h"

#include "arch/arch.h"

struct small small;
struct machine machine;

static u8 states[PAGES];
static u64 stage2[PAGES];
static u64 devices[PAGES];
static u64 mailbox[MAILBOX_WORDS];

/* What others remember of the watched page, and what is in it. */
static bool reached_by_cpu;
static bool reached_by_device;
static bool secret;

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
	small.mailbox = mailbox;
	small.watched = nondet_u8() % PAGES;
	small.watched_word = nondet_u8() % MAILBOX_WORDS;
	small.watched_slot = nondet_u8() % SMALL_NOTICES;
	assume(small.hidden <= small.pages && small.watched < small.pages);
	monitor_any();
	pages_any();
	tables_any();
	mailbox_any();
	notices_any();
	secure_any();
	state = pages_state(small.watched);
	reached_by_cpu = reached_by_device = state == FLEX_STATE_NORMAL;
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
	return now;
}

static bool leads_home(u64 leaf)
{
	return leaf == 0 || (leaf & 0x0000fffffffff000ULL) == small.base + small.watched * FLEX_PAGE_BYTES;
}

static void moment(void)
{
	u8 state = pages_state(small.watched);
	struct view now;

	prove(machine.held, "nothing is done without the lock");
	tables_view(&now);
	prove(leads_home(now.stage2) && leads_home(now.devices), "a leaf leads to its own page, or nowhere");
	reached_by_cpu |= now.stage2 != 0;
	reached_by_device |= now.devices != 0;
	secret |= state == FLEX_STATE_SECURE;
	prove(!reached_by_cpu || state == FLEX_STATE_NORMAL, "a page that a CPU can reach is NORMAL");
	prove(!reached_by_device || state == FLEX_STATE_NORMAL, "a page that a device can reach is NORMAL");
	prove(!secret || (state != FLEX_STATE_NORMAL && state != FLEX_STATE_GRANTED),
	      "what is NORMAL or GRANTED holds no secret");
}

bool machine_kept(void)
{
	const struct view *old = &machine.before, *new = &machine.after;
	bool same = old->state == new->state && old->stage2 == new->stage2 && old->devices == new->devices;
	u32 i;

	for (i = 0; i < STATES; i++)
		same = same && old->counts[i] == new->counts[i];
	same = same && old->notice.kind == new->notice.kind && old->notice.a == new->notice.a &&
	       old->notice.b == new->notice.b && old->notice.c == new->notice.c &&
	       old->notice_head == new->notice_head && old->notice_tail == new->notice_tail;
	same = same && old->word == new->word && old->command_tail == new->command_tail &&
	       old->event_head == new->event_head && old->faults == new->faults;
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
	moment();
}

void arch_unlock(void)
{
	moment();
	machine.after = view();
	machine.held = false;
	prove(pages_hold(), "each page is in one state, the monitor's pages are the monitor's, the counts are true");
	prove(tables_hold(), "a page is in the tables of the normal world exactly while it is NORMAL");
	prove(mailbox_holds(), "the mailbox stays where it is");
	prove(notices_hold(), "no notice was lost");
	prove(secure_holds(), "no page stays SECURE when its user is gone");
}

void *arch_at(u64 pa)
{
	(void)pa;
	prove(false, "memory is looked up at the start only");
	return NULL;
}

static void prove_untold(void)
{
	struct view now;

	mailbox_view(&now);
	prove(now.event_head == machine.before.event_head, "nothing is told before the flush");
}

void arch_flush_stage2(void)
{
	moment();
	prove_untold();
	reached_by_cpu = false;
}

void arch_flush_devices(void)
{
	moment();
	prove_untold();
	reached_by_device = false;
}

void arch_scrub(u64 pa, u64 pages)
{
	u64 watched = small.base + small.watched * FLEX_PAGE_BYTES;

	moment();
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
	moment();
	machine.rings++;
}

int arch_relax(void)
{
	u8 state = pages_state(small.watched);

	moment();
	prove(state == FLEX_STATE_NORMAL || state == FLEX_STATE_MONITOR,
	      "protection stays on while a page is handed over");
	prove(!secure_attached(), "protection stays on while somebody is attached");
	if (nondet_bool())
		return FLEX_STATUS_BUSY;
	machine.relaxed++;
	return FLEX_STATUS_OK;
}

void arch_barrier(void)
{
	moment();
}

_Noreturn void arch_panic(const char *why)
{
	(void)why;
	prove(false, "the monitor never panics");
	assume(false);
	while (true)
		;
}
