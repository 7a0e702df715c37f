/* The words of the secure OS. The board's description is the monitor's. */
#ifndef SECURE_OS_TYPES_H
#define SECURE_OS_TYPES_H

#include "../../monitor/core/types.h"

typedef uint16_t u16;
typedef int32_t s32;
typedef int64_t s64;

#endif
