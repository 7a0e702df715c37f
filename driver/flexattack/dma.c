// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A device that copies between memory and a buffer of its own, as it is told: QEMU's `edu`
 * (-device edu,dma_mask=0xffffffff).
 *
 * `dma-read ADDRESS`: has it read 8 bytes there, over a mark of ours; "value" is what the buffer
 * holds then, "mark" what it held. `dma-write ADDRESS VALUE`: has it write them there.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pci.h>

#include "flexattack.h"

enum { SOURCE = 0x80, DESTINATION = 0x88, COUNT = 0x90, COMMAND = 0x98 };
enum { START = 1, TO_MEMORY = 2 };
static const u64 buffer = 0x40000; /* as the device addresses it */
static const u64 mark = 0x6b72616d;

static void copy(void __iomem *registers, u64 from, u64 to, u64 direction)
{
	writeq(from, registers + SOURCE);
	writeq(to, registers + DESTINATION);
	writeq(8, registers + COUNT);
	writeq(START | direction, registers + COMMAND);
	for (int i = 0; i < 1000 && readq(registers + COMMAND) & START; i++)
		usleep_range(1000, 2000);
}

static void with_device(struct attack *attack, void (*act)(struct attack *, void __iomem *))
{
	struct pci_dev *device = pci_get_device(0x1234, 0x11e8, NULL);
	void __iomem *registers = NULL;

	attack->error = -ENODEV;
	if (!device)
		return;
	if (!pci_enable_device(device)) {
		pci_set_master(device);
		registers = pci_iomap(device, 0, 0);
	}
	if (registers) {
		attack->error = 0;
		act(attack, registers);
		pci_iounmap(device, registers);
	}
	pci_dev_put(device);
}

static void read_there(struct attack *attack, void __iomem *registers)
{
	u64 *own = page_address(victim()), ours = page_to_phys(victim());

	WRITE_ONCE(*own, mark);
	copy(registers, ours, buffer, 0);
	copy(registers, word(attack, 1), buffer, 0);
	WRITE_ONCE(*own, 0);
	copy(registers, buffer, ours, TO_MEMORY);
	tell(attack, "mark", mark);
	tell(attack, "value", READ_ONCE(*own));
}

static void write_there(struct attack *attack, void __iomem *registers)
{
	u64 *own = page_address(victim());

	WRITE_ONCE(*own, word(attack, 2));
	copy(registers, page_to_phys(victim()), buffer, 0);
	copy(registers, buffer, word(attack, 1), TO_MEMORY);
}

void dma_read(struct attack *attack)
{
	with_device(attack, read_there);
}

void dma_write(struct attack *attack)
{
	with_device(attack, write_there);
}
