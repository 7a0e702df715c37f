// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * /sys/kernel/debug/flexmem: `state` (pages handed over, by the order of their block),
 * `counters`, each a line "name value"; `detach`: writing 1 has everything given back and nothing
 * granted any more, or fails; 0 grants again. Reading makes no call, so it never switches protection on.
 */
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "flexmem.h"

static unsigned int drain_ms = 10000;
module_param(drain_ms, uint, 0644);
MODULE_PARM_DESC(drain_ms, "how long to wait for everything to be given back");

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
};

static atomic64_t counters[FLEX_COUNTERS];
static struct dentry *folder;

void flex_count(enum flex_counter counter, u64 amount)
{
	atomic64_add(amount, &counters[counter]);
}

static int state_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "held %lu\n", flex_pool_held());
	seq_printf(file, "attached %d\n", flex_service_attached());
	seq_printf(file, "contiguous %d\n", flex_contiguous);
	for (unsigned int order = 0; order < FLEX_ORDERS; order++)
		seq_printf(file, "order%u %lu\n", order, flex_pool_held_of(order));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static int counters_show(struct seq_file *file, void *unused)
{
	for (int i = 0; i < FLEX_COUNTERS; i++)
		seq_printf(file, "%s %lld\n", names[i], atomic64_read(&counters[i]));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int detach_set(void *unused, u64 value)
{
	if (value)
		return flex_service_close(drain_ms);
	flex_service_open();
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(detach_fops, NULL, detach_set, "%llu\n");

void flex_debugfs_init(void)
{
	folder = debugfs_create_dir("flexmem", NULL);
	debugfs_create_file("state", 0444, folder, NULL, &state_fops);
	debugfs_create_file("counters", 0444, folder, NULL, &counters_fops);
	debugfs_create_file_unsafe("detach", 0200, folder, NULL, &detach_fops);
}

void flex_debugfs_exit(void)
{
	debugfs_remove_recursive(folder);
}
