// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Flex-Mem's driver. The normal world's: the monitor believes nothing it says, and it believes the
 * monitor everything.
 *
 * Going down is the way up backwards. While pages are handed over the module is in use (pool.c) and
 * cannot be unloaded; writing to debugfs' `detach` has them given back first.
 */
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/platform_device.h>

#include "flexmem.h"

static int ask_layout(struct flex_layout *layout)
{
	struct flex_results version, ram;

	if (flex_call(FLEX_CALL_VERSION, 0, 0, 0, &version) || version.x[0] != FLEX_ABI_VERSION) {
		pr_err("flexmem: no monitor of version %d\n", FLEX_ABI_VERSION);
		return -ENODEV;
	}
	if (flex_call(FLEX_CALL_LAYOUT, 0, 0, 0, &ram))
		return -ENODEV;
	layout->ram_base = ram.x[0];
	layout->hidden_base = ram.x[2];
	return 0;
}

static int probe(struct platform_device *device)
{
	struct flex_layout layout;
	int error;

	error = ask_layout(&layout);
	if (error)
		return error;
	error = flex_contiguous_init(device->dev.of_node);
	if (error)
		return error;
	error = flex_pool_init(&layout);
	if (error)
		return error;
	flex_ondemand_init();
	error = flex_service_init(device);
	if (error)
		goto no_service;
	error = flex_shrinker_init();
	if (error)
		goto no_shrinker;
	flex_debugfs_init();
	return 0;

no_shrinker:
	flex_service_exit(device);
no_service:
	flex_ondemand_exit();
	flex_pool_exit();
	return error;
}

static int remove(struct platform_device *device)
{
	flex_debugfs_exit();
	flex_shrinker_exit();
	flex_service_exit(device);
	flex_ondemand_exit();
	flex_pool_exit();
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
