/* PSCI 1.0: turning CPUs on and off, and the machine; and what SMCCC 1.1 asks for. The caller is hostile. */

#include "el3/el3.h"
#include "el3/world.h"

#define WIDE 0x40000000U
#define SMCCC_VERSION 0x80000000
#define SMCCC_ARCH_FEATURES 0x80000001
#define PSCI_VERSION 0x84000000
#define PSCI_CPU_SUSPEND 0x84000001
#define PSCI_CPU_OFF 0x84000002
#define PSCI_CPU_ON 0x84000003
#define PSCI_AFFINITY_INFO 0x84000004
#define PSCI_MIGRATE_INFO_TYPE 0x84000006
#define PSCI_SYSTEM_OFF 0x84000008
#define PSCI_SYSTEM_RESET 0x84000009
#define PSCI_FEATURES 0x8400000a

#define NOT_SUPPORTED ((u64)-1)
#define INVALID_PARAMETERS ((u64)-2)
#define ALREADY_ON ((u64)-4)
#define ON_PENDING ((u64)-5)
#define INVALID_ADDRESS ((u64)-9)

#define PSCI_1_0 0x10000
#define SMCCC_1_1 0x10001
#define SUSPEND_POWER_DOWN 0x10000
#define NO_MIGRATION 2

#define GPIO_DIRECTION (PLAT_SECURE_GPIO + 0x400)
#define GPIO_PIN(n) (PLAT_SECURE_GPIO + (4U << (n)))

#define SCTLR_EL1_START 0x30d00800

enum power {
	POWER_OFF, /* also what an AFFINITY_INFO answers, with ON and OFF exchanged */
	POWER_PENDING,
	POWER_ON,
};

static struct {
	u32 power;
	u64 entry;
	u64 argument;
} cpus[PLAT_CPUS];

extern const struct board el3_board;
void el3_repark(void);

void power_booted(void)
{
	cpus[0].power = POWER_ON;
}

bool power_is_on(u32 cpu)
{
	return __atomic_load_n(&cpus[cpu].power, __ATOMIC_ACQUIRE) == POWER_ON;
}

void power_enter(struct frame *frame, u64 entry, u64 argument)
{
	u32 i;

	write_register("sctlr_el1", SCTLR_EL1_START);
	for (i = 0; i < 31; i++)
		frame->x[i] = 0;
	frame->x[0] = argument;
	frame->elr = entry;
	frame->spsr = SPSR_MASKED | SPSR_EL1H;
}

_Noreturn static void pull(u32 pin)
{
	set_register32(GPIO_DIRECTION, 3);
	set_register32(GPIO_PIN(pin), 1U << pin);
	for (;;)
		__asm__ volatile("wfi");
}

_Noreturn void power_off(void)
{
	pull(0);
}

/*
 * A parked CPU is one of ours: it takes interrupts of ours as they come. It is not among the gathered, so
 * only the lock keeps it from answering about protection while that is being switched.
 */
void power_park(struct frame *frame, u32 cpu)
{
	u32 intid;

	gic_mute(); /* until the OS starts over here */
	while (__atomic_load_n(&cpus[cpu].power, __ATOMIC_ACQUIRE) != POWER_PENDING) {
		__asm__ volatile("wfi");
		intid = gic_take();
		modes_lock(NULL);
		if (intid == PLAT_SECURE_UART_INTID)
			doorbell_answer();
		modes_unlock();
		if (intid < 1020)
			gic_end(intid);
	}
	modes_lock(NULL);
	modes_apply();
	__atomic_store_n(&cpus[cpu].power, POWER_ON, __ATOMIC_RELEASE);
	power_enter(frame, cpus[cpu].entry, cpus[cpu].argument);
	modes_unlock();
}

/* PLAT_CPUS: there is no such CPU. */
static u32 cpu_of(u64 affinity)
{
	u64 cpu = affinity_cpu(affinity, read_register("mpidr_el1"));

	return cpu < el3_board.cpus ? (u32)cpu : PLAT_CPUS;
}

static bool entry_is_sane(u64 entry)
{
	return entry >= el3_board.ram_base &&
	       entry < el3_board.ram_base + el3_board.ram_bytes - FLEX_HIDDEN_BYTES && entry % 4 == 0;
}

static u64 turn_on(u64 target, u64 entry, u64 argument)
{
	u32 cpu = cpu_of(target);

	if (cpu == PLAT_CPUS)
		return INVALID_PARAMETERS;
	if (!entry_is_sane(entry))
		return INVALID_ADDRESS;
	if (cpus[cpu].power != POWER_OFF)
		return cpus[cpu].power == POWER_ON ? ALREADY_ON : ON_PENDING;
	cpus[cpu].entry = entry;
	cpus[cpu].argument = argument;
	__atomic_store_n(&cpus[cpu].power, POWER_PENDING, __ATOMIC_RELEASE);
	gic_gather(cpu);
	return 0;
}

static u64 affinity_info(u64 target, u64 level)
{
	static const u8 told[] = { [POWER_OFF] = 1, [POWER_PENDING] = 2, [POWER_ON] = 0 };
	u32 cpu = cpu_of(target);

	return cpu == PLAT_CPUS || level != 0 ? INVALID_PARAMETERS : told[cpus[cpu].power];
}

/* Standby: nothing is lost, and any interrupt ends it. There is no deeper state. */
static u64 suspend(u64 state)
{
	if (state & SUSPEND_POWER_DOWN)
		return INVALID_PARAMETERS;
	__asm__ volatile("wfi");
	return 0;
}

static u64 features(u32 function)
{
	if (function == SMCCC_VERSION)
		return 0;
	switch (function & ~WIDE) {
	case PSCI_VERSION:
	case PSCI_CPU_SUSPEND:
	case PSCI_CPU_OFF:
	case PSCI_CPU_ON:
	case PSCI_AFFINITY_INFO:
	case PSCI_MIGRATE_INFO_TYPE:
	case PSCI_SYSTEM_OFF:
	case PSCI_SYSTEM_RESET:
	case PSCI_FEATURES:
		return 0;
	default:
		return NOT_SUPPORTED;
	}
}

/* Firmware works around no fault of a CPU here: an emulated one does not speculate. */
static u64 arch_features(u32 function)
{
	return function == SMCCC_VERSION || function == SMCCC_ARCH_FEATURES ? 0 : NOT_SUPPORTED;
}

static u64 serve(u32 function, const u64 *x)
{
	if (function == SMCCC_VERSION)
		return SMCCC_1_1;
	if (function == SMCCC_ARCH_FEATURES)
		return arch_features((u32)x[1]);
	switch (function & ~WIDE) {
	case PSCI_VERSION:
		return PSCI_1_0;
	case PSCI_CPU_ON:
		return turn_on(x[1], x[2], x[3]);
	case PSCI_AFFINITY_INFO:
		return affinity_info(x[1], x[2]);
	case PSCI_MIGRATE_INFO_TYPE:
		return NO_MIGRATION;
	case PSCI_FEATURES:
		return features((u32)x[1]);
	case PSCI_SYSTEM_OFF:
		world_end();
		pull(0);
	case PSCI_SYSTEM_RESET:
		world_end();
		pull(1);
	default:
		return NOT_SUPPORTED;
	}
}

void power_end(struct frame *frame)
{
	modes_lock(frame);
	world_end();
	modes_unlock();
}

void power_serve(struct frame *frame)
{
	u32 function = (u32)frame->x[0];

	if ((function & ~WIDE) == PSCI_CPU_SUSPEND) {
		frame->x[0] = suspend(frame->x[1]);
		return;
	}
	modes_lock(frame);
	if (function == PSCI_CPU_OFF) {
		cpus[this_cpu()].power = POWER_OFF;
		modes_unlock();
		el3_repark();
	}
	frame->x[0] = serve(function, frame->x);
	modes_unlock();
}
