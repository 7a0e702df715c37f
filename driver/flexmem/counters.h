/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the driver counts. Any context, no lock: each number is atomic by itself. */
#ifndef FLEXMEM_COUNTERS_H
#define FLEXMEM_COUNTERS_H

#include <linux/atomic.h>
#include <linux/seq_file.h>
#include <linux/types.h>

enum flex_counter {
	FLEX_COUNT_WANTS,		/* notices WANT */
	FLEX_COUNT_WANTED,		/* pages they asked for */
	FLEX_COUNT_GRANTED,		/* pages handed over */
	FLEX_COUNT_TAKEN,		/* pages back, scrubbed */
	FLEX_COUNT_RETURNED,		/* pages back, never used */
	FLEX_COUNT_DENIED,		/* calls that the monitor refused */
	FLEX_COUNT_ALLOCATE_NS,		/* time in the allocator */
	FLEX_COUNT_GRANT_NS,		/* time in GRANT */
	FLEX_COUNT_TAKE_NS,		/* time in TAKE and RETURN */
	FLEX_COUNT_FREE_NS,		/* time giving pages to the allocator */
	FLEX_COUNT_POLL_NS,		/* time in POLL: in what the secure world had carried out */
	FLEX_COUNT_WAIT_NS,		/* time in which POLL said WAIT */
	FLEX_COUNT_SCANS,		/* calls of the shrinker */
	FLEX_COUNT_PRESSURES,		/* demands sent */
	FLEX_COUNT_PRESSURE_PAGES,	/* and their pages */
	FLEX_COUNT_OOM_WAITS,		/* times that the OOM killer waited for us */
	FLEX_COUNT_OOM_PAGES,		/* what came in them */
	FLEX_COUNT_RELAXES,		/* times that protection went off */
	FLEX_COUNT_RUNS,		/* times that a CPU was lent */
	FLEX_COUNT_INTERRUPTED,		/* of these, given back because of an interrupt of ours */
	FLEX_COUNT_IDLES,		/* of these, given back because the secure world had nothing to do */
	FLEX_COUNT_LENT_NS,		/* time in RUN, of all CPUs together */
	FLEX_COUNT_DISK_PAGES,		/* pages that a disk read or wrote */
	FLEX_COUNT_DISK_NS,		/* time in which it did */
	FLEX_COUNT_DISK_ERRORS,		/* commands that it did not carry out */
	FLEX_COUNTERS,
};

struct flex_counters {
	atomic64_t of[FLEX_COUNTERS];
};

void flex_count(struct flex_counters *counters, enum flex_counter counter, u64 amount);
/* Writes a line "name value" for each. */
void flex_counters_show(struct flex_counters *counters, struct seq_file *file);

#endif
