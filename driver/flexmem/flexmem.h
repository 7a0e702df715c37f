/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Flex-Mem: memory that this kernel hands to the secure world, and takes back when it needs it.
 *
 *   main.c        the ladder up and down
 *   smc.c         calls of the monitor (abi/flex.h says what they do)
 *   blocks.c      pages to be handed over: the allocator
 *   pool.c        the pages handed over: allocate → GRANT, TAKE or RETURN → free
 *   service.c     notices of the monitor: interrupt → POLL → what they ask for
 *   shrinker.c    memory pressure of this kernel → PRESSURE
 *   contiguous.c  another allocator, for baselines: the CMA area
 *   ring.c        messages between the secure world and user space: where they lie; what is wanted back
 *   disk.c        what a disk has: read into pages → GRANT; and a buffer of user space's
 *   lend.c        CPU time for the secure world: a thread on each CPU, RUN
 *   ondemand.c    nothing handed over for a while → RELAX
 *   debugfs.c     what is going on
 *   counters.c    what was counted
 *   limits.h      every limit, and why
 *   exported.h    for other modules: the NPU's driver
 *
 * All state is in one `struct flexmem`, made by probe and passed to every function; what is outside of it
 * are module parameters, and the pointer that flexmem_get() tells other modules. Each file changes its own
 * part of the struct only.
 *
 * Locks. `service.lock` is held while a notice is handled, and so serialises everything that grants,
 * takes or frees. Nothing that holds it waits for the secure world, or for a disk. `disk.lock` is held while
 * the disk is at work; `service.lock` is taken under it. Counters are atomic.
 */
#ifndef FLEXMEM_H
#define FLEXMEM_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/platform_device.h>
#include <linux/shrinker.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "counters.h"
#include "exported.h"
#include "limits.h"

struct flex_contiguous {
	unsigned long first, count; /* of the CMA area: frame numbers; no area: 0 */
};

struct flex_pool { /* under service.lock, but for what is atomic */
	unsigned long first, count; /* pages that could be handed over: by frame number */
	unsigned long *held;	    /* a bit for each: it is handed over */
	unsigned long *heads;	    /* a bit for each: a block begins here, whose order its private word holds */
	atomic_long_t pages;
	atomic_long_t of_order[FLEX_ORDERS];
};

struct flex_service {
	struct mutex lock;
	struct workqueue_struct *queue;
	struct work_struct work;
	int irq;
	bool attached, closing; /* written by one, read by anybody */

	/* Under lock. */
	struct flex_results put_aside; /* a WANT or GONE, unless its kind is NONE */
	void (*listener)(void *data, const struct flex_results *notice);
	void *listener_data;
	unsigned int waits; /* answers WAIT in a row */
	u64 waiting_since;  /* ns, while `waits` */
};

struct flex_pressure {
	struct shrinker shrinker;
	struct notifier_block oom;
	atomic_long_t asked_at;	  /* jiffies of the outstanding demand */
	atomic_long_t held_after; /* what is held when it has been met */
	unsigned long step;	  /* what the next one asks for at least; a race loses a doubling */
};

enum flex_lending_state {
	FLEX_LENDING_POSSIBLE, /* as far as is known: each RUN was served */
	FLEX_LENDING_NOBODY,   /* there is no secure OS, or it is not protected */
	FLEX_LENDING_ENDED,
};

struct flex_lending {
	bool on; /* by who tests; all of this is written by one and read by anybody */
	enum flex_lending_state state;
	atomic_t said; /* how often something was said to the secure world; wraps */
	wait_queue_head_t idle;
};

struct flexmem_ring_demand;
struct reserved_mem;
struct device_node;

struct flex_ring {
	u64 page; /* the number of the first one */
	u64 pages;
	spinlock_t lock; /* of the next; taken in any context */
	struct flexmem_ring_demand *demand;
};

struct flex_disk {
	struct mutex lock;
	struct block_device *device; /* from the first command on */
	struct page *buffer;	     /* NULL: the device tree sets none aside */
	unsigned long buffer_pages;
	bool silent; /* it left something undone in its time */
};

struct flexmem {
	struct flex_counters counters;
	struct task_struct *allocating; /* who is inside flex_blocks_alloc(): blocks.c; read by anybody */
	struct flex_contiguous contiguous;
	struct flex_pool pool;
	struct flex_service service;
	struct flex_pressure pressure;
	struct flex_lending lending;
	struct flex_ring ring;
	struct flex_disk disk;
	struct delayed_work relax; /* ondemand.c */
	struct dentry *folder;	   /* debugfs.c */
};

/* ---- smc.c, which also has flex_call() ---- */

/* Makes a call again for as long as it is BUSY, sleeping in between, for about FLEX_PATIENCE_MS. */
int flex_call_patiently(struct flexmem *fm, enum flex_call call, u64 a, u64 b);

/* ---- blocks.c: under service.lock, but for the first one and the last one ---- */

long flex_blocks_spare(void); /* pages that may be handed over now; less than 0: this kernel lacks them itself */

/* Adds blocks of together at most `pages` pages to `blocks`, by address; returns how many pages. May sleep. */
unsigned long flex_blocks_alloc(struct flexmem *fm, unsigned long pages, struct list_head *blocks);
void flex_blocks_free(struct list_head *blocks); /* any context that may free pages; no lock */
bool flex_blocks_allocating(struct flexmem *fm); /* whether the caller is inside flex_blocks_alloc() */

/* ---- pool.c: under service.lock, but for what is atomic ---- */

struct flex_layout {
	phys_addr_t ram_base, hidden_base; /* what can be handed over lies between */
};

int flex_pool_init(struct flexmem *fm, const struct flex_layout *layout);
void flex_pool_exit(struct flexmem *fm); /* only while nothing is held */

/*
 * Hands over `pages` pages, or fewer, and returns how many; 0 when fewer than `minimum` could be had.
 */
unsigned long flex_pool_grant(struct flexmem *fm, unsigned long pages, unsigned long minimum);

/* The same with pages that are allocated. What is not handed over stays in `blocks`. The caller holds the module. */
unsigned long flex_pool_grant_blocks(struct flexmem *fm, struct list_head *blocks);

/*
 * Gets pages back by TAKE (what the secure world used) or RETURN (what it never did) and frees them.
 * Those of the range that are not held, or that the monitor does not give, are left as they are.
 * Returns how many came.
 */
unsigned long flex_pool_take(struct flexmem *fm, phys_addr_t ipa, unsigned long pages);
unsigned long flex_pool_return(struct flexmem *fm, phys_addr_t ipa, unsigned long pages);

/* Gets everything back that the monitor gives: for when the secure world is gone. */
unsigned long flex_pool_recover(struct flexmem *fm);

unsigned long flex_pool_held(struct flexmem *fm);		     /* pages; any context */
unsigned long flex_pool_held_of(struct flexmem *fm, unsigned int order); /* pages in blocks of that order */
bool flex_pool_holds_any(struct flexmem *fm, unsigned long pfn, unsigned long pages);

/* ---- contiguous.c ---- */

bool flex_contiguous_chosen(void); /* module parameter: allocate from the CMA area */
int flex_contiguous_init(struct flexmem *fm, struct device_node *node);
/* Adds one run of `pages` pages to `blocks`, as pages of order 0; -EBUSY when there is none. */
int flex_contiguous_alloc(struct flexmem *fm, unsigned long pages, struct list_head *blocks);

/* ---- service.c, which also has flex_listen() and flex_service_kick() ---- */

int flex_service_init(struct flexmem *fm);
/* Waits for what is under way and ends it; after flex_service_stop(), if it was started. */
void flex_service_exit(struct flexmem *fm);
/* From the first to the second the monitor's interrupt is heard, and memory may be handed over. */
int flex_service_start(struct flexmem *fm, struct platform_device *device);
void flex_service_stop(struct flexmem *fm);

/*
 * Handles the notices that need no allocation until `enough` pages came back, if nobody else is at
 * it. Never waits. Returns the pages that came back.
 */
unsigned long flex_service_reap(struct flexmem *fm, unsigned long enough);
bool flex_service_attached(struct flexmem *fm);
/* Asks for everything and waits for it, at most `ms`. 0, or -EBUSY when the secure world keeps some. */
int flex_service_close(struct flexmem *fm, unsigned int ms);
void flex_service_open(struct flexmem *fm);

/* ---- shrinker.c ---- */

int flex_shrinker_init(struct flexmem *fm);
void flex_shrinker_exit(struct flexmem *fm);

/* ---- ring.c ---- */

/* Memory that the device tree sets aside under a name, or NULL. */
struct reserved_mem *flex_area(struct device_node *node, const char *name);
int flex_ring_init(struct flexmem *fm, struct device_node *node);
/* Says there that so many pages are wanted within that time. */
void flex_ring_demand(struct flexmem *fm, unsigned long pages, unsigned int ms);

/* ---- disk.c ---- */

void flex_disk_init(struct flexmem *fm, struct device_node *node);
void flex_disk_exit(struct flexmem *fm); /* while nobody commands it */

/*
 * Carries a command out, which is a line of words (disk.c has them). Returns the length of what is to be said, as
 * lines "name value" in `text`, or -errno: -EINVAL for none of them, -ENOMEM when there are no pages to read
 * to, -EIO and the like for what the disk says, -ETIMEDOUT when it says nothing. May sleep.
 */
ssize_t flex_disk_command(struct flexmem *fm, const char *line, char *text, size_t room);

/* ---- lend.c ---- */

void flex_lend_init(struct flexmem *fm);
/* From the first to the second this kernel's CPUs are lent, if there is a secure OS. The second may wait. */
int flex_lend_start(struct flexmem *fm);
void flex_lend_stop(struct flexmem *fm);
bool flex_lends(struct flexmem *fm); /* whether CPUs are lent, as far as is known */
void flex_lend_said(struct flexmem *fm); /* something was said to the secure world; any context */
void flex_lend_switch(struct flexmem *fm, bool on); /* for tests: whether they are lent; may sleep */

/* ---- ondemand.c ---- */

void flex_ondemand_init(struct flexmem *fm);
void flex_ondemand_exit(struct flexmem *fm);
void flex_ondemand_touch(struct flexmem *fm); /* something happened: the idle window begins anew */

/* ---- debugfs.c ---- */

void flex_debugfs_init(struct flexmem *fm);
void flex_debugfs_exit(struct flexmem *fm);

#endif
