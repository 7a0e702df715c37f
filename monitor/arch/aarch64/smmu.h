/*
 * The SMMUv3 in front of every device, which belongs to the monitor: the OS has neither its registers nor
 * a node of it in its device tree. All streams share one context, that of the devices' tables.
 */
#ifndef AARCH64_SMMU_H
#define AARCH64_SMMU_H

#include "core/layout.h"

/* Program it from nothing. Until that is done, no device reaches memory. */
void smmu_init(const struct layout *layout);

/* Forget all translations; returns when that is done. Callers hold the lock. */
void smmu_flush(void);

#endif
