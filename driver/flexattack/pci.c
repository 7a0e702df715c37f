// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a kernel may program of its PCI devices: where their registers appear, and all else.
 *
 * `pci-move ADDRESS`: has the registers of the copying device (dma.c) appear there, looks for them
 * ("fault", "value"; "mark" is what should be found) and moves them back.
 * `pci-configure`: sets every bit of every device's configuration that can be set, for a moment, and
 * leaves them all masters of the bus: "devices", and "bits" that could be set. The agent's line is left
 * alone, since one of those bits resets it.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/uaccess.h>

#include "flexattack.h"

enum { REGISTERS_BAR = 1, SCRATCH = 0x34, CONFIGURATION = 256 };
static const u32 mark = 0x6b72616d;

static int look(phys_addr_t address, u32 *value)
{
	struct window window;
	int error = open_window(&window, "device", address);

	if (error)
		return error;
	error = copy_from_kernel_nofault(value, window.at, sizeof(*value));
	close_window(&window);
	return error;
}

void pci_move(struct attack *attack)
{
	struct pci_dev *device = pci_get_device(COPYING_DEVICE, NULL);
	int bar = PCI_BASE_ADDRESS_0 + 4 * REGISTERS_BAR;
	void __iomem *registers = NULL;
	u32 before, value = 0;

	if (device && !pci_enable_device(device))
		registers = pci_iomap(device, REGISTERS_BAR, 0);
	if (!registers) {
		attack->error = -ENODEV;
		return;
	}
	writel(mark, registers + SCRATCH);
	pci_read_config_dword(device, bar, &before);
	pci_write_config_dword(device, bar, word(attack, 1));
	tell(attack, "fault", look(word(attack, 1) + SCRATCH, &value));
	pci_write_config_dword(device, bar, before);
	tell(attack, "value", value);
	tell(attack, "mark", mark);
	tell(attack, "back", readl(registers + SCRATCH) == mark);
	pci_iounmap(device, registers);
	pci_dev_put(device);
}

static unsigned int set_everything(struct pci_dev *device)
{
	unsigned int bits = 0;
	u32 before, after;

	for (int at = PCI_COMMAND; at < CONFIGURATION; at += sizeof(u32)) {
		pci_read_config_dword(device, at, &before);
		pci_write_config_dword(device, at, ~0U);
		pci_read_config_dword(device, at, &after);
		pci_write_config_dword(device, at, before);
		bits += hweight32(after & ~before);
	}
	pci_set_master(device);
	return bits;
}

void pci_configure(struct attack *attack)
{
	struct pci_dev *device = NULL, *line = pci_get_device(VIRTIO_SERIAL, NULL);
	unsigned int devices = 0, bits = 0;

	for_each_pci_dev(device) {
		if (device == line)
			continue;
		devices++;
		bits += set_everything(device);
	}
	pci_dev_put(line);
	tell(attack, "devices", devices);
	tell(attack, "bits", bits);
}
