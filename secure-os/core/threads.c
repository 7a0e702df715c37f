#include "core/threads.h"

static struct thread threads[THREADS_MAX];
static struct thread *running[CPUS_MAX];
static u32 last_number;
static u64 last_turn;

void threads_init(void)
{
	u8 *byte = (u8 *)threads;
	u64 i;

	for (i = 0; i < sizeof(threads); i++)
		byte[i] = 0;
	for (i = 0; i < CPUS_MAX; i++)
		running[i] = NULL;
	last_number = 0;
	last_turn = 0;
}

static void make_ready(struct thread *thread)
{
	thread->state = THREAD_READY;
	thread->turn = ++last_turn;
}

struct thread *threads_new(void)
{
	struct thread *thread;

	for (thread = threads; thread < threads + THREADS_MAX; thread++) {
		if (thread->state != THREAD_NONE)
			continue;
		*thread = (struct thread){ .number = ++last_number };
		make_ready(thread);
		return thread;
	}
	return NULL;
}

struct thread *threads_current(u32 cpu)
{
	return running[cpu];
}

void threads_wait(u32 cpu, enum wait wait, u64 until, s64 late)
{
	struct thread *thread = running[cpu];

	thread->state = THREAD_WAITING;
	thread->wait = wait;
	thread->turn = ++last_turn;
	thread->until = until;
	thread->late = late;
}

void threads_yield(u32 cpu)
{
	if (threads_ready())
		make_ready(running[cpu]);
}

void threads_end(u32 cpu)
{
	*running[cpu] = (struct thread){ .state = THREAD_NONE };
	running[cpu] = NULL;
}

static void wake(struct thread *thread, s64 answer)
{
	thread->context.frame.x[0] = (u64)answer;
	make_ready(thread);
}

/* The one of these that has waited longest; NULL: nobody does. */
static struct thread *waiter(u64 address, u32 bits)
{
	struct thread *thread, *first = NULL;

	for (thread = threads; thread < threads + THREADS_MAX; thread++)
		if (thread->state == THREAD_WAITING && thread->wait == WAIT_FUTEX && thread->address == address &&
		    (thread->bits & bits) && (!first || thread->turn < first->turn))
			first = thread;
	return first;
}

u64 threads_wake(u64 address, u32 bits, u64 most)
{
	struct thread *thread;
	u64 woken;

	for (woken = 0; woken < most && (thread = waiter(address, bits)); woken++)
		wake(thread, 0);
	return woken;
}

u64 threads_tell(void)
{
	struct thread *thread;
	u64 woken = 0;

	for (thread = threads; thread < threads + THREADS_MAX; thread++) {
		if (thread->state != THREAD_WAITING || thread->wait != WAIT_NEWS)
			continue;
		wake(thread, 0);
		woken++;
	}
	return woken;
}

u64 threads_late(u64 now)
{
	struct thread *thread;
	u64 next = FOR_EVER;

	for (thread = threads; thread < threads + THREADS_MAX; thread++) {
		if (thread->state != THREAD_WAITING || thread->until == FOR_EVER)
			continue;
		if (thread->until <= now)
			wake(thread, thread->late);
		else if (thread->until < next)
			next = thread->until;
	}
	return next == FOR_EVER ? 0 : next - now;
}

void threads_leave(u32 cpu, const struct frame *frame)
{
	struct thread *thread = running[cpu];

	thread->context.frame = *frame;
	arch_save(&thread->context);
	running[cpu] = NULL;
}

bool threads_next(u32 cpu, struct frame *frame)
{
	struct thread *thread, *first = NULL;

	for (thread = threads; thread < threads + THREADS_MAX; thread++)
		if (thread->state == THREAD_READY && (!first || thread->turn < first->turn))
			first = thread;
	if (!first)
		return false;
	first->state = THREAD_RUNNING;
	running[cpu] = first;
	*frame = first->context.frame;
	arch_load(&first->context);
	return true;
}

bool threads_ready(void)
{
	const struct thread *thread;

	for (thread = threads; thread < threads + THREADS_MAX; thread++)
		if (thread->state == THREAD_READY)
			return true;
	return false;
}

u32 threads_count(void)
{
	const struct thread *thread;
	u32 alive = 0;

	for (thread = threads; thread < threads + THREADS_MAX; thread++)
		alive += thread->state != THREAD_NONE;
	return alive;
}
