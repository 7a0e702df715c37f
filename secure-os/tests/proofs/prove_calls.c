/*
 * Any system call, with any registers, of Linux's numbers and ours. No pointer of the application is followed (CBMC notices
 * one that is); what is said of memory lies in the parts of the application's addresses where the call may say it; and nothing
 * can be run. What the calls stand on (areas, threads, Flex-Mem, the application's memory) is played here: it answers anything
 * that its header allows.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#include "core/calls.c"
#include "core/flex_calls.c"

#include "core/areas.h"
#include "core/random.h"

#define CPU 0
#define IMAGE_DATA 0x420000ULL

static struct thread current, made;
static bool event_taken, pages_left_heap, written;
static u8 of_layer[SECRET_BYTES];

static u64 whole(u64 va, u64 bytes)
{
	return va % PAGE == 0 && bytes > 0 && bytes % PAGE == 0 && va < ADDRESSES_END && bytes <= ADDRESSES_END - va;
}

static int any_error(void)
{
	return -(int)(nondet_u8() % 120);
}

/* ---- the application's memory --------------------------------------------------------------------------------- */

bool user_read(void *to, u64 va, u64 bytes)
{
	u8 *at = to;
	u64 i;

	(void)va;
	prove(bytes <= 16, "what is read is bounded");
	for (i = 0; i < bytes; i++)
		at[i] = nondet_u8();
	return nondet_bool();
}

bool user_write(u64 va, const void *from, u64 bytes)
{
	(void)va;
	prove(bytes <= 64 && __CPROVER_r_ok(from, bytes), "what is written is the kernel's to give");
	written = nondet_bool();
	return written;
}

u64 tables_reach(u64 va, bool write)
{
	(void)write;
	return va < ADDRESSES_END && nondet_bool() ? nondet_u64() | PAGE : 0;
}

/* ---- its address space ------------------------------------------------------------------------------------------ */

static bool is_data(u64 va, u64 bytes)
{
	return va >= data_end && va + bytes <= IMAGE_END;
}

static bool is_private(u64 va, u64 bytes)
{
	return va >= PRIVATE_FIRST && va + bytes <= PRIVATE_END;
}

u64 areas_room(u64 from, u64 to, u64 bytes)
{
	u64 va = nondet_u64();

	prove(from == PRIVATE_FIRST && to == PRIVATE_END, "mmap looks where mmap may");
	assume(va == 0 || (va % PAGE == 0 && va >= from && va <= to && bytes <= to - va));
	return va;
}

int areas_private(u64 va, u64 bytes, enum use use)
{
	prove(whole(va, bytes), "memory comes in whole pages, within the addresses there are");
	prove(is_data(va, bytes) || is_private(va, bytes), "where brk and mmap put it");
	prove(use != USE_RUN, "and is never run");
	return any_error();
}

int areas_protect(u64 va, u64 bytes, enum use use)
{
	prove(whole(va, bytes), "whole pages are protected, within the addresses there are");
	prove(use != USE_RUN, "nothing becomes code");
	return any_error();
}

int areas_clear(u64 va, u64 bytes)
{
	prove(whole(va, bytes), "whole pages are cleared, within the addresses there are");
	return any_error();
}

int areas_free(u64 va, u64 bytes)
{
	prove(whole(va, bytes), "whole pages are freed, within the addresses there are");
	return any_error();
}

/* ---- threads and the machine --------------------------------------------------------------------------------------- */

struct thread *threads_current(u32 cpu)
{
	prove(cpu == CPU, "a call is of the thread that made it");
	return &current;
}

struct thread *threads_new(void)
{
	return nondet_bool() ? &made : NULL;
}

void threads_wait(u32 cpu, enum wait wait, u64 until, s64 late)
{
	(void)until;
	(void)late;
	prove(cpu == CPU && wait <= WAIT_NEWS, "who waits is who asked");
}

void threads_yield(u32 cpu)
{
	prove(cpu == CPU, "who yields is who asked");
}

void threads_end(u32 cpu)
{
	prove(cpu == CPU, "who ends is who asked");
}

u64 threads_wake(u64 address, u32 bits, u64 most)
{
	(void)address;
	(void)bits;
	prove(most <= 0x7fffffff, "as many as the kernel counts");
	return nondet_u8();
}

u64 threads_tell(void)
{
	return nondet_u8();
}

u32 threads_count(void)
{
	return nondet_u8();
}

void arch_save(struct context *context)
{
	prove(context == &made.context, "registers go to the thread that is made");
}

u64 arch_now(void)
{
	u64 now = nondet_u64();

	assume(now < 1ULL << 62);
	return now;
}

void arch_say(char letter)
{
	(void)letter;
}

u64 arch_measure(u8 digest[32])
{
	digest[0] = digest[31] = nondet_u8();
	return nondet_u8();
}

struct protection arch_protection(void)
{
	return (struct protection){ nondet_u64(), nondet_u64() };
}

bool random_fill(u8 *to, u64 bytes)
{
	prove(__CPROVER_w_ok(to, bytes), "random bytes have room");
	return nondet_bool();
}

bool mailbox_waits(void)
{
	return nondet_bool();
}

/* ---- Flex-Mem ------------------------------------------------------------------------------------------------------- */

s64 flexmem_reserve(u64 bytes)
{
	(void)bytes;
	return (s64)(nondet_u64() >> 1);
}

s64 flexmem_map(u64 va, u64 page, u64 count)
{
	(void)va;
	(void)page;
	(void)count;
	return any_error();
}

s64 flexmem_unmap(u64 va, u64 count)
{
	(void)va;
	(void)count;
	return any_error();
}

s64 flexmem_command(struct message command)
{
	(void)command;
	return any_error();
}

s64 flexmem_event(struct message *event)
{
	*event = (struct message){ nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	event_taken = nondet_bool();
	return event_taken;
}

s64 flexmem_ring(u64 page, u64 pages, u64 *va, u64 *bytes)
{
	prove(page == last_said.ring_page && pages == last_said.ring_pages, "the ring is the one that the OS named, not the caller");
	*va = RING_AT;
	*bytes = nondet_u64();
	return any_error();
}

s64 flexmem_give(u64 page, u64 count)
{
	(void)page;
	(void)count;
	return any_error();
}

s64 flexmem_take(u64 most, u64 *page)
{
	(void)most;
	*page = nondet_u64();
	pages_left_heap = true;
	return nondet_u8();
}

int main(void)
{
	struct frame frame, before; /* anything */
	u32 i;
	bool told;

	before = frame;
	data_end = IMAGE_DATA;
	data_now = nondet_u64();
	assume(data_now >= data_end && data_now <= IMAGE_END);
	cores = 1 + nondet_u8() % CPUS_MAX;
	for (i = 0; i < SECRET_BYTES; i++)
		of_layer[i] = nondet_u8();
	told = nondet_bool();
	secret = told ? of_layer : NULL;
	last_said = (struct said){ nondet_u64(), nondet_u64() };
	news = nondet_bool();
	calls_serve(CPU, &frame);
	prove(frame.pc == before.pc && frame.sp == before.sp && frame.pstate == before.pstate, "a call changes no register but x0");
	i = 1 + nondet_u32() % 30;
	prove(frame.x[i] == before.x[i], "nor any other");
	prove(data_now >= data_end && data_now <= IMAGE_END, "brk stays behind the data, and below the end");
	prove(secret == NULL || secret == of_layer, "there is one secret");
	if (told && secret == NULL)
		prove(before.x[8] == FLEX_SECURE_SECRET && frame.x[0] == 0 && written, "it is told once, to who asks for it");
	possible(told && secret == NULL);
	possible(before.x[8] == CALL_BRK && data_now != data_end);
	possible(event_taken);
	possible(pages_left_heap);
	return 0;
}
