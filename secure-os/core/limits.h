/* The secure OS's limits, and why each is what it is. */
#ifndef SECURE_OS_LIMITS_H
#define SECURE_OS_LIMITS_H

#define PAGE 4096ULL

/* As many as the firmware starts (monitor/plat). */
#define CPUS_MAX 8

/* Threads: one for each core, some that wait, and a bound to what they cost: half a KiB of registers each. */
#define THREADS_MAX 32

/* Pieces of the application's address space. An arena of the C library needs two, a thread's stack two. */
#define AREAS_MAX 256

/* RAM that can be handed over: the monitor's own bound (3 GiB). */
#define RAM_PAGES_MAX 0xc0000ULL

/* Secure RAM beside EL3's: 15 MiB. */
#define SECURE_PAGES_MAX 3840ULL

/* Pages of secure RAM that are not lent to the heap: tables for 2 GiB of chunks need as many. */
#define TABLES_KEPT 1024

/* Bytes of one system call to the console, and of one from the generator: the lock is held meanwhile. */
#define WRITE_BYTES_MAX 256
#define RANDOM_BYTES_MAX 256

/* Pages of the ring: messages are bounded, and its memory is the OS's. */
#define RING_PAGES_MAX 256

/* Where the application's parts may lie: 39 bits of addresses. */
#define IMAGE_FIRST 0x10000ULL
#define IMAGE_END 0x100000000ULL
#define PRIVATE_FIRST 0x1000000000ULL /* what mmap gives */
#define PRIVATE_END 0x4000000000ULL
#define CHUNKS_FIRST 0x4000000000ULL /* what flex_reserve gives */
#define CHUNKS_END 0x6000000000ULL
#define RING_AT 0x6000000000ULL
#define STACK_END 0x7fffff0000ULL
#define ADDRESSES_END 0x8000000000ULL

/* The first thread's stack, and what the C library is told to give to others: all of it is there from the start. */
#define STACK_BYTES 0x100000ULL
#define THREAD_STACK_BYTES 0x40000ULL

/* Bytes of flash from where the application lies. */
#define APPLICATION_BYTES_MAX 0x1800000ULL
#define PROGRAM_HEADERS_MAX 16

/* Letters of a reason that are printed. */
#define REASON_LETTERS_MAX 80

#endif
