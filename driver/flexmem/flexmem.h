/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Flex-Mem: memory that this kernel hands to the secure world, and takes back when it needs it.
 *
 *   main.c        the ladder up and down
 *   smc.c         calls of the monitor (abi/flex.h says what they do)
 *   pool.c        the pages handed over: allocate → GRANT, TAKE or RETURN → free
 *   service.c     notices of the monitor: interrupt → POLL → what they ask for
 *   shrinker.c    memory pressure of this kernel → PRESSURE
 *   contiguous.c  another allocator, for baselines: the CMA area
 *   ondemand.c    nothing handed over for a while → RELAX
 *   debugfs.c     what is going on
 *   exported.h    for other modules: the NPU's driver
 *
 * Locks. `service` (service.c) is held while a notice is handled, and so serialises everything that
 * grants, takes or frees. Nothing that holds it waits for the secure world. Counters are atomic.
 */
#ifndef FLEXMEM_H
#define FLEXMEM_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/platform_device.h>
#include <linux/types.h>

#include "exported.h"

#define FLEX_ORDER_MAX 9 /* 2 MiB: a call, and what Linux likes to keep in one piece */
#define FLEX_ORDERS (FLEX_ORDER_MAX + 1)

/* ---- smc.c, which also has flex_call() ---- */

/*
 * Makes a call again for as long as it is BUSY, sleeping in between, for about `ms` milliseconds:
 * rings have 4096 slots, so this ends as soon as the secure world reads its events.
 */
int flex_call_patiently(enum flex_call call, u64 a, u64 b, unsigned int ms);

/* ---- pool.c: under service, but for the counters ---- */

struct flex_layout {
	phys_addr_t ram_base, hidden_base; /* what can be handed over lies between */
};

int flex_pool_init(const struct flex_layout *layout);
void flex_pool_exit(void); /* only while nothing is held */

/*
 * Hands over `pages` pages, or fewer, and returns how many; 0 when fewer than `minimum` could be had.
 */
unsigned long flex_pool_grant(unsigned long pages, unsigned long minimum);

/*
 * Gets pages back by TAKE (what the secure world used) or RETURN (what it never did) and frees them.
 * Those of the range that are not held, or that the monitor does not give, are left as they are.
 * Returns how many came.
 */
unsigned long flex_pool_take(phys_addr_t ipa, unsigned long pages);
unsigned long flex_pool_return(phys_addr_t ipa, unsigned long pages);

/* Gets everything back that the monitor gives: for when the secure world is gone. */
unsigned long flex_pool_recover(void);

unsigned long flex_pool_held(void);		 /* pages; any context */
unsigned long flex_pool_held_of(unsigned int order); /* pages in blocks of that order */
bool flex_pool_is_granting(void);		 /* whether the caller is inside flex_pool_grant */
bool flex_pool_holds_any(unsigned long pfn, unsigned long pages);

/* ---- contiguous.c ---- */

extern bool flex_contiguous; /* module parameter: allocate from the CMA area */

int flex_contiguous_init(struct device_node *node);
/* Adds one run of `pages` pages to `blocks`, as pages of order 0; -EBUSY when there is none. */
int flex_contiguous_alloc(unsigned long pages, struct list_head *blocks);

/* ---- service.c, which also has flex_listen() and flex_service_kick() ---- */

int flex_service_init(struct platform_device *device);
void flex_service_exit(struct platform_device *device);
/*
 * Handles the notices that need no allocation until `enough` pages came back, if nobody else is at
 * it. Never waits. Returns the pages that came back.
 */
unsigned long flex_service_reap(unsigned long enough);
bool flex_service_attached(void);
/* Asks for everything and waits for it, at most `ms`. 0, or -EBUSY when the secure world keeps some. */
int flex_service_close(unsigned int ms);
void flex_service_open(void);

/* ---- shrinker.c ---- */

int flex_shrinker_init(void);
void flex_shrinker_exit(void);

/* ---- ondemand.c ---- */

void flex_ondemand_init(void);
void flex_ondemand_exit(void);
void flex_ondemand_touch(void); /* something happened: the idle window begins anew */

/* ---- debugfs.c ---- */

enum flex_counter {
	FLEX_COUNT_WANTS,	    /* notices WANT */
	FLEX_COUNT_WANTED,	    /* pages they asked for */
	FLEX_COUNT_GRANTED,	    /* pages handed over */
	FLEX_COUNT_TAKEN,	    /* pages back, scrubbed */
	FLEX_COUNT_RETURNED,	    /* pages back, never used */
	FLEX_COUNT_DENIED,	    /* calls that the monitor refused */
	FLEX_COUNT_ALLOCATE_NS,	    /* time in the allocator */
	FLEX_COUNT_GRANT_NS,	    /* time in GRANT */
	FLEX_COUNT_TAKE_NS,	    /* time in TAKE and RETURN */
	FLEX_COUNT_FREE_NS,	    /* time giving pages to the allocator */
	FLEX_COUNT_POLL_NS,	    /* time in POLL: in what the secure world had carried out */
	FLEX_COUNT_WAIT_NS,	    /* time in which POLL said WAIT */
	FLEX_COUNT_SCANS,	    /* calls of the shrinker */
	FLEX_COUNT_PRESSURES,	    /* demands sent */
	FLEX_COUNT_PRESSURE_PAGES,  /* and their pages */
	FLEX_COUNT_OOM_WAITS,	    /* times that the OOM killer waited for us */
	FLEX_COUNT_OOM_PAGES,	    /* what came in them */
	FLEX_COUNT_RELAXES,	    /* times that protection went off */
	FLEX_COUNTERS,
};

void flex_count(enum flex_counter counter, u64 amount);
void flex_debugfs_init(void);
void flex_debugfs_exit(void);

#endif
