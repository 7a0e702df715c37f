/* Which CPU is which, on cores that could have threads and on those that could not. */
#include "arch/aarch64/affinity.h"
#include "tests/unit.h"

#define A72 0x80000000ULL /* what their MPIDR says beside the affinity */
#define A76 0x81000000ULL

TEST(cores_without_threads_are_told_apart_by_the_first_field)
{
	u32 cpu;

	for (cpu = 0; cpu < 8; cpu++) {
		CHECK_EQUAL(affinity_cpu(cpu, A72), cpu);
		CHECK_EQUAL(affinity_sgi(cpu, A72), 1ULL << cpu);
	}
	CHECK(affinity_cpu(0x100, A72) > 7);
	CHECK(affinity_cpu(0x10000, A72) > 7);
	CHECK(affinity_cpu(0x100000000, A72) > 7);
}

TEST(cores_that_could_have_threads_are_told_apart_by_the_second_field)
{
	u32 cpu;

	for (cpu = 0; cpu < 8; cpu++) {
		CHECK_EQUAL(affinity_cpu((u64)cpu << 8, A76), cpu);
		CHECK_EQUAL(affinity_sgi(cpu, A76), (u64)cpu << 16 | 1);
	}
	CHECK(affinity_cpu(1, A76) > 7);
	CHECK(affinity_cpu(0x10000, A76) > 7);
	CHECK(affinity_cpu(0x100000000, A76) > 7);
}
