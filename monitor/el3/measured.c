/* 65 bytes that no byte of the doorbell can be taken for: another CPU may ring between two of them. */

#include "el3/measured.h"

void measured_say(enum flex_measured protection, const struct digest *image, void (*say)(u8 byte))
{
	u32 i;

	say((u8)protection);
	for (i = 0; i < sizeof(image->bytes); i++) {
		say((u8)(FLEX_MEASURED_NIBBLE | image->bytes[i] >> 4));
		say((u8)(FLEX_MEASURED_NIBBLE | (image->bytes[i] & 0xf)));
	}
}

bool measured_is_whole(const u64 *image, const u64 *copy, u64 bytes)
{
	u64 differ = 0, i;

	for (i = 0; i < bytes / sizeof(u64); i++)
		differ |= image[i] ^ copy[i];
	return differ == 0;
}
