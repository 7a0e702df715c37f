/*
 * A machine made of arrays, for the tests of the core.
 *
 * Its other cores are the worst that there could be: whenever the kernel does something that they could notice, they
 * look up all that the application's tables map, and remember it until they are flushed. When the lock is given back,
 * nobody may remember what is not mapped any more; and of RAM nothing may be mapped but what is SECURE, and the ring.
 */
#ifndef FAKE_HOST_H
#define FAKE_HOST_H

#include "arch/arch.h"
#include "core/kernel.h"
#include "core/limits.h"

#define HOST_RAM 0x40000000ULL
#define HOST_RAM_BYTES 0x10000000ULL
#define HOST_PAGES (HOST_RAM_BYTES / PAGE)
#define HOST_SECURE 0x0e200000ULL
#define HOST_SECURE_PAGES 2048ULL
#define HOST_APPLICATION 0x00800000ULL
#define HOST_APPLICATION_BYTES 0x100000ULL

struct host {
	u8 *ram;
	u8 *secure;
	u8 *flash;
	u8 *mailbox;
	u8 *states;
	u64 root;
	bool held; /* the lock */
	u32 cpu; /* the one that runs the kernel */
	struct context registers[CPUS_MAX]; /* tls and vectors of each */
	u64 now; /* nanoseconds */
	u64 doorbells;
	struct protection protection;
	u64 ring_page;
	u64 ring_pages;
	char said[4096]; /* on the console */
	u32 letters;
	void (*on_protection)(void); /* what the OS does while EL3 is asked */
};

extern struct host host;
extern void (*host_witness)(void); /* tells how it came to a failure */

/* A machine of zeros, with protection on. */
void host_make(void);

/* Its description. */
struct machine host_machine(void);

/* How a page of physical memory is reached by S-EL0 now: 0 not, 1 read, 2 also written, 4 run. */
u8 host_reach(u64 pa);

/* Run a function; the reason when the kernel panicked in it, else NULL. */
const char *host_panic_of(void (*function)(void));

_Noreturn void host_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
