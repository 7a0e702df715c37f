/* What the portable core needs, at S-EL1 of an Armv8 machine; and who gets what arrives there. */

#include "arch/arch.h"

#include "core/kernel.h"
#include "core/limits.h"
#include "el3/secure_os.h"
#include "flex_measured.h"
#include "flex_run.h"
#include "flex_secure.h"
#include "plat/qemu_virt/secure_plat.h"

#define read_register(name)                                      \
	({                                                       \
		u64 value_;                                      \
		__asm__ volatile("mrs %0, " name : "=r"(value_)); \
		value_;                                          \
	})

#define write_register(name, value) __asm__ volatile("msr " name ", %0" ::"r"((u64)(value)) : "memory")

#define LINE 64 /* bytes that one DC ZVA clears on every core we know; checked below */
#define SECOND 1000000000ULL
#define RAM_FIRST 0x40000000ULL
#define CLASS_CALL 0x15
#define UART_FLAGS 0x18
#define UART_FULL (1U << 5)
#define UART_LOOKS_MAX 100000 /* the UART is the OS's: it may never have room again */
#define ENDING_PANIC 0xff

/* Entries of the table of windows: a page of registers, what the monitor shares with us, and a page of RAM for each core. */
#define WINDOW_UART 0
#define WINDOW_CORES 8
#define WINDOW_MAILBOX 32
#define WINDOW_STATES 128
#define LEAF (3ULL | 1ULL << 5 | 3ULL << 8 | 1ULL << 10 | 3ULL << 53) /* non-secure, never run */
#define LEAF_MEMORY (LEAF | 1ULL << 2)
#define LEAF_READ_ONLY (1ULL << 7)
#define MAILBOX_PAGES ((FLEX_MAILBOX_HEADER_BYTES + 2ULL * FLEX_MAILBOX_SLOTS * FLEX_MAILBOX_SLOT_BYTES + PAGE - 1) / PAGE)

extern const u8 secure_os_seed[], secure_os_secret[];
extern u8 free_start[];
void secure_os_save_vectors(u64 *to);
void secure_os_load_vectors(const u64 *from);

u64 secure_os_windows[512] __attribute__((aligned(4096)));
struct board secure_os_board __attribute__((section(".data")));
u64 secure_os_root;
u32 secure_os_ready;

static u32 lock;
static u64 shown[CPUS_MAX]; /* the page of RAM in each core's window */

/* ---- memory ------------------------------------------------------------------------------------------------ */

static volatile u8 *window(u64 entry)
{
	return (volatile u8 *)(OS_WINDOWS + entry * PAGE);
}

static u32 this_cpu(void)
{
	return (u32)read_register("tpidr_el1");
}

void arch_lock(void)
{
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		__asm__ volatile("yield");
}

void arch_unlock(void)
{
	__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

/* Only this core uses its window, and no other knew what was there. */
static void show(u32 cpu, u64 page)
{
	u64 at = (u64)window(WINDOW_CORES + cpu);

	if (shown[cpu] == page)
		return;
	secure_os_windows[WINDOW_CORES + cpu] = 0;
	__asm__ volatile("dsb nshst\n\ttlbi vaae1, %0\n\tdsb nsh" ::"r"(at >> 12 & 0xfffffffffff) : "memory");
	secure_os_windows[WINDOW_CORES + cpu] = page | LEAF_MEMORY;
	__asm__ volatile("dsb nshst\n\tisb" ::: "memory");
	shown[cpu] = page;
}

void *arch_at(u64 pa)
{
	u32 cpu = this_cpu();

	if (pa < RAM_FIRST)
		return (void *)(OS_ADDRESSES + pa);
	show(cpu, pa / PAGE * PAGE);
	return (void *)(window(WINDOW_CORES + cpu) + pa % PAGE);
}

void arch_scrub(u64 pa)
{
	u64 at = (u64)arch_at(pa), end = at + PAGE;

	if ((read_register("dczid_el0") & 0x1f) != 4)
		arch_panic("DC ZVA of another size");
	for (; at < end; at += LINE)
		__asm__ volatile("dc zva, %0" ::"r"(at) : "memory");
}

void arch_flush(void)
{
	__asm__ volatile("dsb ishst\n\ttlbi vmalle1is\n\tdsb ish\n\tisb" ::: "memory");
}

void arch_barrier(void)
{
	__asm__ volatile("dsb ish\n\tisb" ::: "memory");
}

u8 arch_page_state(u64 page)
{
	return window(WINDOW_STATES)[page];
}

volatile u8 *arch_mailbox(void)
{
	return window(WINDOW_MAILBOX);
}

static void map_windows(void)
{
	u64 end = secure_os_board.ram_base + secure_os_board.ram_bytes, i;
	u64 mailbox = end - MAILBOX_PAGES * PAGE, states = end - FLEX_HIDDEN_BYTES + FLEX_HIDDEN_STATES;

	_Static_assert(WINDOW_MAILBOX + MAILBOX_PAGES <= WINDOW_STATES, "the mailbox needs more windows");
	secure_os_windows[WINDOW_UART] = PLAT_CONSOLE | LEAF; /* a device: attribute 0 */
	for (i = 0; i < MAILBOX_PAGES; i++)
		secure_os_windows[WINDOW_MAILBOX + i] = (mailbox + i * PAGE) | LEAF_MEMORY;
	for (i = 0; i * PAGE < secure_os_board.ram_bytes / PAGE; i++)
		secure_os_windows[WINDOW_STATES + i] = (states + i * PAGE) | LEAF_MEMORY | LEAF_READ_ONLY;
	__asm__ volatile("dsb ishst\n\tisb" ::: "memory");
}

/* ---- registers --------------------------------------------------------------------------------------------- */

void arch_save(struct context *context)
{
	secure_os_save_vectors(context->vectors);
	context->tls = read_register("tpidr_el0");
	context->fpcr = read_register("fpcr");
	context->fpsr = read_register("fpsr");
}

void arch_load(const struct context *context)
{
	secure_os_load_vectors(context->vectors);
	write_register("tpidr_el0", context->tls);
	write_register("fpcr", context->fpcr);
	write_register("fpsr", context->fpsr);
}

u64 arch_now(void)
{
	u64 ticks = read_register("cntpct_el0"), frequency = read_register("cntfrq_el0");

	return ticks / frequency * SECOND + ticks % frequency * SECOND / frequency;
}

/* ---- what EL3 is asked --------------------------------------------------------------------------------------- */

struct answer {
	u64 x[6];
};

static struct answer smc(u64 function, u64 a, u64 b)
{
	register u64 x0 __asm__("x0") = function;
	register u64 x1 __asm__("x1") = a;
	register u64 x2 __asm__("x2") = b;
	register u64 x3 __asm__("x3") = 0;
	register u64 x4 __asm__("x4") = 0;
	register u64 x5 __asm__("x5") = 0;

	__asm__ volatile("smc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5)::"memory");
	return (struct answer){ { x0, x1, x2, x3, x4, x5 } };
}

void arch_doorbell(void)
{
	smc(PLAT_SMC_DOORBELL, 0, 0);
}

static u64 state_of(u64 measured)
{
	if (measured == FLEX_MEASURED_ON)
		return FLEX_SECURE_ON;
	return measured == FLEX_MEASURED_OFF ? FLEX_SECURE_OFF : FLEX_SECURE_BROKEN;
}

struct protection arch_protection(void)
{
	struct answer answer = smc(PLAT_SMC_SWITCHES, 0, 0);

	return (struct protection){ state_of(answer.x[1]), answer.x[2] };
}

u64 arch_measure(u8 digest[32])
{
	struct answer answer = smc(PLAT_SMC_PROTECTION, 0, 0);
	u32 i;

	for (i = 0; i < 32; i++)
		digest[i] = (u8)(answer.x[2 + i / 8] >> 8 * (i % 8));
	return state_of(answer.x[1]);
}

void arch_say(char letter)
{
	static u32 looks; /* without room, in a row */

	while (*(volatile u32 *)(window(WINDOW_UART) + UART_FLAGS) & UART_FULL)
		if (looks++ >= UART_LOOKS_MAX)
			return;
	looks = 0;
	*(volatile u32 *)window(WINDOW_UART) = (u8)letter;
}

void arch_panic(const char *why)
{
	const char *letter;

	for (letter = "\r\nsecure OS: "; *letter; letter++)
		arch_say(*letter);
	for (; *why; why++)
		arch_say(*why);
	for (;;)
		smc(PLAT_SMC_YIELD, FLEX_RUN_ENDED, ENDING_PANIC);
}

/* ---- who gets what --------------------------------------------------------------------------------------------- */

/* Give this core back, again and again, until there is something to run. */
static void rest(u32 cpu, struct frame *frame, struct next next)
{
	while (next.yield != YIELD_NOT) {
		struct answer answer = smc(PLAT_SMC_YIELD, next.yield == YIELD_IDLE ? FLEX_RUN_IDLE : FLEX_RUN_ENDED, next.argument);

		next = kernel_lent(cpu, (struct said){ answer.x[1], answer.x[2] }, frame);
	}
}

void secure_os_first(void)
{
	struct machine machine = {
		.board = secure_os_board,
		.application = OS_APPLICATION,
		.free_first = (u64)free_start - OS_ADDRESSES,
		.free_end = SECURE_OS_RAM_END,
		.seed = secure_os_seed,
		.secret = secure_os_secret,
	};

	map_windows();
	secure_os_root = kernel_init(&machine);
	__asm__ volatile("dsb ish" ::: "memory");
	secure_os_ready = 1;
	__asm__ volatile("dc cvac, %0\n\tdsb sy" ::"r"(&secure_os_ready) : "memory"); /* others look past their caches */
}

void secure_os_enter(struct frame *frame, u32 cpu, u64 ring_page, u64 ring_pages)
{
	*frame = (struct frame){ .pstate = 0 };
	rest(cpu, frame, kernel_lent(cpu, (struct said){ ring_page, ring_pages }, frame));
}

void secure_os_exception(struct frame *frame, u32 cpu)
{
	u64 class = read_register("esr_el1") >> 26;

	rest(cpu, frame, class == CLASS_CALL ? kernel_call(cpu, frame) : kernel_fault(cpu, frame, class));
}

_Noreturn void secure_os_unexpected(u64 syndrome, u64 at)
{
	int shift;

	for (shift = 60; shift >= 0; shift -= 4)
		arch_say("0123456789abcdef"[syndrome >> shift & 0xf]);
	arch_say(' ');
	for (shift = 60; shift >= 0; shift -= 4)
		arch_say("0123456789abcdef"[at >> shift & 0xf]);
	arch_panic("an exception that cannot be");
}
