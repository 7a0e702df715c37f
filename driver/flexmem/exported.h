/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What Flex-Mem's driver offers to drivers of what else the monitor keeps: its calls, its notices. */
#ifndef FLEXMEM_EXPORTED_H
#define FLEXMEM_EXPORTED_H

#include <linux/types.h>

#include "flex.h"

struct flexmem;

struct flex_results {
	u64 x[4]; /* x1 … x4 of the answer */
};

/*
 * The driver's one instance; NULL while there is none: then probe later. Who uses this symbol keeps the
 * module loaded, and the instance lives as long as the module, so it stays valid.
 */
struct flexmem *flexmem_get(void);

/* Makes a call. Returns its status; `results` may be NULL. Any context; takes microseconds. */
int flex_call(struct flexmem *fm, enum flex_call call, u64 a, u64 b, u64 c, struct flex_results *results);

/*
 * Has `hear` told, with `data`, the notices of the monitor that are not Flex-Mem's own, or nobody when
 * it is NULL; then it runs no more on return. What comes while nobody hears is lost. `hear` may be called
 * by who reclaims memory: it must not allocate and not wait. May sleep.
 */
void flex_listen(struct flexmem *fm, void (*hear)(void *data, const struct flex_results *notice), void *data);

/* Has the monitor POLLed, for what it has to do now. Any context. */
void flex_service_kick(struct flexmem *fm);

#endif
