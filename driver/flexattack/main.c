// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "flexattack.h"

static const unsigned int patience_ms = 60000;

static struct page *own;
static struct page *block; /* never freed: it may be granted still */

struct page *victim(void)
{
	return own;
}

int smc(u64 call, u64 a, u64 b)
{
	struct arm_smccc_res answer;

	arm_smccc_smc(FLEX_SMC_BASE + call, a, b, 0, 0, 0, 0, 0, &answer);
	return (int)answer.a0;
}

void tell(struct attack *attack, const char *name, long long value)
{
	attack->length += scnprintf(attack->result + attack->length,
				    sizeof(attack->result) - attack->length, "%s %lld\n", name, value);
}

u64 word(const struct attack *attack, int index)
{
	u64 value = 0;

	if (index < ATTACK_WORDS && attack->words[index] && kstrtou64(attack->words[index], 0, &value))
		value = 0;
	return value;
}

/* ---- threads that may die ---- */

struct attempted {
	void (*body)(void *);
	void *argument;
	bool ended;
};

static int run_attempt(void *data)
{
	struct attempted *attempted = data;

	attempted->body(attempted->argument);
	WRITE_ONCE(attempted->ended, true);
	return 0;
}

int attempt(void (*body)(void *), void *argument)
{
	static struct attempted attempted; /* one attack at a time; it may outlive this call */
	unsigned int waited = 0;
	struct task_struct *task;
	bool dead;

	attempted = (struct attempted){ body, argument, false };
	task = kthread_create(run_attempt, &attempted, "flexattack");
	if (IS_ERR(task))
		return PTR_ERR(task);
	get_task_struct(task);
	wake_up_process(task);
	while (!(dead = READ_ONCE(task->exit_state)) && waited++ < patience_ms)
		usleep_range(900, 1100);
	put_task_struct(task);
	if (!dead)
		return -ETIMEDOUT;
	return READ_ONCE(attempted.ended) ? 0 : -EFAULT;
}

/* ---- the device ---- */

static void own_page(struct attack *attack)
{
	tell(attack, "ipa", page_to_phys(own));
}

/* Pages of our own in one piece, as many as a call may name; the same each time, 0 when there are none. */
static void own_block(struct attack *attack)
{
	if (!block)
		block = alloc_pages(GFP_KERNEL | __GFP_ZERO, get_order(FLEX_CALL_PAGES_MAX * PAGE_SIZE));
	tell(attack, "ipa", block ? page_to_phys(block) : 0);
}

static const struct {
	const char *name;
	void (*make)(struct attack *attack);
} attacks[] = {
	{ "peek", peek },	{ "poke", poke },	{ "execute", execute },
	{ "find", find },	{ "smc", raw_smc },	{ "hvc", raw_hvc },
	{ "fuzz", fuzz },	{ "cost", cost },	{ "race-touch", race_touch },
	{ "race-double", race_double }, { "race-take", race_take }, { "dma-read", dma_read },
	{ "dma-write", dma_write }, { "disk-read", disk_read }, { "virtio-read", virtio_read }, { "virtio-write", virtio_write },
	{ "pci-move", pci_move }, { "pci-configure", pci_configure }, { "npu-run", npu_run },
	{ "npu-hang", npu_hang }, { "npu-registers", npu_registers }, { "npu-storm", npu_storm },
	{ "lpi-block", lpi_block }, { "lpi-arm", lpi_arm }, { "lpi-take", lpi_take }, { "own", own_page },
	{ "run-registers", run_registers }, { "run-storm", run_storm }, { "run-nested", run_nested },
	{ "starve", starve },	{ "count", count },	{ "line", line },
	{ "translate", translate }, { "block", own_block },
};

static DEFINE_MUTEX(one_at_a_time);

/* `on CPU WORDS…`: the others, made there. */
static int go_there(struct attack *attack)
{
	int error = set_cpus_allowed_ptr(current, cpumask_of(min_t(u64, word(attack, 1), nr_cpu_ids - 1)));

	memmove(attack->words, attack->words + 2, (ATTACK_WORDS - 2) * sizeof(*attack->words));
	return error;
}

static void make(struct attack *attack)
{
	attack->error = -EINVAL;
	if (attack->words[0] && !strcmp(attack->words[0], "on") && go_there(attack))
		return;
	for (int i = 0; attack->words[0] && i < ARRAY_SIZE(attacks); i++)
		if (!strcmp(attack->words[0], attacks[i].name)) {
			attack->error = 0;
			attacks[i].make(attack);
		}
}

static int device_open(struct inode *inode, struct file *file)
{
	file->private_data = kzalloc(sizeof(struct attack), GFP_KERNEL);
	return file->private_data ? 0 : -ENOMEM;
}

static int device_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static ssize_t device_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	struct attack *attack = file->private_data;
	char *line = size < PAGE_SIZE ? memdup_user_nul(text, size) : ERR_PTR(-EINVAL), *rest = line;
	int error;

	if (IS_ERR(line))
		return PTR_ERR(line);
	mutex_lock(&one_at_a_time);
	memset(attack, 0, sizeof(*attack));
	for (int i = 0; i < ATTACK_WORDS && rest; i++)
		attack->words[i] = strsep(&rest, " \n");
	make(attack);
	set_cpus_allowed_ptr(current, cpu_possible_mask);
	error = attack->error;
	mutex_unlock(&one_at_a_time);
	kfree(line);
	return error ?: size;
}

/* What came of the attack; or what lies at a physical address, as a careless driver would hand it out. */
static ssize_t device_read(struct file *file, char __user *text, size_t size, loff_t *at)
{
	struct attack *attack = file->private_data;

	if (*at >= sizeof(attack->result))
		return copy_to_user(text, __va(*at), min(size, PAGE_SIZE)) ? -EFAULT : min(size, PAGE_SIZE);
	return simple_read_from_buffer(text, size, at, attack->result, attack->length);
}

/* A page of RAM as a page, so that the kernel itself would use it for the program; others as they are. */
static int device_mmap(struct file *file, struct vm_area_struct *area)
{
	if (area->vm_end - area->vm_start != PAGE_SIZE)
		return -EINVAL;
	if (pfn_valid(area->vm_pgoff) && page_count(pfn_to_page(area->vm_pgoff)) &&
	    !vm_insert_page(area, area->vm_start, pfn_to_page(area->vm_pgoff)))
		return 0;
	return remap_pfn_range(area, area->vm_start, area->vm_pgoff, PAGE_SIZE, area->vm_page_prot);
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.read = device_read,
	.write = device_write,
	.mmap = device_mmap,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "flexattack",
	.fops = &operations,
};

static int __init start(void)
{
	own = alloc_page(GFP_KERNEL);
	return own ? misc_register(&device) : -ENOMEM;
}

static void __exit stop(void)
{
	misc_deregister(&device);
	lpi_end();
	__free_page(own);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Attacks on Flex-Mem, for tests");
MODULE_LICENSE("GPL");
