#include "arch/fake_host/fake_host.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ENTRIES 512
#define ADDRESS 0x0000fffffffff000ULL
#define MAILBOX_BYTES (FLEX_MAILBOX_HEADER_BYTES + 2ULL * FLEX_MAILBOX_SLOTS * FLEX_MAILBOX_SLOT_BYTES)
#define PLACES (HOST_SECURE_PAGES + HOST_PAGES)

struct host host;
void (*host_witness)(void);

/* How pages are reached, and which ones at all. */
struct view {
	u8 reach[PLACES];
	u32 places[PLACES];
	u32 count;
};

static struct view remembered; /* by somebody */
static struct view mapped;
static jmp_buf *rescue;
static const char *panic;

_Noreturn void host_fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("FAILED: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	if (host_witness)
		host_witness();
	va_end(arguments);
	abort();
}

static void forget(struct view *view)
{
	while (view->count > 0)
		view->reach[view->places[--view->count]] = 0;
}

static void see(struct view *view, u32 place, u8 reach)
{
	if (view->reach[place] == 0)
		view->places[view->count++] = place;
	view->reach[place] |= reach;
}

static u8 *zeros(u8 *old, u64 bytes)
{
	if (old)
		munmap(old, bytes);
	old = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (old == MAP_FAILED)
		host_fail("no memory for %llu bytes", (unsigned long long)bytes);
	return old;
}

void host_make(void)
{
	struct host new = {
		.ram = zeros(host.ram, HOST_RAM_BYTES),
		.secure = zeros(host.secure, HOST_SECURE_PAGES * PAGE),
		.flash = zeros(host.flash, APPLICATION_BYTES_MAX),
		.mailbox = zeros(host.mailbox, MAILBOX_BYTES),
		.states = zeros(host.states, HOST_PAGES),
		.now = 1000000,
		.protection = { .state = 1, .switches = 1 },
	};

	host = new;
	forget(&remembered);
}

struct machine host_machine(void)
{
	static const u8 seed[32] = "a seed that is known to all", secret[32] = "a secret of nobody";

	return (struct machine){
		.board = { FLEX_BOARD_MAGIC, HOST_RAM, HOST_RAM_BYTES, 2, 0 },
		.application = HOST_APPLICATION,
		.free_first = HOST_SECURE,
		.free_end = HOST_SECURE + HOST_SECURE_PAGES * PAGE,
		.seed = seed,
		.secret = secret,
	};
}

/* ---- what S-EL0 reaches ------------------------------------------------------------------------------------ */

static u32 place_of(u64 pa)
{
	return (u32)(pa >= HOST_RAM ? HOST_SECURE_PAGES + (pa - HOST_RAM) / PAGE : (pa - HOST_SECURE) / PAGE);
}

static u8 reach_of(u64 entry)
{
	bool write = !(entry & 0x80), run = !(entry & 1ULL << 54);

	if (!(entry & 1ULL << 53) || !(entry & 0x40))
		host_fail("S-EL1 may run %#llx, or S-EL0 reaches nothing by it", (unsigned long long)entry);
	if (write && run)
		host_fail("%#llx can be written and run", (unsigned long long)entry);
	if (((entry & ADDRESS) >= HOST_RAM) != !!(entry & 0x20))
		host_fail("%#llx is memory of the other world", (unsigned long long)entry);
	return (u8)(1 | write << 1 | run << 2);
}

static void look_below(const u64 *table, u32 level)
{
	u32 i;

	for (i = 0; i < ENTRIES; i++) {
		if (!(table[i] & 1))
			continue;
		if (level < 3)
			look_below((const u64 *)(void *)(host.secure + ((table[i] & ADDRESS) - HOST_SECURE)), level + 1);
		else if ((table[i] & ADDRESS) >= HOST_SECURE) /* else flash, which nobody can write */
			see(&mapped, place_of(table[i] & ADDRESS), reach_of(table[i]));
	}
}

static void look(void)
{
	u32 i;

	forget(&mapped);
	if (host.root)
		look_below((const u64 *)(void *)(host.secure + (host.root - HOST_SECURE)), 1);
	for (i = 0; i < mapped.count; i++)
		see(&remembered, mapped.places[i], mapped.reach[mapped.places[i]]);
}

u8 host_reach(u64 pa)
{
	look();
	return mapped.reach[place_of(pa)];
}

static void check(void)
{
	u64 page;
	u32 i, place;

	look();
	for (i = 0; i < remembered.count; i++) {
		place = remembered.places[i];
		if (remembered.reach[place] & ~mapped.reach[place])
			host_fail("somebody still reaches place %u", place);
		if (place < HOST_SECURE_PAGES)
			continue;
		page = place - HOST_SECURE_PAGES;
		if (host.states[page] != FLEX_STATE_SECURE &&
		    (page + HOST_RAM / PAGE < host.ring_page || page + HOST_RAM / PAGE >= host.ring_page + host.ring_pages))
			host_fail("page %llu is mapped in state %d", (unsigned long long)page, host.states[page]);
	}
}

const char *host_panic_of(void (*function)(void))
{
	jmp_buf here;

	panic = NULL;
	rescue = &here;
	if (setjmp(here) == 0)
		function();
	rescue = NULL;
	host.held = false;
	return panic;
}

/* ---- what arch/arch.h asks for ------------------------------------------------------------------------------ */

void arch_lock(void)
{
	if (host.held)
		host_fail("the lock is taken twice");
	host.held = true;
}

void arch_unlock(void)
{
	if (!host.held)
		host_fail("the lock is not held");
	check();
	host.held = false;
}

void *arch_at(u64 pa)
{
	if (pa >= HOST_RAM && pa < HOST_RAM + HOST_RAM_BYTES)
		return host.ram + (pa - HOST_RAM);
	if (pa >= HOST_SECURE && pa < HOST_SECURE + HOST_SECURE_PAGES * PAGE)
		return host.secure + (pa - HOST_SECURE);
	if (pa >= HOST_APPLICATION && pa < HOST_APPLICATION + APPLICATION_BYTES_MAX)
		return host.flash + (pa - HOST_APPLICATION);
	host_fail("nothing lies at %#llx", (unsigned long long)pa);
}

void arch_scrub(u64 pa)
{
	memset(arch_at(pa), 0, PAGE);
}

void arch_flush(void)
{
	forget(&remembered);
	look();
}

u8 arch_page_state(u64 page)
{
	return host.states[page];
}

volatile u8 *arch_mailbox(void)
{
	return host.mailbox;
}

void arch_save(struct context *context)
{
	struct frame frame = context->frame;

	*context = host.registers[host.cpu];
	context->frame = frame;
}

void arch_load(const struct context *context)
{
	host.registers[host.cpu] = *context;
}

u64 arch_now(void)
{
	return host.now;
}

void arch_doorbell(void)
{
	host.doorbells++;
}

struct protection arch_protection(void)
{
	if (host.on_protection)
		host.on_protection();
	return host.protection;
}

u64 arch_measure(u8 digest[32])
{
	memset(digest, 0xe2, 32);
	return host.protection.state;
}

void arch_say(char letter)
{
	if (host.letters + 1 < sizeof(host.said))
		host.said[host.letters++] = letter;
}

void arch_barrier(void)
{
}

void arch_panic(const char *why)
{
	panic = why;
	if (!rescue)
		host_fail("the kernel panicked: %s", why);
	longjmp(*rescue, 1);
}
