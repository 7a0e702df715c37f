/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a compromised kernel could try: for tests only. Each attack tells what happened, and judges
 * nothing; an attack that kills its thread (an oops) is one more thing that can happen.
 *
 *   main.c   /dev/flexattack: a write is an attack, the read after it the lines "name value" that came
 *            of it; mmap maps any physical page into a program
 *   reach.c  reading, writing and executing any physical address, by more than one way
 *   calls.c  SMC and HVC with any registers; random ones; what calls cost
 *   race.c   two CPUs at once
 *   dma.c    a device that reads and writes any address
 */
#ifndef FLEXATTACK_H
#define FLEXATTACK_H

#include <linux/arm-smccc.h>
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
struct page *victim(void);	 /* a page of our own, the same each time */

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
void dma_read(struct attack *attack);
void dma_write(struct attack *attack);

#endif
