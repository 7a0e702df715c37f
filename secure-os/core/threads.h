/*
 * Threads of the application, and which core runs which. A core that is lent runs a thread until that waits, ends or
 * yields; there is no time slice. Callers hold the lock.
 */
#ifndef SECURE_OS_THREADS_H
#define SECURE_OS_THREADS_H

#include "arch/arch.h"
#include "core/limits.h"

#define FOR_EVER (~0ULL)

enum thread_state {
	THREAD_NONE,
	THREAD_READY,
	THREAD_RUNNING,
	THREAD_WAITING,
};

/* What a thread waits for, beside the time. */
enum wait {
	WAIT_TIME,
	WAIT_FUTEX, /* `address`, `bits` */
	WAIT_NEWS, /* an event of the monitor, or a message */
};

struct thread {
	struct context context;
	enum thread_state state;
	u32 number;
	u64 cleared; /* where a 0 is written when it ends; 0: nowhere */
	enum wait wait;
	u64 address;
	u32 bits;
	u64 until; /* nanoseconds; FOR_EVER */
	s64 late; /* what its system call answers when the time is over */
	u64 turn; /* when it began to be ready, or to wait: first come, first served */
};

void threads_init(void);

/* A thread that is ready, with registers of zeros; NULL: there are too many. */
struct thread *threads_new(void);

/* The one that runs on a core; NULL: none. */
struct thread *threads_current(u32 cpu);

/* The running thread waits, or lets others run, or ends. Another one goes on with threads_next. */
void threads_wait(u32 cpu, enum wait wait, u64 until, s64 late);
void threads_yield(u32 cpu);
void threads_end(u32 cpu);

/* Wake those that wait on a futex, the `most` that have waited longest; how many. */
u64 threads_wake(u64 address, u32 bits, u64 most);

/* Wake those that wait for news; how many. */
u64 threads_tell(void);

/* Wake those whose time is over. Nanoseconds until the next one's is: 0: none has any. */
u64 threads_late(u64 now);

/* Put a core's registers into its thread, and those of the next one that is ready into the core. False: none is. */
void threads_leave(u32 cpu, const struct frame *frame);
bool threads_next(u32 cpu, struct frame *frame);

/* Whether a core that has no thread would find one. */
bool threads_ready(void);

/* Threads that have not ended. */
u32 threads_count(void);

#endif
