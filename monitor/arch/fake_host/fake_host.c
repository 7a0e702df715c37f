#include "arch/fake_host/fake_host.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/arch.h"
#include "core/monitor.h"
#include "core/npu.h"
#include "core/pages.h"

#define ENTRIES 512
#define TABLE_ADDRESS 0x0000fffffffff000ULL

struct host host = { .relax_status = FLEX_STATUS_OK };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static jmp_buf *rescue;
static const char *panic;

_Noreturn void host_fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("FAILED: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	if (host.witness)
		host.witness();
	abort();
}

void host_make(u64 ram_base, u64 ram_bytes)
{
	u64 pages = ram_bytes / FLEX_PAGE_BYTES;
	int viewer;

	if (host.ram)
		munmap(host.ram, host.ram_bytes);
	/* Never touched, it costs nothing. */
	host.ram = mmap(NULL, ram_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (host.ram == MAP_FAILED)
		host_fail("no memory for %llu bytes of RAM", (unsigned long long)ram_bytes);
	host.ram_base = ram_base;
	host.ram_bytes = ram_bytes;
	for (viewer = 0; viewer < HOST_VIEWERS; viewer++) {
		free(host.reached[viewer]);
		host.reached[viewer] = calloc(pages, 1);
		if (!host.reached[viewer])
			host_fail("no memory for what others remember");
	}
	host.watched_first = host.watched_count = 0;
	host.rings = host.relaxed = 0;
	host.relax_status = FLEX_STATUS_OK;
	host.npu = (struct host_npu){ 0 };
	host.npu_deaf = false;
	host.stop = ARCH_RETURNED;
	host.result = 0;
	host.watcher = NULL;
}

struct board host_board(u64 npus)
{
	return (struct board){ FLEX_BOARD_MAGIC, host.ram_base, host.ram_bytes, 2, npus };
}

static const u64 *table_at(u64 pa)
{
	if (pa < host.ram_base || pa - host.ram_base > host.ram_bytes - FLEX_PAGE_BYTES)
		host_fail("a table outside RAM: %#llx", (unsigned long long)pa);
	return (const u64 *)(host.ram + (pa - host.ram_base));
}

static u64 root_of(enum host_viewer viewer)
{
	switch (viewer) {
	case HOST_CPUS:
		return monitor_layout()->stage2.level1;
	case HOST_DEVICES:
		return monitor_layout()->devices.level1;
	case HOST_NPU:
		return host.npu.root;
	default:
		return monitor_layout()->sandbox;
	}
}

u64 host_walk(enum host_viewer viewer, u64 ipa, u64 *pa)
{
	u64 table = root_of(viewer), entry = 0;
	unsigned int shift;

	if (ipa >> 32 || table == 0)
		return 0;
	for (shift = 30; shift >= 12; shift -= 9) {
		entry = table_at(table)[(ipa >> shift) % ENTRIES];
		if (!(entry & 1))
			return 0;
		if (shift == 12 && !(entry & 2))
			host_fail("a reserved descriptor at level 3: %#llx", (unsigned long long)entry);
		if (shift == 12 || !(entry & 2))
			break;
		table = entry & TABLE_ADDRESS;
	}
	*pa = (entry & TABLE_ADDRESS & ~((1ULL << shift) - 1)) | (ipa & ((1ULL << shift) - 1));
	return entry;
}

static void look(enum host_viewer viewer)
{
	u64 page, pa;

	for (page = host.watched_first; page < host.watched_first + host.watched_count; page++)
		if (host_walk(viewer, host.ram_base + page * FLEX_PAGE_BYTES, &pa))
			host.reached[viewer][(pa - host.ram_base) / FLEX_PAGE_BYTES] = 1;
}

static void give_npu_work(void)
{
	u64 pa;

	if (host_walk(HOST_CPUS, monitor_layout()->window, &pa))
		host.npu.registers_known = true;
	if (host.npu.registers_known)
		host.npu.works_for_os = true;
	if (npu_state() == FLEX_NPU_STATE_SECURE)
		host.npu.works_for_secure = true;
}

void host_look(void)
{
	look(HOST_CPUS);
	look(HOST_DEVICES);
	give_npu_work();
	if (host.npu.works_for_os || host.npu.works_for_secure)
		look(HOST_NPU);
}

bool host_npu_trespasses(u64 page)
{
	return host.reached[HOST_NPU][page] &&
	       ((host.npu.works_for_os && pages_state(page) != FLEX_STATE_NORMAL) ||
		(host.npu.works_for_secure && pages_state(page) != FLEX_STATE_SECURE));
}

static void moment(enum host_moment which)
{
	if (!host.held)
		host_fail("the monitor does moment %d without the lock", (int)which);
	if (!host.watcher)
		return;
	host_look();
	host.watcher(which);
}

const char *host_panic_of(void (*function)(void))
{
	jmp_buf here;

	panic = NULL;
	rescue = &here;
	if (setjmp(here) == 0)
		function();
	rescue = NULL;
	if (host.held) {
		host.held = false;
		pthread_mutex_unlock(&lock);
	}
	return panic;
}

/* ---- what arch/arch.h asks for ------------------------------------------------------------------- */

void arch_lock(void)
{
	pthread_mutex_lock(&lock);
	host.held = true;
	moment(HOST_LOCKED);
}

void arch_unlock(void)
{
	moment(HOST_UNLOCKING);
	host.held = false;
	pthread_mutex_unlock(&lock);
}

/* The monitor touches nothing but its own memory, save by arch_scrub. */
void *arch_at(u64 pa)
{
	if (pa < host.ram_base + host.ram_bytes - FLEX_HIDDEN_BYTES || pa >= host.ram_base + host.ram_bytes)
		host_fail("the monitor reaches for %#llx", (unsigned long long)pa);
	return host.ram + (pa - host.ram_base);
}

static void forget(enum host_viewer viewer)
{
	memset(host.reached[viewer] + host.watched_first, 0, host.watched_count);
}

void arch_flush_stage2(void)
{
	moment(HOST_FLUSHING_STAGE2);
	forget(HOST_CPUS);
	host.npu.registers_known = false;
}

void arch_flush_devices(void)
{
	moment(HOST_FLUSHING_DEVICES);
	forget(HOST_DEVICES);
}

void arch_npu_flush(void)
{
	moment(HOST_FLUSHING_NPU);
	forget(HOST_NPU);
}

void arch_npu_root(u64 level1)
{
	host.npu.root = level1;
	if (host.held)
		moment(HOST_FLUSHING_NPU);
	forget(HOST_NPU);
}

/*
 * Done at once if at all: what it is given to do a moment later is not ended. It leaves its registers as they
 * are: who relies on it to clear them shall be found out.
 */
static void reset_npu(void)
{
	moment(HOST_RESETTING_NPU);
	if (!host.npu.resetting || host.npu_deaf)
		return;
	host.npu.resetting = host.npu.works_for_os = host.npu.works_for_secure = false;
	forget(HOST_NPU);
}

void arch_npu_reset(void)
{
	host.npu.resetting = true;
	reset_npu();
}

bool arch_npu_is_reset(void)
{
	reset_npu();
	return !host.npu.resetting;
}

/* Whoever hashes what he has not copied yet hashes something else: the OS changes it at the last moment. */
void arch_copy_code(u64 to, u64 from, u64 bytes)
{
	u8 *source = host.ram + (from - host.ram_base);

	moment(HOST_COPYING);
	memcpy(arch_at(to), source, bytes);
	source[0] ^= 0xff;
}

void arch_sandbox_begin(const u64 arguments[ARCH_ARGUMENTS])
{
	const u64 *stack = arch_at(monitor_layout()->stack);

	if (stack[0] || stack[ENTRIES - 1])
		host_fail("the sandbox begins with the stack of before");
	memcpy(host.npu.arguments, arguments, sizeof(host.npu.arguments));
	host.npu.driving = true;
}

enum arch_stop arch_sandbox_run(u64 *result)
{
	moment(HOST_SANDBOX_RUNNING);
	if (!host.npu.driving || npu_state() != FLEX_NPU_STATE_SECURE)
		host_fail("the sandbox runs, and nobody may drive the NPU");
	*result = host.result;
	host.npu.driving = host.stop == ARCH_INTERRUPTED;
	return host.stop;
}

static bool is_sandbox(u64 page)
{
	u64 pa = host.ram_base + page * FLEX_PAGE_BYTES;

	return pa >= monitor_layout()->code && pa <= monitor_layout()->stack;
}

void arch_scrub(u64 pa, u64 pages)
{
	u64 first = (pa - host.ram_base) / FLEX_PAGE_BYTES, page;

	if (host.held)
		moment(HOST_SCRUBBING);
	for (page = first; page < first + pages; page++)
		if (pages_state(page) != FLEX_STATE_RECALLING && !is_sandbox(page))
			host_fail("page %llu is scrubbed in state %d", (unsigned long long)page, (int)pages_state(page));
	memset(host.ram + first * FLEX_PAGE_BYTES, 0, pages * FLEX_PAGE_BYTES);
}

void arch_ring_secure(void)
{
	host.rings++;
}

int arch_relax(void)
{
	if (host.relax_status == FLEX_STATUS_OK)
		host.relaxed++;
	return host.relax_status;
}

void arch_barrier(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (host.held)
		moment(HOST_ORDERING);
}

_Noreturn void arch_panic(const char *why)
{
	panic = why;
	if (rescue)
		longjmp(*rescue, 1);
	host_fail("the monitor panicked: %s", why);
}
