/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The driver's limits, and why each is what it is. Those named ..._DEFAULT are module parameters and can
 * be changed while it runs. What one call may name is the interface's: FLEX_CALL_PAGES_MAX (flex.h).
 */
#ifndef FLEXMEM_LIMITS_H
#define FLEXMEM_LIMITS_H

/* ---- handing over (pool.c) ---- */

#define FLEX_ORDER_MAX 9 /* 2 MiB: a call, and what Linux likes to keep in one piece */
#define FLEX_ORDERS (FLEX_ORDER_MAX + 1)

/* Percent of RAM that a grant leaves available: without it, a grant would press on the kernel itself. */
#define FLEX_RESERVE_PERCENT_DEFAULT 4

/*
 * How long a call is made again while the secure world's ring is full. Rings have 4096 slots, so that
 * ends as soon as it reads its events; one that does not in a second is not running.
 */
#define FLEX_PATIENCE_MS 1000

/* ---- notices (service.c) ---- */

/* Before POLL again when it said WAIT, which the interface wants in some tens of microseconds. */
#define FLEX_WAIT_US 50U
/* Doubled with each WAIT, so often: a device that is slow costs a POLL each 3.2 ms at most. */
#define FLEX_WAITS_MAX 6U

/* ---- a disk (disk.c) ---- */

/*
 * How long a disk has for a command of 2 MiB at most, or to have what was written stay. One that takes longer is
 * not used any more, so that is far more than one needs which shares its host with a build.
 */
#define FLEX_DISK_MS_DEFAULT 30000

/* ---- the driver's end (debugfs.c) ---- */

/* How long `detach` waits for everything: the secure world may first finish what it is at. */
#define FLEX_DRAIN_MS_DEFAULT 10000
/* Between two looks whether everything came. */
#define FLEX_DRAIN_LOOK_MS 5

/* ---- pressure (shrinker.c) ---- */

/* By when the secure world should have given what was asked for, in milliseconds; then it is asked again. */
#define FLEX_DEADLINE_MS_DEFAULT 100

/* Pages of a demand at least: one chunk of the secure world. */
#define FLEX_DEMAND_PAGES_MIN 512
/* MiB of a demand at most, but for what a scan wants: demands double up to here. */
#define FLEX_DEMAND_MIB_DEFAULT 64
/* Demands that follow each other within that time double: a program fills memory, not a page cache. */
#define FLEX_EPISODE_MS 500

/* How long the OOM killer waits at most: the alternative is to kill. */
#define FLEX_OOM_WAIT_MS_DEFAULT 2000

/* ---- protection on demand (ondemand.c) ---- */

/* Protection goes off when nothing is handed over for so long; switching it costs the next call time. */
#define FLEX_IDLE_MS_DEFAULT 10000
/* While that is 0, never: so soon it is seen that it was changed. */
#define FLEX_IDLE_LOOK_MS 1000

#endif
