/* SHA-256 as FIPS 180-4 defines it, over memory at once; for EL2 and EL3 alike. */
#ifndef MONITOR_SHA256_H
#define MONITOR_SHA256_H

#include "core/types.h"

struct digest {
	u8 bytes[32];
};

struct digest sha256(const void *data, u64 length);

#endif
