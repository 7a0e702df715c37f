/*
 * The monitor's limits, and why each is what it is. Those that both worlds must know are the interface's
 * (abi/flex.toml): pages of a call, slots of the mailbox, bytes of hidden memory and of the code that drives the NPU.
 * How many CPUs there may be, and the sizes of their stacks, are the board's (plat/).
 */
#ifndef MONITOR_LIMITS_H
#define MONITOR_LIMITS_H

/* The least RAM: what a stock kernel boots in, beside FLEX_HIDDEN_BYTES. */
#define RAM_BYTES_MIN 0x10000000ULL

/* The most: RAM lies between 1 GiB and 4 GiB, and FLEX_HIDDEN_BYTES have room for the tables of so much. */
#define RAM_BYTES_MAX 0xc0000000ULL

/* Level-2 tables of a tree: one for each GiB of the 4 GiB that are translated. */
#define LEVEL2_TABLES 4

/* Level-3 tables for registers that do not fill a block: a board has small windows in two blocks. */
#define REGISTER_TABLES 2

/*
 * Notices that wait for the OS's POLLs. When they are so many, the commands that would lead to more wait in the
 * mailbox: so this need only be enough for the OS not to be slowed down, and none is lost.
 */
#define NOTICES_MAX 64

/*
 * Steps that one POLL does for the secure world. The caller's interrupts are off meanwhile, and no step changes more
 * pages than one call may.
 */
#define POLL_STEPS_MAX 64

/*
 * How often the code that drives the NPU may be interrupted before it is stopped: it needs some microseconds, and
 * other commands wait for it.
 */
#define NPU_TURNS_MAX 32

/*
 * Seconds until the NPU must have forgotten its translations or been reset. A device needs microseconds; an emulated
 * one is a process that its host may keep waiting.
 */
#define NPU_SECONDS_MAX 16

/* Looks until a redistributor must have finished a write: it takes some accesses to memory. */
#define REDISTRIBUTOR_LOOKS_MAX 1000

/* Letters of a panic's reason that are printed: a line. The text may be anything by then. */
#define PANIC_LETTERS_MAX 80

#endif
