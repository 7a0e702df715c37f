/* What EL3 says of EL2 to the secure world: no state, no registers, so that it is tested on any machine. */
#ifndef MEASURED_H
#define MEASURED_H

#include "core/sha256.h"
#include "flex_measured.h"

/* Say `protection` and the digest of EL2's image, byte by byte. */
void measured_say(enum flex_measured protection, const struct digest *image, void (*say)(u8 byte));

/* Whether what was copied from `image` is still as it was, up to `bytes`, a multiple of 8. */
bool measured_is_whole(const u64 *image, const u64 *copy, u64 bytes);

#endif
