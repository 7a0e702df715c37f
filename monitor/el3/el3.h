/*
 * EL3: reset, interrupts of the secure world, power, and the switching of EL2's protection.
 *
 * It never takes EL2's lock and never looks at EL2's tables: it may interrupt EL2 anywhere.
 */
#ifndef EL3_H
#define EL3_H

#include "arch/aarch64/system.h"
#include "core/layout.h"
#include "core/sha256.h"
#include "flex_measured.h"

#define GIB 0x40000000ULL
#define ENTRIES (FLEX_PAGE_BYTES / sizeof(u64)) /* of a table of an MMU */

/* ---- gic.c ---- */

#define GATHER_INTID 15

void gic_init(void); /* once */
void gic_init_cpu(u32 cpu);
u32 gic_take(void); /* the pending interrupt of ours, 1020 and more: none */
void gic_end(u32 intid);
u64 gic_mute(void); /* the normal world's interrupts do not wake this CPU, until gic_unmute(what it returns) */
void gic_unmute(u64 before);
void gic_pend(u32 intid); /* an interrupt of the normal world */
void gic_gather(u32 cpu); /* GATHER_INTID, to one CPU */

/*
 * The redistributors of so many CPUs, on or off, use no tables in RAM any more. False: one cannot be brought to that.
 * It stays so as long as nobody but us can write to their control frames.
 */
bool gic_end_lpis(u32 cpus);

/* ---- uart.c: bytes to and from the secure world ---- */

void uart_init(void);
void uart_put(u8 byte);
int uart_get(void); /* -1: none */

/* ---- modes.c: what EL2 is and does, on this CPU and on all ---- */

enum protection {
	PROTECTION_OFF,
	PROTECTION_ON,
	PROTECTION_BROKEN, /* EL2 was altered while protection was off */
};

enum protection modes_protection(void);
u64 modes_switches(void); /* how often it changed; not while this CPU is here */

/* Put the digest of the image that EL2 is started from into `image`; say whether that is what runs. */
enum flex_measured modes_measure(struct digest *image);

/* First start: put the image in its place and have EL2 build its tables; continues in modes_booted. */
void modes_boot(struct frame *frame);

/* EL2 has built everything (`result` 0) or cannot: continue where we were going. */
void modes_booted(struct frame *frame, u64 result);

/* Set what of EL3's registers confines the normal world on this CPU, as protection has it now. */
void modes_confine(void);

/* Set this CPU's registers of EL2, and of EL3, as protection has them now. */
void modes_apply(void);

/* EL2 does nothing more for the OS's call that it is in the midst of: `frame` becomes the OS's. */
void modes_leave_el2(struct frame *frame);

/* Switch on for a call that was made at EL1; the call is then made again. */
void modes_switch_on(struct frame *frame);

/* Switch off; asked for by EL2 in a call of the OS, which it answers. */
void modes_switch_off(struct frame *frame);

/* Another CPU wants all of us here: stay until it is done. `frame`: what it interrupted. */
void modes_join(const struct frame *frame);

/* EL2 gives up: x1 says why. */
_Noreturn void modes_panic(const struct frame *frame);

/*
 * One CPU at a time changes power or protection; others that wait for it can be gathered meanwhile.
 * `frame`: what is interrupted here; NULL for a CPU that is not on yet.
 */
void modes_lock(const struct frame *frame);
void modes_unlock(void);

/* ---- power.c ---- */

void power_booted(void); /* this CPU, the first, is on */
bool power_is_on(u32 cpu);
void power_serve(struct frame *frame); /* a PSCI call */
void power_park(struct frame *frame, u32 cpu); /* wait to be turned on, then start the normal world */
_Noreturn void power_off(void);

/* The machine is about to be switched off or reset: EL2 overwrites secure pages next, and the secure world is none. */
void power_end(struct frame *frame);

/* Make `frame` start the normal world at `entry`. */
void power_enter(struct frame *frame, u64 entry, u64 argument);

/* ---- doorbell.c ---- */

void doorbell_answer(void); /* bytes of the secure world have come */

/* Tell the secure world what protection is now, if it asked since the last time. All other CPUs stand still. */
void doorbell_tell(enum protection protection);

/* ---- devices.c ---- */

/*
 * No device reaches hidden memory any more, the interrupt controller among them. False: one did meanwhile, and may
 * have altered what keeps it out, or still does.
 */
bool devices_confine(const struct layout *layout);

/* An NPU is as after a reset: it works for nobody, and its registers say nothing. False: it does not answer. */
bool devices_reset_npu(const struct layout *layout);

/* ---- scrub.c ---- */

void scrub(u64 at, u64 end); /* overwrite memory with zeros */

/* Overwrite RAM, but for what was loaded into it for this start. */
void scrub_ram(const struct layout *layout);

/* ---- panic.c ---- */

/* Say so on the console, with where it happened and what an ESR says of it (or numbers that help), and switch off. */
_Noreturn void panic(const char *why, u64 at, u64 syndrome);

#endif
