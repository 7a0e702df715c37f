#include "core/redistributor.h"

#define CONTROL 0x0000
#define IMPLEMENTER 0x0004
#define TYPE 0x0008
#define IDENTITY 0xffd0 /* … to the end of the frame */
#define END 0x10000

#define CONTROL_PENDING (1U << 31 | 1U << 3) /* a write that is under way */
#define WAKER_SLEEP (1U << 2 | 1U << 1)
/* Of TYPE: LPIs, virtual ones, their upkeep, whose tables they share. That it is the last frame stays. */
#define TYPE_LPIS (3ULL << 24 | 0xefULL)

u64 redistributor_shown(u64 offset, u64 bytes)
{
	if (offset == TYPE && bytes == 8)
		return ~TYPE_LPIS;
	if (bytes != 4 || offset % 4 != 0)
		return 0;
	switch (offset) {
	case CONTROL:
		return CONTROL_PENDING;
	case IMPLEMENTER:
	case TYPE + 4:
		return ~0U;
	case TYPE:
		return ~(u32)TYPE_LPIS;
	case REDISTRIBUTOR_WAKER:
		return WAKER_SLEEP;
	default:
		return offset >= IDENTITY && offset < END ? ~0U : 0;
	}
}
