/* The calls of abi/flex_secure.h, with the caller's pointers. */
#ifndef SECURE_OS_FLEX_CALLS_H
#define SECURE_OS_FLEX_CALLS_H

#include "core/types.h"

#define SECRET_BYTES 32

/* What the OS says to the secure world with a RUN: where the ring is. */
struct said {
	u64 ring_page;
	u64 ring_pages; /* 0: there is none */
};

/* The secret that the application may ask for, of SECRET_BYTES. */
void flex_calls_init(const u8 *secret);

/* The OS has lent a core. It may have written a message before: who waits for news looks, or who does next. */
void flex_calls_hear(struct said said);

/* Serve a call of the thread that runs on a core: its arguments and its number. What it answers; ENOSYS: there is no such. */
s64 flex_calls_serve(u32 cpu, const u64 *x, u64 number);

#endif
