/* The words of the monitor, and the description of the board that it runs on. */
#ifndef MONITOR_TYPES_H
#define MONITOR_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "flex.h"

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

#define BLOCK_BYTES 0x200000ULL /* what one level-3 table maps */

/* What a real board's fuses would say. */
struct board {
	u64 magic;
	u64 ram_base; /* a multiple of 1 GiB; RAM ends below 4 GiB */
	u64 ram_bytes; /* a multiple of BLOCK_BYTES */
	u64 cpus;
	u64 npu; /* how many: 0 or 1 */
};

/* Device registers that the normal world may use. Whole blocks, or whole pages of one block (of two blocks in all). */
struct window {
	u64 base;
	u64 bytes;
};

#endif
