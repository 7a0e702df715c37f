/*
 * Where everything of the monitor lies: from hidden_base, the last FLEX_HIDDEN_BYTES of RAM.
 *
 *     image      1 MiB   EL2's code, constants, data and stacks
 *     window     64 KiB  the NPU's registers: of all this what the OS may reach, while the NPU is its own
 *     control    64 KiB  a page between monitor and NPU; behind it the sandbox for what drives the NPU: code,
 *                        a page of stack, and the tables (a page for each level) that map these and the window
 *     states             one byte for each page of RAM
 *     three trees        for Stage-2, for devices, for an NPU of the secure world: level 1 (one page), level 2 (a page for each
 *                        GiB of the 4 GiB that are translated), level 3 (a page for each block of RAM),
 *                        two more level 3 for registers that do not fill a block
 *     mailbox            header and two rings, shared with the secure world, which finds it at the end of RAM
 */
#ifndef MONITOR_LAYOUT_H
#define MONITOR_LAYOUT_H

#include "core/limits.h"
#include "core/types.h"

#define IMAGE_BYTES 0x100000ULL
#define SANDBOX_PAGES (FLEX_NPU_CODE_BYTES_MAX / FLEX_PAGE_BYTES + 1)
#define MAILBOX_BYTES (FLEX_MAILBOX_HEADER_BYTES + 2ULL * FLEX_MAILBOX_SLOTS * FLEX_MAILBOX_SLOT_BYTES)

/* Physical addresses of one tree of tables. */
struct tree {
	u64 level1;
	u64 level2;
	u64 level3;
	u64 registers;
};

struct layout {
	u64 ram_base;
	u64 ram_bytes;
	u64 pages;
	u64 hidden_base;
	u64 npu; /* how many: 0 or 1 */
	u64 window;
	u64 control;
	u64 code;
	u64 stack;
	u64 sandbox; /* its level 1; level 2 and level 3 follow */
	u64 states;
	struct tree stage2;
	struct tree devices;
	struct tree secure;
	u64 mailbox;
};

/* Fill in `layout`; false when the board is not one that the monitor can run on. */
bool layout_make(struct layout *layout, const struct board *board);

#endif
