/* System registers and barriers, for EL2 and EL3 alike. */
#ifndef AARCH64_SYSTEM_H
#define AARCH64_SYSTEM_H

#include "arch/aarch64/affinity.h"
#include "core/types.h"
#include "plat/qemu_virt/plat.h"

#define read_register(name)                                      \
	({                                                       \
		u64 value_;                                      \
		__asm__ volatile("mrs %0, " name : "=r"(value_)); \
		value_;                                          \
	})

#define write_register(name, value) __asm__ volatile("msr " name ", %0" ::"r"((u64)(value)) : "memory")

#define barrier() __asm__ volatile("dsb sy\n\tisb" ::: "memory")

/* What an exception interrupted; the vectors save and restore it. */
struct frame {
	u64 x[31];
	u64 elr;
	u64 spsr;
	u64 unused;
};

#define HCR_64_BITS (1ULL << 31)
#define HCR_SANDBOX (1ULL << 27) /* EL0 is EL2's: its exceptions come here, and stage 1 is off */
#define HCR_TRAP_SMC (1ULL << 19)
#define HCR_TRAP_MAKERS (1ULL << 20) /* registers that the CPU's maker defines */
#define HCR_NO_STAGE1 (1ULL << 12)
#define HCR_STAGE2 1ULL
#define CPTR_EL2 0x33ff
#define CPTR_TRAP_FP (1ULL << 10)
#define CPTR_TRAP_TRACE (1ULL << 20)

#define SPSR_MODE 0xfULL
#define SPSR_AARCH32 0x10ULL
#define SPSR_EL0 0x0ULL
#define SPSR_EL1T 0x4ULL
#define SPSR_EL1H 0x5ULL
#define SPSR_EL2H 0x9ULL
#define SPSR_MASKED 0x3c0ULL

static inline u32 register32(u64 address)
{
	return *(volatile u32 *)address;
}

static inline void set_register32(u64 address, u32 value)
{
	*(volatile u32 *)address = value;
}

static inline u64 register64(u64 address)
{
	return *(volatile u64 *)address;
}

static inline void set_register64(u64 address, u64 value)
{
	*(volatile u64 *)address = value;
}

/* Number of the CPU that this runs on. */
static inline u32 this_cpu(void)
{
	u64 mpidr = read_register("mpidr_el1");

	return (u32)affinity_cpu(mpidr & AFFINITY, mpidr);
}

#endif
