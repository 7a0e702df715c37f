#include "core/monitor.c"

#include "tests/proofs/parts.h"
#include "tests/proofs/device.h"

/* The rest of the layout is looked at when the monitor starts only. */
void monitor_any(void)
{
	layout.ram_base = small.base;
	layout.ram_bytes = small.pages * FLEX_PAGE_BYTES;
	layout.pages = small.pages;
	layout.hidden_base = small.base + small.hidden * FLEX_PAGE_BYTES;
	layout.npu = small.npus;
	layout.window = small.base + small.window * FLEX_PAGE_BYTES;
	layout.devices.level1 = DEVICES_TREE;
	layout.secure.level1 = SECURE_TREE;
	layout.code = SANDBOX;
	layout.stack = SANDBOX + FLEX_NPU_CODE_BYTES_MAX;
}
