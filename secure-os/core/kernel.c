#include "core/kernel.h"

#include "core/areas.h"
#include "core/calls.h"
#include "core/elf.h"
#include "core/flexmem.h"
#include "core/pages.h"
#include "core/random.h"
#include "core/threads.h"

static u64 ended; /* why, as YIELD tells; 0: it has not */
static u32 idle; /* a bit for each core that was given back for want of a thread */
static bool called; /* the OS was told since one was, that there is work */

static void say(const char *text)
{
	u32 i;

	for (i = 0; i < REASON_LETTERS_MAX && text[i]; i++)
		arch_say(text[i]);
}

static void say_number(u64 number)
{
	int shift;

	for (shift = 60; shift >= 0; shift -= 4)
		arch_say("0123456789abcdef"[number >> shift & 0xf]);
}

/* The application ends: it is out of everybody's reach first, and then overwritten. */
static void end(enum ending why, u64 number)
{
	ended = why | number << 8;
	tables_end();
	arch_flush();
	flexmem_end();
	pages_end();
	threads_init();
}

u64 kernel_init(const struct machine *machine)
{
	static const enum ending endings[] = { 0, ENDING_NONE, ENDING_BAD, ENDING_LARGE };
	struct started started;
	struct thread *thread;
	enum loaded loaded;
	u64 root;

	if (machine->board.cpus > CPUS_MAX || machine->board.ram_bytes > RAM_PAGES_MAX * PAGE)
		arch_panic("no such board");
	ended = idle = 0;
	called = false;
	pages_init(machine->free_first, machine->free_end, machine->board.ram_base);
	root = tables_init();
	areas_init();
	threads_init();
	flexmem_init(&machine->board);
	random_init(machine->seed);
	loaded = elf_load(machine->application, APPLICATION_BYTES_MAX, &started);
	if (loaded != LOADED) {
		end(endings[loaded], 0);
		return root;
	}
	calls_init(started.end, machine->board.cpus);
	flex_calls_init(machine->secret);
	thread = threads_new();
	thread->context.frame.pc = started.pc;
	thread->context.frame.sp = started.sp;
	return root;
}

/* A core that was given back for want of a thread has work now, if any is left: once for each time that it goes back. */
static void share(void)
{
	if (!threads_ready() || idle == 0 || called)
		return;
	called = true;
	arch_doorbell();
}

/* What a core without a thread goes on with. */
static struct next go_on(u32 cpu, struct frame *frame)
{
	u64 ns;

	if (ended)
		return (struct next){ YIELD_ENDED, ended };
	ns = threads_late(arch_now());
	if (!threads_next(cpu, frame)) {
		idle |= 1U << cpu;
		called = false;
		return (struct next){ YIELD_IDLE, ns };
	}
	share();
	return (struct next){ YIELD_NOT, 0 };
}

struct next kernel_lent(u32 cpu, struct said said, struct frame *frame)
{
	struct next next;

	arch_lock();
	idle &= ~(1U << cpu);
	called = false;
	if (!ended)
		flex_calls_hear(said);
	next = go_on(cpu, frame);
	arch_unlock();
	return next;
}

/* After an exception: the thread goes on, if it still can. */
static struct next leave(u32 cpu, struct frame *frame)
{
	struct thread *thread = threads_current(cpu);

	if (!ended && thread && thread->state == THREAD_RUNNING) {
		share();
		return (struct next){ YIELD_NOT, 0 };
	}
	if (!ended && thread)
		threads_leave(cpu, frame);
	return go_on(cpu, frame);
}

struct next kernel_call(u32 cpu, struct frame *frame)
{
	struct next next;

	arch_lock();
	if (!ended) {
		threads_late(arch_now());
		if (mailbox_waits())
			threads_tell();
		if (!calls_serve(cpu, frame))
			end(ENDING_EXIT, frame->x[0] & 0xff);
	}
	next = leave(cpu, frame);
	arch_unlock();
	return next;
}

/* Where it was is said only if that is code: anything else may be a secret. */
struct next kernel_fault(u32 cpu, struct frame *frame, u64 kind)
{
	const struct area *area;
	struct next next;

	arch_lock();
	if (!ended) {
		area = areas_at(frame->pc);
		say("\r\nsecure world: the application faulted, class ");
		say_number(kind);
		if (area && area->kind == AREA_IMAGE) {
			say(", at ");
			say_number(frame->pc);
		}
		say("\r\n");
		end(ENDING_FAULT, kind);
	}
	next = leave(cpu, frame);
	arch_unlock();
	return next;
}
