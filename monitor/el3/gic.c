/*
 * The interrupt controller, as far as it is ours: two interrupts are of Group 0, which arrive at EL3 as
 * FIQs whatever runs; all others are the normal world's.
 */

#include "core/limits.h"
#include "el3/el3.h"

#define GICD_CTLR (PLAT_GICD + 0x0000)
#define GICD_TYPER (PLAT_GICD + 0x0004)
#define GICD_IGROUPR(n) (PLAT_GICD + 0x0080 + 4 * (n))
#define GICD_ISENABLER(n) (PLAT_GICD + 0x0100 + 4 * (n))
#define GICD_ISPENDR(n) (PLAT_GICD + 0x0200 + 4 * (n))
#define GICD_IPRIORITYR(n) (PLAT_GICD + 0x0400 + (n)) /* bytes */
#define GICD_IROUTER(n) (PLAT_GICD + 0x6000 + 8 * (u64)(n))

#define GICR(cpu) (PLAT_GICR + (u64)(cpu) * PLAT_GICR_STRIDE)
#define GICR_CTLR(cpu) GICR(cpu)
#define GICR_WAKER(cpu) (GICR(cpu) + 0x0014)
#define GICR_PROPBASER(cpu) (GICR(cpu) + 0x0070)
#define GICR_PENDBASER(cpu) (GICR(cpu) + 0x0078)
#define GICR_IGROUPR0(cpu) (GICR(cpu) + 0x10080)
#define GICR_ISENABLER0(cpu) (GICR(cpu) + 0x10100)
#define GICR_IPRIORITYR(cpu, n) (GICR(cpu) + 0x10400 + (n))

#define ROUTING 0x30 /* affinity routing in both worlds; set first */
#define GROUPS 0x7
#define ASLEEP (1 << 2)
#define SLEEP (1 << 1)
#define LPIS 1
#define WRITE_PENDING (1 << 3)

static void set_byte(u64 address, u8 value)
{
	*(volatile u8 *)address = value;
}

void gic_init(void)
{
	u32 i, words = (register32(GICD_TYPER) & 0x1f) + 1;

	set_register32(GICD_CTLR, ROUTING);
	for (i = 1; i < words; i++)
		set_register32(GICD_IGROUPR(i), ~0U);
	set_register32(GICD_IGROUPR(PLAT_SECURE_UART_INTID / 32), ~(1U << PLAT_SECURE_UART_INTID % 32));
	set_byte(GICD_IPRIORITYR(PLAT_SECURE_UART_INTID), 0);
	set_register64(GICD_IROUTER(PLAT_SECURE_UART_INTID), 0);
	set_register32(GICD_ISENABLER(PLAT_SECURE_UART_INTID / 32), 1U << PLAT_SECURE_UART_INTID % 32);
	set_register32(GICD_CTLR, ROUTING | GROUPS);
}

void gic_init_cpu(u32 cpu)
{
	set_register32(GICR_WAKER(cpu), register32(GICR_WAKER(cpu)) & ~SLEEP);
	while (register32(GICR_WAKER(cpu)) & ASLEEP)
		;
	set_register32(GICR_IGROUPR0(cpu), ~(1U << GATHER_INTID));
	set_byte(GICR_IPRIORITYR(cpu, GATHER_INTID), 0);
	set_register32(GICR_ISENABLER0(cpu), 1U << GATHER_INTID);
	write_register("s3_6_c12_c12_5", 0xf); /* ICC_SRE_EL3: registers for all levels */
	barrier();
	write_register("s3_0_c4_c6_0", 0xff); /* ICC_PMR_EL1: let all through */
	write_register("s3_0_c12_c12_6", 1); /* ICC_IGRPEN0_EL1 */
	barrier();
}

u32 gic_take(void)
{
	u32 intid = (u32)read_register("s3_0_c12_c8_0"); /* ICC_IAR0_EL1 */

	barrier();
	return intid;
}

void gic_end(u32 intid)
{
	write_register("s3_0_c12_c8_1", intid); /* ICC_EOIR0_EL1 */
	barrier();
}

u64 gic_mute(void)
{
	u64 before = read_register("s3_6_c12_c12_7"); /* ICC_IGRPEN1_EL3 */

	gic_unmute(0);
	return before;
}

void gic_unmute(u64 before)
{
	write_register("s3_6_c12_c12_7", before);
	barrier();
}

void gic_pend(u32 intid)
{
	set_register32(GICD_ISPENDR(intid / 32), 1U << intid % 32);
}

void gic_gather(u32 cpu)
{
	barrier();
	write_register("s3_0_c12_c11_7", (u64)GATHER_INTID << 24 | affinity_sgi(cpu, read_register("mpidr_el1"))); /* ICC_SGI0R_EL1 */
	barrier();
}

/* The tables may not be moved while LPIs are on, and some controllers never switch them off again. */
static bool end_lpis_of(u32 cpu)
{
	u32 looks;

	set_register32(GICR_CTLR(cpu), 0);
	for (looks = 0; looks < REDISTRIBUTOR_LOOKS_MAX && register32(GICR_CTLR(cpu)) & WRITE_PENDING; looks++)
		;
	if (register32(GICR_CTLR(cpu)) & (LPIS | WRITE_PENDING))
		return false;
	set_register64(GICR_PROPBASER(cpu), 0);
	set_register64(GICR_PENDBASER(cpu), 0);
	return true;
}

bool gic_end_lpis(u32 cpus)
{
	bool ended = true;
	u32 cpu;

	for (cpu = 0; cpu < cpus; cpu++)
		ended &= end_lpis_of(cpu);
	barrier();
	return ended;
}
