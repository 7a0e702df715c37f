// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
#include "counters.h"

static const char *const names[FLEX_COUNTERS] = {
	[FLEX_COUNT_WANTS] = "wants",
	[FLEX_COUNT_WANTED] = "wanted",
	[FLEX_COUNT_GRANTED] = "granted",
	[FLEX_COUNT_TAKEN] = "taken",
	[FLEX_COUNT_RETURNED] = "returned",
	[FLEX_COUNT_DENIED] = "denied",
	[FLEX_COUNT_ALLOCATE_NS] = "allocate_ns",
	[FLEX_COUNT_GRANT_NS] = "grant_ns",
	[FLEX_COUNT_TAKE_NS] = "take_ns",
	[FLEX_COUNT_FREE_NS] = "free_ns",
	[FLEX_COUNT_POLL_NS] = "poll_ns",
	[FLEX_COUNT_WAIT_NS] = "wait_ns",
	[FLEX_COUNT_SCANS] = "scans",
	[FLEX_COUNT_PRESSURES] = "pressures",
	[FLEX_COUNT_PRESSURE_PAGES] = "pressure_pages",
	[FLEX_COUNT_OOM_WAITS] = "oom_waits",
	[FLEX_COUNT_OOM_PAGES] = "oom_pages",
	[FLEX_COUNT_RELAXES] = "relaxes",
	[FLEX_COUNT_RUNS] = "runs",
	[FLEX_COUNT_INTERRUPTED] = "interrupted",
	[FLEX_COUNT_IDLES] = "idles",
	[FLEX_COUNT_LENT_NS] = "lent_ns",
	[FLEX_COUNT_DISK_PAGES] = "disk_pages",
	[FLEX_COUNT_DISK_NS] = "disk_ns",
	[FLEX_COUNT_DISK_ERRORS] = "disk_errors",
};

void flex_count(struct flex_counters *counters, enum flex_counter counter, u64 amount)
{
	atomic64_add(amount, &counters->of[counter]);
}

void flex_counters_show(struct flex_counters *counters, struct seq_file *file)
{
	for (int i = 0; i < FLEX_COUNTERS; i++)
		seq_printf(file, "%s %lld\n", names[i], atomic64_read(&counters->of[i]));
}
