/*
 * Which CPU has which affinity. On a core that says of itself that it could have threads (MPIDR_EL1.MT), such as the
 * Cortex-A55 and A76 of silicon, field 0 is the thread, always 0, and field 1 counts cores; else field 0 does.
 * Functions take the MPIDR_EL1 of any CPU of the machine, since all are of one kind.
 */
#ifndef AARCH64_AFFINITY_H
#define AARCH64_AFFINITY_H

#include "core/types.h"

#define AFFINITY 0xff00ffffffULL /* the four fields */
#define MPIDR_THREADS (1ULL << 24)

/* Number of the CPU with this affinity; more than there can be, when none has it. */
static inline u64 affinity_cpu(u64 affinity, u64 mpidr)
{
	return mpidr & MPIDR_THREADS ? affinity >> 8 | affinity << 56 : affinity;
}

/* Where an ICC_SGI0R_EL1 says that the interrupt is for this CPU. */
static inline u64 affinity_sgi(u32 cpu, u64 mpidr)
{
	return mpidr & MPIDR_THREADS ? (u64)cpu << 16 | 1 : 1ULL << cpu;
}

#endif
