// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * /sys/kernel/debug/flexnpu: `state` and `counters`, each a line "name value"; `detach`: writing 1
 * gets the NPU back and keeps it here, or fails; 0 hands it over again. Reading makes no call.
 */
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "flexnpu.h"

static unsigned int detach_ms = 10000;
module_param(detach_ms, uint, 0644);
MODULE_PARM_DESC(detach_ms, "how long to wait for the secure world to give the NPU back");

static const char *const names[FLEXNPU_COUNTERS] = {
	[FLEXNPU_COUNT_JOBS] = "jobs",
	[FLEXNPU_COUNT_FAULTS] = "faults",
	[FLEXNPU_COUNT_TIMEOUTS] = "timeouts",
	[FLEXNPU_COUNT_INTERRUPTED] = "interrupted",
	[FLEXNPU_COUNT_LAUNCH_NS] = "launch_ns",
	[FLEXNPU_COUNT_BUSY_NS] = "busy_ns",
	[FLEXNPU_COUNT_WANTS] = "wants",
	[FLEXNPU_COUNT_GRANTS] = "grants",
	[FLEXNPU_COUNT_GRANT_NS] = "grant_ns",
	[FLEXNPU_COUNT_ASKS] = "asks",
	[FLEXNPU_COUNT_BACKS] = "backs",
	[FLEXNPU_COUNT_AWAY_NS] = "away_ns",
};

void flexnpu_count(struct flexnpu *npu, enum flexnpu_counter counter, u64 amount)
{
	atomic64_add(amount, &npu->counters[counter]);
}

static int state_show(struct seq_file *file, void *unused)
{
	struct flexnpu *npu = file->private;

	seq_printf(file, "ours %d\n", flexnpu_handover_ours(npu));
	seq_printf(file, "running %d\n", flexnpu_runner_busy(npu));
	seq_printf(file, "waiting %d\n", flexnpu_jobs_waiting(npu));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static int counters_show(struct seq_file *file, void *unused)
{
	struct flexnpu *npu = file->private;

	for (int i = 0; i < FLEXNPU_COUNTERS; i++)
		seq_printf(file, "%s %lld\n", names[i], atomic64_read(&npu->counters[i]));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int detach_set(void *npu, u64 value)
{
	if (value)
		return flexnpu_handover_close(npu, detach_ms);
	flexnpu_handover_open(npu);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(detach_fops, NULL, detach_set, "%llu\n");

void flexnpu_debugfs_init(struct flexnpu *npu)
{
	npu->folder = debugfs_create_dir("flexnpu", NULL);
	debugfs_create_file("state", 0444, npu->folder, npu, &state_fops);
	debugfs_create_file("counters", 0444, npu->folder, npu, &counters_fops);
	debugfs_create_file_unsafe("detach", 0200, npu->folder, npu, &detach_fops);
}

void flexnpu_debugfs_exit(struct flexnpu *npu)
{
	debugfs_remove_recursive(npu->folder);
}
