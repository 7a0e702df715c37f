/* Tests of the core on a machine made of arrays. Each file's tests register themselves. */
#ifndef UNIT_H
#define UNIT_H

#include "arch/fake_host/fake_host.h"
#include "core/areas.h"
#include "core/errors.h"
#include "core/pages.h"
#include "core/threads.h"
#include "core/user.h"
#include "flex_secure.h"
#include "tests/check.h"

/* An ELF file in flash as the tests want it: code, data of two pages and a page of zeros behind them. */
#define TEXT 0x400000ULL
#define DATA 0x410000ULL
#define DATA_BYTES 0x2000ULL
#define DATA_END 0x413000ULL

struct segment {
	u32 type;
	u32 flags;
	u64 offset;
	u64 va;
	u64 pa;
	u64 file_bytes;
	u64 memory_bytes;
	u64 align;
};

void file_make(void);
struct segment *file_segment(u32 number); /* 0: code, 1: data */
u8 *file_header(void);

/* Start the machine: the first core runs the application's first thread. */
void boot(void);

/* What each core goes on with, and what it does next. */
extern struct frame frames[CPUS_MAX];
extern struct next nexts[CPUS_MAX];

/* A system call of the first core's thread; what it answers. */
s64 call(u64 number, u64 a, u64 b, u64 c, u64 d);

/* The same on any core; whether its thread goes on. */
bool call_on(u32 cpu, u64 number, const u64 x[6]);

/* A core is lent; whether it runs a thread. */
bool lend(u32 cpu);

/* Linux's numbers. */
enum {
	LINUX_WRITE = 64,
	LINUX_WRITEV = 66,
	LINUX_EXIT = 93,
	LINUX_EXIT_GROUP = 94,
	LINUX_SET_TID_ADDRESS = 96,
	LINUX_FUTEX = 98,
	LINUX_NANOSLEEP = 101,
	LINUX_CLOCK_GETTIME = 113,
	LINUX_SCHED_GETAFFINITY = 123,
	LINUX_SCHED_YIELD = 124,
	LINUX_TGKILL = 131,
	LINUX_BRK = 214,
	LINUX_MUNMAP = 215,
	LINUX_CLONE = 220,
	LINUX_MMAP = 222,
	LINUX_MPROTECT = 226,
	LINUX_MADVISE = 233,
	LINUX_PRLIMIT64 = 261,
	LINUX_GETRANDOM = 278,
};

/* Private memory of so many bytes that can be written. */
u64 memory(u64 bytes);

/* A thread more, whose stack is at `stack`: its number. */
s64 thread(u64 stack, u64 cleared);

/* The page that lies so far from the start of RAM: its number, its state. */
u64 page(u64 index);
void set_state(u64 index, u64 count, enum flex_state state);

#endif
