/* What the compiler takes for granted, for EL2 and EL3 alike. */

#include "core/types.h"

void *memset(void *to, int value, size_t count)
{
	u8 *byte = to;

	while (count--)
		*byte++ = (u8)value;
	return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t count)
{
	u8 *byte = to;
	const u8 *source = from;

	while (count--)
		*byte++ = *source++;
	return to;
}
