/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a compromised kernel could try: for tests only. Each attack tells what happened, and judges
 * nothing; an attack that kills its thread (an oops) is one more thing that can happen.
 *
 *   main.c   /dev/flexattack: a write is an attack, the read after it the lines "name value" that came
 *            of it; mmap maps any physical page into a program. `on CPU` before an attack: made there
 *   window.c ways to any physical address
 *   reach.c  reading, writing and executing there
 *   calls.c  SMC and HVC with any registers; what calls cost
 *   fuzz.c   random calls
 *   race.c   two CPUs at once
 *   dma.c    a device that reads and writes any address
 *   disk.c   a disk, by whose requests it reads and writes memory
 *   virtio.c another, by the buffers of its queues
 *   pci.c    what can be programmed of PCI devices
 *   npu.c    the NPU, past its driver
 *   lpi.c    the interrupt controller, which reads and writes tables
 *   lend.c   CPU time for the secure world, with registers.S
 *   lines.c  lines of caches, and translations that the CPU tells
 */
#ifndef FLEXATTACK_H
#define FLEXATTACK_H

#include <linux/arm-smccc.h>
#include <linux/pgtable.h>
#include <linux/types.h>

#include "flex.h"

#define ATTACK_WORDS 12

struct attack {
	char *words[ATTACK_WORDS]; /* the name, then what it is called with; NULL after the last */
	char result[4096];
	size_t length;
	int error; /* of the attack as such: not understood, no such device */
};

void tell(struct attack *attack, const char *name, long long value);
u64 word(const struct attack *attack, int index); /* as a number; 0 when missing */

/*
 * Runs `body` in a thread of its own and waits for it. Returns 0, -EFAULT when the thread was killed
 * by what it did, -ETIMEDOUT when it still runs.
 */
int attempt(void (*body)(void *), void *argument);

int smc(u64 call, u64 a, u64 b); /* one of the monitor's calls: its status */

/* Any call, as a body for attempt(). */
struct raw {
	struct arm_smccc_1_2_regs in, out;
	bool hvc;
};

void call(void *raw);
struct page *victim(void);	 /* a page of our own, the same each time */

/* The agent's line, and others of its kind after it: vendor and device for pci_get_device(). */
#define VIRTIO_SERIAL 0x1af4, 0x1043
#define COPYING_DEVICE 0x1000, 0x0012

/* A physical address that can be reached, as far as page tables decide. */
struct window {
	u64 *at;
	unsigned long address;	/* of the page */
	void *mapped;
	pte_t *entry, before;
	u64 *levels[3];		/* of a tree of our own */
	unsigned int slot;	/* where it hangs in the root */
	unsigned int opened;	/* levels whose entry forbade execution: a bit for each */
};

int open_window(struct window *window, const char *way, phys_addr_t address);
void close_window(struct window *window);

void peek(struct attack *attack);
void poke(struct attack *attack);
void execute(struct attack *attack);
void find(struct attack *attack);
void raw_smc(struct attack *attack);
void raw_hvc(struct attack *attack);
void fuzz(struct attack *attack);
void cost(struct attack *attack);
void race_touch(struct attack *attack);
void race_double(struct attack *attack);
void race_take(struct attack *attack);
void dma_read(struct attack *attack);
void dma_write(struct attack *attack);
void disk_read(struct attack *attack);
void virtio_read(struct attack *attack);
void virtio_write(struct attack *attack);
void pci_move(struct attack *attack);
void pci_configure(struct attack *attack);
void npu_run(struct attack *attack);
void npu_hang(struct attack *attack);
void npu_registers(struct attack *attack);
void npu_storm(struct attack *attack);
void lpi_block(struct attack *attack);
void lpi_arm(struct attack *attack);
void lpi_take(struct attack *attack);
void lpi_end(void);
void run_registers(struct attack *attack);
void run_storm(struct attack *attack);
void run_nested(struct attack *attack);
void starve(struct attack *attack);
void count(struct attack *attack);
void line(struct attack *attack);
void translate(struct attack *attack);

#endif
