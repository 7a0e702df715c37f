// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Flex-Mem's driver. The normal world's: the monitor believes nothing it says, and it believes the
 * monitor everything.
 *
 * Up: first everything is made, then the doors are opened: reclaim (the shrinker), CPU time, the monitor's
 * interrupt, user space, other modules. Until the interrupt is heard nothing can be handed over, and
 * nothing after it can fail, so a ladder that breaks off has no pages out.
 *
 * Down is the same backwards, in two phases: the doors are closed, so that nobody begins anything; then
 * what is under way is waited for, and freed. Nothing is handed over then: while there is, the module is
 * in use (pool.c) and cannot be unloaded; writing to debugfs' `detach` has it given back first.
 */
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#include "flexmem.h"

static struct flexmem *instance;

struct flexmem *flexmem_get(void)
{
	return smp_load_acquire(&instance);
}
EXPORT_SYMBOL_GPL(flexmem_get);

static int ask_layout(struct flexmem *fm, struct flex_layout *layout)
{
	struct flex_results version, ram;

	if (flex_call(fm, FLEX_CALL_VERSION, 0, 0, 0, &version) || version.x[0] != FLEX_ABI_VERSION) {
		pr_err("flexmem: no monitor of version %d\n", FLEX_ABI_VERSION);
		return -ENODEV;
	}
	if (flex_call(fm, FLEX_CALL_LAYOUT, 0, 0, 0, &ram))
		return -ENODEV;
	layout->ram_base = ram.x[0];
	layout->hidden_base = ram.x[2];
	return 0;
}

static int probe(struct platform_device *device)
{
	struct flex_layout layout;
	struct flexmem *fm;
	int error;

	if (flexmem_get())
		return -EBUSY; /* there is one RAM, and one monitor that keeps it */
	fm = devm_kzalloc(&device->dev, sizeof(*fm), GFP_KERNEL);
	if (!fm)
		return -ENOMEM;
	flex_lend_init(fm); /* a call tells it that something was said */
	error = ask_layout(fm, &layout);
	if (error)
		return error;
	error = flex_contiguous_init(fm, device->dev.of_node);
	if (error)
		return error;
	error = flex_ring_init(fm, device->dev.of_node);
	if (error)
		return error;
	error = flex_pool_init(fm, &layout);
	if (error)
		return error;
	flex_ondemand_init(fm);
	flex_disk_init(fm, device->dev.of_node);
	error = flex_service_init(fm);
	if (error)
		goto no_service;

	error = flex_shrinker_init(fm);
	if (error)
		goto no_shrinker;
	error = flex_lend_start(fm);
	if (error)
		goto no_lend;
	error = flex_service_start(fm, device);
	if (error)
		goto no_start;
	flex_debugfs_init(fm);
	platform_set_drvdata(device, fm);
	smp_store_release(&instance, fm);
	return 0;

no_start:
	flex_lend_stop(fm);
no_lend:
	flex_shrinker_exit(fm);
no_shrinker:
	flex_service_exit(fm);
no_service:
	flex_disk_exit(fm);
	flex_ondemand_exit(fm);
	flex_pool_exit(fm);
	return error;
}

static int remove(struct platform_device *device)
{
	struct flexmem *fm = platform_get_drvdata(device);

	/* The doors. */
	WRITE_ONCE(instance, NULL);
	flex_debugfs_exit(fm);
	flex_service_stop(fm);
	flex_lend_stop(fm);
	flex_shrinker_exit(fm);

	/* What is under way. */
	flex_service_exit(fm);
	flex_disk_exit(fm);
	flex_ondemand_exit(fm);
	flex_pool_exit(fm);
	return 0;
}

static const struct of_device_id devices[] = {
	{ .compatible = "flexserve,flexmem" },
	{},
};
MODULE_DEVICE_TABLE(of, devices);

static struct platform_driver flexmem = {
	.probe = probe,
	.remove = remove,
	.driver = {
		.name = "flexmem",
		.of_match_table = devices,
		.suppress_bind_attrs = true, /* else it could be unbound while pages are handed over */
	},
};
module_platform_driver(flexmem);

MODULE_DESCRIPTION("Memory for the secure world, recalled under pressure");
MODULE_LICENSE("GPL");
