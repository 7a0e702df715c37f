// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The NPU's driver, up and down. Going down is the way up backwards. It begins when no file is open, so
 * there are no jobs, and when the NPU is ours, for the module is in use otherwise (handover.c).
 */
#include <linux/io.h>
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#include "flexnpu.h"

static int probe(struct platform_device *device)
{
	void __iomem *window = devm_platform_ioremap_resource(device, 0);
	struct flexnpu *npu;
	int error;

	if (IS_ERR(window))
		return PTR_ERR(window);
	npu = devm_kzalloc(&device->dev, sizeof(*npu), GFP_KERNEL);
	if (!npu)
		return -ENOMEM;
	flexnpu_queue_init(npu);
	init_waitqueue_head(&npu->runner.work); /* a notice may wake it before its thread is there */
	error = flexnpu_handover_init(npu);	/* first: whether it is ours to touch */
	if (error)
		return error;
	error = flexnpu_runner_init(npu, window);
	if (error)
		goto no_runner;
	error = flexnpu_device_init(npu);
	if (error)
		goto no_device;
	flexnpu_debugfs_init(npu);
	platform_set_drvdata(device, npu);
	return 0;

no_device:
	flexnpu_runner_exit(npu);
no_runner:
	flexnpu_handover_exit(npu);
	return error;
}

static int remove(struct platform_device *device)
{
	struct flexnpu *npu = platform_get_drvdata(device);

	flexnpu_debugfs_exit(npu);
	flexnpu_device_exit(npu);
	flexnpu_runner_exit(npu);
	flexnpu_handover_exit(npu);
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
