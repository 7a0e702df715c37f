/* EL2: what the normal world did to get here, and who serves it. */

#include "arch/aarch64/sandbox.h"
#include "arch/aarch64/smmu.h"
#include "arch/aarch64/system.h"
#include "arch/arch.h"
#include "core/layout.h"
#include "core/monitor.h"
#include "core/redistributor.h"
#include "flex_run.h"

#define CLASS_HVC 0x16
#define CLASS_SMC 0x17
#define CLASS_REGISTER 0x18
#define CLASS_FETCH 0x20
#define CLASS_DATA 0x24

#define ESR_IL (1ULL << 25)
#define ESR_DESCRIBED (1ULL << 24) /* which register is loaded or stored, and how much of it */
#define ESR_BYTES(esr) (1ULL << ((esr) >> 22 & 3))
#define ESR_NUMBER(esr) ((esr) >> 16 & 31)
#define ESR_WALK (1ULL << 7) /* by the CPU's own walk of the OS's tables */
#define ESR_WRITE (1ULL << 6)
#define ESR_FAULT(esr) ((esr) & 0x3c) /* at any level */
#define FAULT_PERMISSION 0x0c
#define NOWHERE (~0ULL) /* no address of RAM */
#define FAULT_EXTERNAL 0x10 /* a user program gets SIGBUS */
#define FAULT_ALIGNMENT 0x21 /* the kernel runs its fix-ups: copy_from_user and the like give -EFAULT */

#define PSTATE_PAN (1ULL << 22)
#define SCTLR_SPAN (1ULL << 23)

#define SMCCC_FIRST 0x80000000
#define SMCCC_LAST 0x80000001
#define PSCI_FIRST 0x84000000
#define PSCI_LAST 0x8400001f
#define PSCI_SYSTEM_OFF 0x84000008
#define PSCI_SYSTEM_RESET 0x84000009
#define WIDE 0x40000000 /* the 64-bit calling convention's bit in a function's number */

#define OWN_INTERRUPTS(cpu) { PLAT_GICR + (cpu) * PLAT_GICR_STRIDE + FRAME_BYTES, FRAME_BYTES }
#define FRAME_BYTES 0x10000

/*
 * What the OS may use of the machine's registers. Everything else, fw_cfg and other DMA masters included, is hidden.
 * Of the GIC's frames for each CPU the first is answered for by us, see core/redistributor.h.
 */
static const struct window windows[] = {
	{ PLAT_GICD, FRAME_BYTES },
	OWN_INTERRUPTS(0), OWN_INTERRUPTS(1), OWN_INTERRUPTS(2), OWN_INTERRUPTS(3),
	OWN_INTERRUPTS(4), OWN_INTERRUPTS(5), OWN_INTERRUPTS(6), OWN_INTERRUPTS(7),
	{ 0x09000000, 0x00001000 }, /* UART */
	{ 0x10000000, 0x2f200000 }, /* PCIe: memory, ports, configuration space of buses 0 and 1 */
};

_Static_assert(PLAT_CPUS == 8, "a window for each CPU");

static u64 cpus;

u64 el2_init(const struct board *board)
{
	if (!monitor_init(board, windows, sizeof(windows) / sizeof(windows[0])))
		return 1;
	cpus = board->cpus;
	smmu_open(monitor_layout());
	return 0;
}

static u64 smc(u64 function, u64 a, u64 b, u64 c)
{
	register u64 x0 __asm__("x0") = function;
	register u64 x1 __asm__("x1") = a;
	register u64 x2 __asm__("x2") = b;
	register u64 x3 __asm__("x3") = c;

	__asm__ volatile("smc #0" : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3)::"memory");
	return x0;
}

void arch_ring_secure(void)
{
	smc(PLAT_SMC_RING, 0, 0, 0);
}

/* Returns only when EL3 refuses: otherwise it goes straight to the caller, and we are started anew some day. */
int arch_relax(void)
{
	return (int)smc(PLAT_SMC_RELAX, 0, 0, 0);
}

void arch_panic(const char *why)
{
	smc(PLAT_SMC_PANIC, (u64)why, 0, 0);
	for (;;)
		;
}

void el2_unexpected(const struct frame *frame)
{
	(void)frame;
	arch_panic("an exception that cannot be");
}

/* What devices were kept from counts as what CPUs are. */
static void count_stopped(void)
{
	u64 stopped;

	arch_lock();
	stopped = smmu_stopped();
	arch_unlock();
	while (stopped-- != 0)
		monitor_fault(NOWHERE);
}

static void serve(struct frame *frame)
{
	u64 function = frame->x[0] & 0xffffffff;

	if (function == FLEX_SMC_BASE + FLEX_CALL_RUN) {
		smc(PLAT_SMC_RUN, 0, 0, 0); /* EL3 answers the OS, and does not come back to us */
	} else if ((function & ~0xffULL) == FLEX_SMC_BASE) {
		frame->x[0] = function;
		if (function == FLEX_SMC_BASE + FLEX_CALL_POLL)
			count_stopped();
		monitor_call(frame->x);
	} else if (((function & ~(u64)WIDE) >= PSCI_FIRST && (function & ~(u64)WIDE) <= PSCI_LAST) ||
		   (function >= SMCCC_FIRST && function <= SMCCC_LAST)) {
		if ((function & ~(u64)WIDE) == PSCI_SYSTEM_OFF || (function & ~(u64)WIDE) == PSCI_SYSTEM_RESET) {
			smc(PLAT_SMC_END, 0, 0, 0); /* nobody writes to secure pages any more */
			monitor_end();
		}
		frame->x[0] = smc(function, frame->x[1], frame->x[2], frame->x[3]);
	} else {
		frame->x[0] = (u64)FLEX_STATUS_UNKNOWN;
	}
}

/* Where EL1's vectors take an exception from the interrupted mode. */
static u64 vector_of(u64 spsr)
{
	if (spsr & SPSR_AARCH32)
		return 0x600;
	switch (spsr & SPSR_MODE) {
	case SPSR_EL1H:
		return 0x200;
	case SPSR_EL1T:
		return 0x000;
	default:
		return 0x400;
	}
}

/* Have EL1 take an exception at what was interrupted. */
static void except(struct frame *frame, u64 esr, u64 pan)
{
	write_register("esr_el1", esr);
	write_register("elr_el1", frame->elr);
	write_register("spsr_el1", frame->spsr);
	frame->elr = read_register("vbar_el1") + vector_of(frame->spsr);
	frame->spsr = SPSR_MASKED | SPSR_EL1H | pan;
}

/* Let the access that came here end in an abort at EL1, as if memory had refused it. */
static void forge_abort(struct frame *frame, u64 esr)
{
	u64 class = esr >> 26, spsr = frame->spsr, pan = spsr & PSTATE_PAN;
	bool kernel = !(spsr & SPSR_AARCH32) && (spsr & SPSR_MODE) != SPSR_EL0;

	if (!(read_register("sctlr_el1") & SCTLR_SPAN))
		pan = PSTATE_PAN;
	esr = (class + kernel) << 26 | (esr & ESR_IL) | (class == CLASS_DATA ? esr & ESR_WRITE : 0) |
	      (kernel ? FAULT_ALIGNMENT : FAULT_EXTERNAL);
	write_register("far_el1", read_register("far_el2"));
	except(frame, esr, pan);
}

/* An access to the first frame of a redistributor: it is answered here. False: it was none. */
static bool serve_redistributor(struct frame *frame, u64 esr, u64 ipa)
{
	u64 at = ipa - PLAT_GICR, offset = at % PLAT_GICR_STRIDE, bytes = ESR_BYTES(esr), shown, value = 0;

	if (at >= cpus * PLAT_GICR_STRIDE || offset >= FRAME_BYTES || esr >> 26 != CLASS_DATA || !(esr & ESR_DESCRIBED))
		return false;
	shown = redistributor_shown(offset, bytes);
	if (!(esr & ESR_WRITE) && shown != 0)
		value = (bytes == 8 ? register64(ipa) : register32(ipa)) & shown;
	if (!(esr & ESR_WRITE) && ESR_NUMBER(esr) != 31)
		frame->x[ESR_NUMBER(esr)] = value;
	if ((esr & ESR_WRITE) && offset != REDISTRIBUTOR_WAKER) /* that one Linux writes without any harm in mind */
		monitor_fault(ipa);
	frame->elr += 4;
	return true;
}

/* Where it was, as far as that is known: of a page that is there, but not for this, it is not. */
static u64 address_of(u64 esr)
{
	if (ESR_FAULT(esr) == FAULT_PERMISSION && !(esr & ESR_WALK))
		return NOWHERE;
	return (read_register("hpfar_el2") & ~0xfULL) << 8 | (read_register("far_el2") & (FLEX_PAGE_BYTES - 1));
}

static void serve_access(struct frame *frame, u64 esr)
{
	u64 ipa = address_of(esr);

	if (!serve_redistributor(frame, esr, ipa) && monitor_fault(ipa) == MONITOR_BLOCK)
		forge_abort(frame, esr);
}

void el2_synchronous(struct frame *frame)
{
	u64 esr = read_register("esr_el2");

	if (read_register("hcr_el2") & HCR_SANDBOX)
		sandbox_faulted(frame);
	switch (esr >> 26) {
	case CLASS_HVC:
		frame->x[0] = (u64)FLEX_STATUS_UNKNOWN;
		break;
	case CLASS_SMC:
		frame->elr += 4;
		serve(frame);
		break;
	case CLASS_REGISTER: /* of this CPU's maker; for the OS there is no such instruction */
		except(frame, ESR_IL, 0);
		break;
	case CLASS_FETCH:
	case CLASS_DATA:
		serve_access(frame, esr);
		break;
	default:
		arch_panic("a trap that was not set");
	}
}
