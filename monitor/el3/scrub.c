/*
 * RAM, before the normal world's first instruction: whatever was secret before a reset, or a power-on, is gone.
 *
 * After a reset nothing tells which pages were SECURE that could be trusted, so all of RAM is overwritten but for
 * what was loaded for this start, to the byte, and an NPU's registers, which are not memory.
 */

#include "el3/el3.h"

#define STRETCH 256 /* bytes overwritten at a time */

struct kept {
	u64 from;
	u64 bytes;
};

/* How long the kernel, the device tree and the first file system are; patched as el3_board is. */
extern const u64 el3_loaded[3];

void scrub(u64 at, u64 end)
{
	for (; at < end && at % STRETCH != 0; at++)
		*(volatile u8 *)at = 0;
	for (; at + STRETCH <= end; at += STRETCH)
		__asm__ volatile(".set offset, 0\n\t"
				 ".rept %1\n\tstp xzr, xzr, [%0, #offset]\n\t.set offset, offset + 16\n\t.endr"
				 ::"r"(at), "i"(STRETCH / 16) : "memory");
	for (; at < end; at++)
		*(volatile u8 *)at = 0;
}

void scrub_ram(const struct layout *layout)
{
	const struct kept kept[] = {
		{ PLAT_KERNEL, el3_loaded[0] },
		{ PLAT_DEVICE_TREE, el3_loaded[1] },
		{ PLAT_INITRD, el3_loaded[2] },
		{ layout->window, layout->npu ? layout->control + FLEX_PAGE_BYTES - layout->window : 0 },
	};
	u64 at = layout->ram_base, end = layout->ram_base + layout->ram_bytes;
	u32 i;

	for (i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		if (kept[i].from < at || kept[i].bytes > layout->control + FLEX_PAGE_BYTES - kept[i].from)
			panic("what was loaded overlaps", kept[i].from, kept[i].bytes);
		scrub(at, kept[i].from);
		at = kept[i].from + kept[i].bytes;
	}
	scrub(at, end);
	barrier();
}
