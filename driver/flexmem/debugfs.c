// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * /sys/kernel/debug/flexmem: `state` (pages handed over, by the order of their block),
 * `counters`, each a line "name value"; `detach`: writing 1 has everything given back and nothing
 * granted any more, or fails; 0 grants again; `lend`: writing 0 stops lending CPU time, 1 goes on; `said`: writing
 * lends idle CPUs, since there is a message in the ring; `ring`: the ring's pages, to be mapped; `disk`: writing a line is
 * a command (disk.c), reading from the same open file says what came of it. Reading makes no call, so it never switches
 * protection on.
 */
#include <linux/debugfs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "flexmem.h"

static unsigned int drain_ms = FLEX_DRAIN_MS_DEFAULT;
module_param(drain_ms, uint, 0644);
MODULE_PARM_DESC(drain_ms, "how long to wait for everything to be given back");

static int state_show(struct seq_file *file, void *unused)
{
	struct flexmem *fm = file->private;

	seq_printf(file, "held %lu\n", flex_pool_held(fm));
	seq_printf(file, "attached %d\n", flex_service_attached(fm));
	seq_printf(file, "lending %d\n", flex_lends(fm));
	seq_printf(file, "ended %d\n", READ_ONCE(fm->lending.state) == FLEX_LENDING_ENDED);
	seq_printf(file, "ring_page %llu\n", fm->ring.page);
	seq_printf(file, "ring_pages %llu\n", fm->ring.pages);
	seq_printf(file, "contiguous %d\n", flex_contiguous_chosen());
	for (unsigned int order = 0; order < FLEX_ORDERS; order++)
		seq_printf(file, "order%u %lu\n", order, flex_pool_held_of(fm, order));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static int counters_show(struct seq_file *file, void *unused)
{
	struct flexmem *fm = file->private;

	flex_counters_show(&fm->counters, file);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int detach_set(void *fm, u64 value)
{
	if (value)
		return flex_service_close(fm, drain_ms);
	flex_service_open(fm);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(detach_fops, NULL, detach_set, "%llu\n");

static int lend_get(void *fm, u64 *value)
{
	*value = READ_ONCE(((struct flexmem *)fm)->lending.on);
	return 0;
}

static int lend_set(void *fm, u64 value)
{
	flex_lend_switch(fm, value);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(lend_fops, lend_get, lend_set, "%llu\n");

static int said_set(void *fm, u64 value)
{
	flex_lend_said(fm);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(said_fops, NULL, said_set, "%llu\n");

/* ---- the disk ---- */

struct said {
	ssize_t length;
	char text[2 * PAGE_SIZE]; /* runs of 512 pages, each by itself */
};

static int disk_open(struct inode *inode, struct file *file)
{
	file->private_data = kzalloc(sizeof(struct said), GFP_KERNEL);
	return file->private_data ? 0 : -ENOMEM;
}

static int disk_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static ssize_t disk_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	struct said *said = file->private_data;
	char line[64];

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, text, size))
		return -EFAULT;
	line[size] = 0;
	said->length = 0;
	said->length = flex_disk_command(file_inode(file)->i_private, line, said->text, sizeof(said->text));
	return said->length < 0 ? said->length : size;
}

static ssize_t disk_read(struct file *file, char __user *text, size_t size, loff_t *at)
{
	struct said *said = file->private_data;

	return simple_read_from_buffer(text, size, at, said->text, max_t(ssize_t, said->length, 0));
}

static const struct file_operations disk_fops = {
	.owner = THIS_MODULE,
	.open = disk_open,
	.release = disk_release,
	.write = disk_write,
	.read = disk_read,
};

/* ---- the ring ---- */

static int ring_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct flexmem *fm = file->private_data;

	return vm_iomap_memory(vma, PFN_PHYS(fm->ring.page), fm->ring.pages * PAGE_SIZE);
}

/* Its memory is nobody else's, so who has it mapped may outlive the module. */
static const struct file_operations ring_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.mmap = ring_mmap,
};

void flex_debugfs_init(struct flexmem *fm)
{
	struct dentry *ring;

	fm->folder = debugfs_create_dir("flexmem", NULL);
	debugfs_create_file("state", 0444, fm->folder, fm, &state_fops);
	debugfs_create_file("counters", 0444, fm->folder, fm, &counters_fops);
	debugfs_create_file_unsafe("detach", 0200, fm->folder, fm, &detach_fops);
	debugfs_create_file_unsafe("lend", 0600, fm->folder, fm, &lend_fops);
	debugfs_create_file("disk", 0600, fm->folder, fm, &disk_fops);
	debugfs_create_file_unsafe("said", 0200, fm->folder, fm, &said_fops);
	ring = debugfs_create_file_unsafe("ring", 0600, fm->folder, fm, &ring_fops);
	if (!IS_ERR(ring))
		i_size_write(d_inode(ring), fm->ring.pages * PAGE_SIZE);
}

void flex_debugfs_exit(struct flexmem *fm)
{
	debugfs_remove_recursive(fm->folder);
}
