/*
 * Between EL3 and the secure OS (S-EL1): where its image lies, how a CPU enters it, and what it may ask. Assembly
 * includes this, too. ../../docs/decisions/0033-the-secure-world-inside-the-machine.md says why.
 *
 * The image lies in secure flash and begins with a header of three u64: SECURE_OS_MAGIC, the bytes from the image's
 * beginning to its first instruction (a multiple of 4), the bytes of the image. No magic: there is no secure OS. Behind
 * that are 32 bytes of room for a seed of random numbers, which each start of the machine writes.
 *
 * Each CPU enters it once after each start of the machine, at that instruction, with its first RUN: at EL1h in AArch64,
 * x0 its number, x1 and x2 what RUN was given, all other registers 0 (SCTLR_EL1 as after a reset: MMU and caches off,
 * little-endian), interrupts masked. Secure RAM below is zeros then, whatever was there before a reset. From then on RUN
 * continues where the CPU was. The board's description lies at PLAT_FLASH + FLEX_BOARD_OFFSET.
 *
 * Interrupts never arrive at S-EL1: they take the CPU away. What it may not touch arrives at EL3, and ends the machine:
 * registers of the interrupt controller, of the PMU and of debug, secure timers, and an SError. Instructions are
 * fetched from secure memory only. Timers of EL1 are the OS's: it reads counters (CNTPCT_EL0), and sets no timer.
 */
#ifndef EL3_SECURE_OS_H
#define EL3_SECURE_OS_H

#include "plat/qemu_virt/plat.h"

#define SECURE_OS_IMAGE 0x00400000 /* in secure flash */
#define SECURE_OS_IMAGE_END 0x00800000
#define SECURE_OS_MAGIC 0x534f455358454c46 /* "FLEXSEOS", little-endian */
#define SECURE_OS_AT_MAGIC 0
#define SECURE_OS_AT_ENTRY 8
#define SECURE_OS_AT_BYTES 16
#define SECURE_OS_HEADER_BYTES 24
#define SECURE_OS_SEED_BYTES 32

/* Secure RAM that is the secure OS's; what lies below is EL3's. */
#define SECURE_OS_RAM (PLAT_SECURE_RAM + 0x100000)
#define SECURE_OS_RAM_END (PLAT_SECURE_RAM + PLAT_SECURE_RAM_BYTES)

/*
 * What it asks, with the function in x0. x0 of the answer is FLEX_STATUS_OK, UNKNOWN or INVALID (flex.h); no other
 * register changes, but for what is said here.
 *
 *   PLAT_SMC_YIELD (answer, argument): the CPU goes back to the OS, whose RUN is answered so: FLEX_RUN_IDLE, ns or
 *     FLEX_RUN_ENDED, why (flex_run.h). INVALID: another answer. OK: a RUN came, and x1 and x2 are what it
 *     was given: where the ring of messages is. After ENDED none comes, on no CPU. OK is also what the first FLEX_RUN_IDLE
 *     is answered at once when the RUN that is under way found this CPU interrupted: what was said in between may be news.
 *   PLAT_SMC_DOORBELL: the OS's driver is interrupted, and POLLs; then it lends the CPUs again that were idle.
 *   PLAT_SMC_PROTECTION: x1 is FLEX_MEASURED_ON, OFF or TAMPERED (flex_measured.h), x2 to x5 the SHA-256 of the image
 *     that EL2 is started from: its 32 bytes in the order of memory, eight in each, the first one lowest.
 *   PLAT_SMC_SWITCHES: x1 is what protection is, without looking at EL2's memory, and x2 how often that changed. So what
 *     was read of the monitor's memory between two of them that say ON, and the same number, is what the monitor wrote.
 */

#endif
