/* What arrives at S-EL1, and what a core does when it is lent. */
#ifndef SECURE_OS_KERNEL_H
#define SECURE_OS_KERNEL_H

#include "arch/arch.h"
#include "core/flex_calls.h"

/* Why the application has ended, in the low byte; above it a number that says more. */
enum ending {
	ENDING_EXIT = 1, /* it ended itself: its status */
	ENDING_FAULT, /* it did what it may not: the class of the exception */
	ENDING_NONE, /* there is no application */
	ENDING_BAD, /* it cannot be loaded */
	ENDING_LARGE, /* there is not enough memory for it */
};

/* Where the machine's parts are. */
struct machine {
	struct board board;
	u64 application; /* of at most APPLICATION_BYTES_MAX bytes */
	u64 free_first; /* secure RAM that is nobody's */
	u64 free_end;
	const u8 *seed; /* of the generator, 32 bytes */
	const u8 *secret; /* for the application, 32 bytes; zeros: there is none */
};

/* What a core does next. */
enum yield {
	YIELD_NOT, /* it runs what is in the frame */
	YIELD_IDLE, /* it goes back to the OS: no thread can run here. The first timed wait ends in so many ns, 0: none */
	YIELD_ENDED, /* it goes back for ever: the application has ended (enum ending) */
};

struct next {
	enum yield yield;
	u64 argument;
};

/* Once, by the first core: load the application. The root of its tables. */
u64 kernel_init(const struct machine *machine);

/* A core is lent, for the first time or after it went back. */
struct next kernel_lent(u32 cpu, struct said said, struct frame *frame);

/* The thread of this core made a system call, or did what it may not. `frame`: what it, or the next one, goes on with. */
struct next kernel_call(u32 cpu, struct frame *frame);
struct next kernel_fault(u32 cpu, struct frame *frame, u64 kind);

#endif
