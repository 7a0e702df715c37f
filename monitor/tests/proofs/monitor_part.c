#include "core/monitor.c"

#include "tests/proofs/parts.h"

/* The rest of the layout is looked at when the monitor starts only. */
void monitor_any(void)
{
	layout.ram_base = small.base;
	layout.ram_bytes = small.pages * FLEX_PAGE_BYTES;
	layout.pages = small.pages;
	layout.hidden_base = small.base + small.hidden * FLEX_PAGE_BYTES;
}
