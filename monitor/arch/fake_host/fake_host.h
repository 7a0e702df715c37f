/*
 * A machine made of arrays, for the tests of the core.
 *
 * It plays the worst of neighbours. Whenever the monitor does something that others could notice (it takes
 * or gives the lock, flushes, scrubs, orders its writes), each CPU and each device of the normal world
 * looks up every watched page and remembers what it found until it is flushed. So a flush that is left out
 * or comes too early is not a matter of luck: the page stays reachable, and the test's watcher sees it.
 *
 * So does the NPU, for whom it works: whoever can reach its registers has given it work, which only a reset ends.
 */
#ifndef FAKE_HOST_H
#define FAKE_HOST_H

#include "arch/arch.h"

enum host_moment {
	HOST_LOCKED,
	HOST_UNLOCKING,
	HOST_FLUSHING_STAGE2,
	HOST_FLUSHING_DEVICES,
	HOST_FLUSHING_NPU,
	HOST_RESETTING_NPU,
	HOST_COPYING,
	HOST_SANDBOX_RUNNING,
	HOST_SCRUBBING,
	HOST_ORDERING,
};

enum host_viewer {
	HOST_CPUS,
	HOST_DEVICES,
	HOST_NPU, /* only while it has work */
	HOST_VIEWERS,
	HOST_SANDBOX = HOST_VIEWERS, /* for host_walk alone */
};

struct host_npu {
	u64 root;
	bool resetting; /* asked for, not done */
	bool works_for_os;
	bool works_for_secure;
	bool registers_known; /* a CPU remembers a way to them */
	bool driving; /* between arch_sandbox_begin and its end */
	u64 arguments[ARCH_ARGUMENTS];
};

struct host {
	u64 ram_base;
	u64 ram_bytes;
	u8 *ram;
	u64 watched_first; /* page numbers: what the neighbours look up, and the watcher looks at */
	u64 watched_count;
	u8 *reached[HOST_VIEWERS]; /* one byte a page of RAM: somebody remembers a way to it */
	bool held; /* the lock */
	u64 rings; /* how often the secure world's bell rang */
	u64 relaxed; /* how often protection was switched off */
	int relax_status; /* what EL3 answers */
	struct host_npu npu;
	bool npu_deaf; /* no reset is done */
	enum arch_stop stop; /* why the sandbox stops, and … */
	u64 result; /* … what it returns */
	void (*watcher)(enum host_moment moment);
	void (*witness)(void); /* tells how it came to a failure */
};

extern struct host host;

/* A machine with this much RAM, all zeros, and nothing remembered; the one before it is gone. */
void host_make(u64 ram_base, u64 ram_bytes);

/* Its description, as the monitor finds it, with so many NPUs. */
struct board host_board(u64 npus);

/* Whether the NPU reaches this page of RAM for somebody who must not. */
bool host_npu_trespasses(u64 page);

/* Look up every watched page with today's tables. */
void host_look(void);

/*
 * Where a tree of tables leads from `ipa`: the last descriptor on the way, 0 when there is none.
 * `pa` is set to where it leads when it is valid.
 */
u64 host_walk(enum host_viewer viewer, u64 ipa, u64 *pa);

/* Run a function; the reason when the monitor panicked in it, else NULL. */
const char *host_panic_of(void (*function)(void));

/* Say what is wrong and end the process, so that a debugger, a fuzzer and make all notice. */
_Noreturn void host_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
