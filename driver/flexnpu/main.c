// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The NPU's driver, up and down. Going down is the way up backwards. It begins when no file is open, so
 * there are no jobs, and when the NPU is ours, for the module is in use otherwise (handover.c).
 */
#include <linux/io.h>
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/platform_device.h>

#include "flexnpu.h"

static int probe(struct platform_device *device)
{
	void __iomem *window = devm_platform_ioremap_resource(device, 0);
	int error;

	if (IS_ERR(window))
		return PTR_ERR(window);
	error = flexnpu_handover_init(); /* first: whether it is ours to touch */
	if (error)
		return error;
	error = flexnpu_runner_init(window);
	if (error)
		goto no_runner;
	error = flexnpu_device_init();
	if (error)
		goto no_device;
	flexnpu_debugfs_init();
	return 0;

no_device:
	flexnpu_runner_exit();
no_runner:
	flexnpu_handover_exit();
	return error;
}

static int remove(struct platform_device *device)
{
	flexnpu_debugfs_exit();
	flexnpu_device_exit();
	flexnpu_runner_exit();
	flexnpu_handover_exit();
	return 0;
}

static const struct of_device_id devices[] = {
	{ .compatible = "flexserve,flexnpu" },
	{},
};
MODULE_DEVICE_TABLE(of, devices);

static struct platform_driver flexnpu = {
	.probe = probe,
	.remove = remove,
	.driver = {
		.name = "flexnpu",
		.of_match_table = devices,
		.suppress_bind_attrs = true, /* else it could be unbound while the NPU is handed over */
	},
};
module_platform_driver(flexnpu);

MODULE_DESCRIPTION("The NPU, lent to the secure world and back");
MODULE_LICENSE("GPL");
