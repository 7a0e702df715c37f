#include "core/calls.h"

#include "core/areas.h"
#include "core/errors.h"
#include "core/flex_calls.h"
#include "core/random.h"
#include "core/user.h"

/* Linux's numbers. */
enum {
	CALL_WRITE = 64,
	CALL_WRITEV = 66,
	CALL_EXIT = 93,
	CALL_EXIT_GROUP = 94,
	CALL_SET_TID_ADDRESS = 96,
	CALL_FUTEX = 98,
	CALL_NANOSLEEP = 101,
	CALL_CLOCK_GETTIME = 113,
	CALL_CLOCK_NANOSLEEP = 115,
	CALL_SCHED_GETAFFINITY = 123,
	CALL_SCHED_YIELD = 124,
	CALL_GETPID = 172,
	CALL_GETTID = 178,
	CALL_BRK = 214,
	CALL_MUNMAP = 215,
	CALL_CLONE = 220,
	CALL_MMAP = 222,
	CALL_MPROTECT = 226,
	CALL_MADVISE = 233,
	CALL_PRLIMIT64 = 261,
	CALL_GETRANDOM = 278,
};

#define PROCESS 1 /* the number of the one there is */
#define THREAD_FLAGS 0x3d0f00 /* CLONE_ VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID */
#define PROTECT_READ 1
#define PROTECT_WRITE 2
#define MAP_PRIVATE 0x02
#define MAP_ANONYMOUS 0x20
#define MAP_FLAGS (MAP_PRIVATE | MAP_ANONYMOUS | 0x4000 | 0x20000) /* NORESERVE and STACK change nothing */
#define ADVICE_DONTNEED 4
#define LIMIT_STACK 3
#define UNLIMITED (~0ULL)
#define CLOCKS 8
#define TIMER_ABSTIME 1
#define SECOND 1000000000ULL
#define FAR_AWAY (FOR_EVER / SECOND / 4) /* seconds */

#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_WAIT_BITSET 9
#define FUTEX_WAKE_BITSET 10
#define FUTEX_COMMAND 0x7f /* without PRIVATE and CLOCK_REALTIME: there is one process and one clock */
#define ALL_BITS 0xffffffffU

static u64 data_end;
static u64 data_now;
static u64 cores;

void calls_init(u64 end, u64 cpus)
{
	data_end = data_now = end;
	cores = cpus;
}

/* ---- memory ------------------------------------------------------------------------------------------------ */

static u64 up(u64 bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* Whether a caller's range is one at all; whole pages then. */
static bool is_range(u64 va, u64 bytes)
{
	return va % PAGE == 0 && bytes > 0 && va < ADDRESSES_END && bytes <= ADDRESSES_END - va;
}

/* What a caller wants to do with memory; false: to run it, or nothing that we know. */
static bool use_of(u64 protection, enum use *use)
{
	*use = protection & PROTECT_WRITE ? USE_WRITE : protection & PROTECT_READ ? USE_READ : USE_NONE;
	return (protection & ~(u64)(PROTECT_READ | PROTECT_WRITE)) == 0;
}

static s64 call_brk(u64 wanted)
{
	u64 now = up(data_now), end;

	if (wanted < data_end || wanted > IMAGE_END)
		return (s64)data_now;
	end = up(wanted);
	if (end > now && areas_private(now, end - now, USE_WRITE) != 0)
		return (s64)data_now;
	if (end < now && areas_free(end, now - end) != 0)
		return (s64)data_now;
	data_now = wanted;
	return (s64)data_now;
}

static s64 call_mmap(u64 bytes, u64 protection, u64 flags)
{
	enum use use;
	u64 va;

	if (bytes == 0 || bytes > PRIVATE_END - PRIVATE_FIRST || (flags & (MAP_PRIVATE | MAP_ANONYMOUS)) != (MAP_PRIVATE | MAP_ANONYMOUS) ||
	    (flags & ~(u64)MAP_FLAGS))
		return ERROR_INVAL;
	if (!use_of(protection, &use))
		return ERROR_ACCES;
	va = areas_room(PRIVATE_FIRST, PRIVATE_END, up(bytes));
	if (va == 0 || areas_private(va, up(bytes), use) != 0)
		return ERROR_NOMEM;
	return (s64)va;
}

static s64 call_mprotect(u64 va, u64 bytes, u64 protection)
{
	enum use use;

	if (!is_range(va, bytes))
		return ERROR_INVAL;
	return use_of(protection, &use) ? areas_protect(va, up(bytes), use) : ERROR_ACCES;
}

static s64 call_madvise(u64 va, u64 bytes, u64 advice)
{
	if (!is_range(va, bytes))
		return ERROR_INVAL;
	return advice == ADVICE_DONTNEED ? areas_clear(va, up(bytes)) : 0;
}

/* ---- time -------------------------------------------------------------------------------------------------- */

/* A time of the caller's, in nanoseconds; false: it is none. */
static bool read_time(u64 va, u64 *ns)
{
	u64 time[2];

	if (!user_read(time, va, sizeof(time)) || time[1] >= SECOND || (s64)time[0] < 0)
		return false;
	*ns = time[0] > FAR_AWAY ? FOR_EVER : time[0] * SECOND + time[1];
	return true;
}

static s64 write_time(u64 va, u64 ns)
{
	u64 time[2] = { ns / SECOND, ns % SECOND };

	return user_write(va, time, sizeof(time)) ? 0 : ERROR_FAULT;
}

static s64 call_sleep(u32 cpu, bool absolute, u64 va)
{
	u64 until;

	if (!read_time(va, &until))
		return ERROR_INVAL;
	if (until != FOR_EVER && !absolute)
		until += arch_now();
	threads_wait(cpu, WAIT_TIME, until, 0);
	return 0;
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

static s64 futex_wait(u32 cpu, const struct frame *frame, bool absolute, u32 bits)
{
	struct thread *thread = threads_current(cpu);
	u64 until = FOR_EVER;
	u32 value;

	if (bits == 0 || (frame->x[3] != 0 && !read_time(frame->x[3], &until)))
		return ERROR_INVAL;
	if (!user_read(&value, frame->x[0], sizeof(value)))
		return ERROR_FAULT;
	if (value != (u32)frame->x[2])
		return ERROR_AGAIN;
	if (until != FOR_EVER && !absolute)
		until += arch_now();
	thread->address = frame->x[0];
	thread->bits = bits;
	threads_wait(cpu, WAIT_FUTEX, until, ERROR_TIMEDOUT);
	return 0;
}

static s64 call_futex(u32 cpu, const struct frame *frame)
{
	if (frame->x[0] % sizeof(u32) != 0)
		return ERROR_INVAL;
	switch (frame->x[1] & FUTEX_COMMAND) {
	case FUTEX_WAIT:
		return futex_wait(cpu, frame, false, ALL_BITS);
	case FUTEX_WAIT_BITSET:
		return futex_wait(cpu, frame, true, (u32)frame->x[5]);
	case FUTEX_WAKE:
		return (s64)threads_wake(frame->x[0], ALL_BITS, frame->x[2] & 0x7fffffff);
	case FUTEX_WAKE_BITSET:
		return (s64)threads_wake(frame->x[0], (u32)frame->x[5], frame->x[2] & 0x7fffffff);
	default:
		return ERROR_NOSYS;
	}
}

/* A thread that goes on where its maker does, with another stack; in it the call's answer is 0. */
static s64 call_clone(const struct frame *frame)
{
	u64 flags = frame->x[0], stack = frame->x[1], told = frame->x[2], tls = frame->x[3], cleared = frame->x[4];
	struct thread *thread;
	u32 number;

	if (flags != THREAD_FLAGS || stack % 16 != 0)
		return ERROR_NOSYS;
	thread = threads_new();
	if (!thread)
		return ERROR_AGAIN;
	arch_save(&thread->context); /* vectors, as its maker has them */
	thread->context.frame = *frame;
	thread->context.frame.x[0] = 0;
	thread->context.frame.sp = stack;
	thread->context.tls = tls;
	thread->cleared = cleared;
	number = thread->number;
	user_write(told, &number, sizeof(number));
	return (s64)number;
}

static bool call_exit(u32 cpu)
{
	u64 cleared = threads_current(cpu)->cleared;
	u32 zero = 0;

	threads_end(cpu);
	if (cleared != 0 && user_write(cleared, &zero, sizeof(zero)))
		threads_wake(cleared, ALL_BITS, 1);
	return threads_count() > 0;
}

static s64 call_sched_getaffinity(u64 bytes, u64 va)
{
	u64 mask = (1ULL << cores) - 1;

	if (bytes < sizeof(mask))
		return ERROR_INVAL;
	return user_write(va, &mask, sizeof(mask)) ? (s64)sizeof(mask) : ERROR_FAULT;
}

/* The one limit that the C library asks for: how large a thread's stack is to be. */
static s64 call_prlimit(u64 resource, u64 new, u64 va)
{
	u64 limits[2] = { THREAD_STACK_BYTES, UNLIMITED };

	if (resource != LIMIT_STACK || new != 0)
		return ERROR_NOSYS;
	return user_write(va, limits, sizeof(limits)) ? 0 : ERROR_FAULT;
}

/* ---- bytes in and out -------------------------------------------------------------------------------------- */

/* The console is the normal world's. At most so many bytes at once: who wants to say more says it again. */
static s64 call_write(u64 file, u64 va, u64 bytes)
{
	char text[WRITE_BYTES_MAX];
	u64 i;

	if (file != 1 && file != 2)
		return ERROR_BADF;
	if (bytes > WRITE_BYTES_MAX)
		bytes = WRITE_BYTES_MAX;
	if (!user_read(text, va, bytes))
		return ERROR_FAULT;
	for (i = 0; i < bytes; i++)
		arch_say(text[i]);
	return (s64)bytes;
}

/* The first part of it that is not empty. */
static s64 call_writev(u64 file, u64 va, u64 count)
{
	u64 part[2], i;

	for (i = 0; i < count && i < WRITE_BYTES_MAX; i++) {
		if (!user_read(part, va + i * sizeof(part), sizeof(part)))
			return ERROR_FAULT;
		if (part[1] > 0)
			return call_write(file, part[0], part[1]);
	}
	return file == 1 || file == 2 ? 0 : ERROR_BADF;
}

static s64 call_getrandom(u64 va, u64 bytes)
{
	u8 some[RANDOM_BYTES_MAX];

	if (bytes > RANDOM_BYTES_MAX)
		bytes = RANDOM_BYTES_MAX;
	if (!random_fill(some, bytes))
		return ERROR_AGAIN;
	return user_write(va, some, bytes) ? (s64)bytes : ERROR_FAULT;
}

/* ---- which one ------------------------------------------------------------------------------------------------ */

static s64 serve(u32 cpu, const struct frame *frame, u64 number)
{
	const u64 *x = frame->x;

	switch (number) {
	case CALL_WRITE:
		return call_write(x[0], x[1], x[2]);
	case CALL_WRITEV:
		return call_writev(x[0], x[1], x[2]);
	case CALL_SET_TID_ADDRESS:
		threads_current(cpu)->cleared = x[0];
		return threads_current(cpu)->number;
	case CALL_FUTEX:
		return call_futex(cpu, frame);
	case CALL_NANOSLEEP:
		return call_sleep(cpu, false, x[0]);
	case CALL_CLOCK_GETTIME:
		return x[0] < CLOCKS ? write_time(x[1], arch_now()) : ERROR_INVAL;
	case CALL_CLOCK_NANOSLEEP:
		return x[0] < CLOCKS ? call_sleep(cpu, x[1] & TIMER_ABSTIME, x[2]) : ERROR_INVAL;
	case CALL_SCHED_GETAFFINITY:
		return call_sched_getaffinity(x[1], x[2]);
	case CALL_SCHED_YIELD:
		threads_yield(cpu);
		return 0;
	case CALL_GETPID:
		return PROCESS;
	case CALL_GETTID:
		return threads_current(cpu)->number;
	case CALL_BRK:
		return call_brk(x[0]);
	case CALL_MUNMAP:
		return is_range(x[0], x[1]) ? areas_free(x[0], up(x[1])) : ERROR_INVAL;
	case CALL_CLONE:
		return call_clone(frame);
	case CALL_MMAP:
		return call_mmap(x[1], x[2], x[3]);
	case CALL_MPROTECT:
		return call_mprotect(x[0], x[1], x[2]);
	case CALL_MADVISE:
		return call_madvise(x[0], x[1], x[2]);
	case CALL_PRLIMIT64:
		return call_prlimit(x[1], x[2], x[3]);
	case CALL_GETRANDOM:
		return call_getrandom(x[0], x[1]);
	default:
		return flex_calls_serve(cpu, x, number);
	}
}

bool calls_serve(u32 cpu, struct frame *frame)
{
	u64 number = frame->x[8];

	if (number == CALL_EXIT_GROUP)
		return false;
	if (number == CALL_EXIT)
		return call_exit(cpu);
	frame->x[0] = (u64)serve(cpu, frame, number);
	return true;
}
