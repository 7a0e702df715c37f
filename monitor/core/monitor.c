#include "core/monitor.h"

#include "arch/arch.h"
#include "core/calls.h"
#include "core/mailbox.h"
#include "core/notices.h"
#include "core/npu.h"
#include "core/pages.h"
#include "core/secure.h"
#include "core/selftest.h"
#include "core/tables.h"

static struct layout layout;
static const struct window *registers;
static u32 register_windows;

bool monitor_init(const struct board *board, const struct window *windows, u32 count)
{
	registers = windows;
	register_windows = count;
	if (!layout_make(&layout, board))
		return false;
	monitor_rebuild();
	selftest_run(&layout);
	return true;
}

/* At reset, and when protection comes back on: each page and the NPU as they are at first. */
void monitor_rebuild(void)
{
	pages_init(&layout);
	tables_init(&layout, registers, register_windows);
	mailbox_init(&layout);
	notices_init();
	npu_init(&layout);
	secure_init();
}

void monitor_call(u64 x[MONITOR_REGISTERS])
{
	arch_lock();
	calls_serve(x);
	mailbox_ring();
	arch_unlock();
}

/* The end: each page that is SECURE => RECALLING, and overwritten with zeros; the NPU ENTERING or SECURE => LEAVING. */
void monitor_end(void)
{
	struct range some;
	u64 page, count;

	arch_lock();
	npu_leave(); /* it writes nothing any more */
	for (page = 0; page < layout.pages; page += some.count) {
		some = pages_from(page);
		tables_close(some);
		pages_sweep(FLEX_MOVE_RECALL, some);
	}
	for (page = 0; page < layout.pages; page += count) {
		count = pages_alike(page, FLEX_CALL_PAGES_MAX);
		if (pages_state(page) == FLEX_STATE_RECALLING)
			arch_scrub(layout.ram_base + page * FLEX_PAGE_BYTES, count);
	}
}

/* A stopped access: changes no page. Refused (MONITOR_BLOCK): a page that is not NORMAL, and what is no page of RAM. */
enum monitor_verdict monitor_fault(u64 ipa)
{
	enum monitor_verdict verdict = MONITOR_BLOCK;
	struct range range;

	arch_lock();
	if (pages_range(ipa / FLEX_PAGE_BYTES * FLEX_PAGE_BYTES, 1, &range) &&
	    pages_state(range.first) == FLEX_STATE_NORMAL)
		verdict = MONITOR_RETRY;
	else
		mailbox_fault();
	arch_unlock();
	return verdict;
}

const struct layout *monitor_layout(void)
{
	return &layout;
}
