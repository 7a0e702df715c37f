#include "tests/unit.h"

#include <string.h>

struct frame frames[CPUS_MAX];
struct next nexts[CPUS_MAX];

u8 *file_header(void)
{
	return host.flash;
}

struct segment *file_segment(u32 number)
{
	return (struct segment *)(void *)(host.flash + 64) + number;
}

void file_make(void)
{
	static const u8 start[20] = { 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 183, 0 };
	u64 entry = TEXT + 0x200, programs = 64, i;
	u16 bytes = 56, count = 2;

	memset(host.flash, 0, 0x4000);
	memcpy(host.flash, start, sizeof(start));
	memcpy(host.flash + 24, &entry, 8);
	memcpy(host.flash + 32, &programs, 8);
	memcpy(host.flash + 54, &bytes, 2);
	memcpy(host.flash + 56, &count, 2);
	*file_segment(0) = (struct segment){ 1, 5, 0, TEXT, TEXT, 0x1000, 0x1000, 0x1000 };
	*file_segment(1) = (struct segment){ 1, 6, 0x1000, DATA, DATA, DATA_BYTES - 1, DATA_BYTES + 0x800, 0x1000 };
	for (i = 0; i < DATA_BYTES; i++)
		host.flash[0x1000 + i] = (u8)(i * 7 + 1);
}

bool lend(u32 cpu)
{
	host.cpu = cpu;
	nexts[cpu] = kernel_lent(cpu, (struct said){ host.ring_page, host.ring_pages }, &frames[cpu]);
	return nexts[cpu].yield == YIELD_NOT;
}

void boot(void)
{
	struct machine machine;

	host_make();
	file_make();
	machine = host_machine();
	host.root = kernel_init(&machine);
	CHECK(lend(0));
}

bool call_on(u32 cpu, u64 number, const u64 x[6])
{
	host.cpu = cpu;
	memcpy(frames[cpu].x, x, 6 * sizeof(u64));
	frames[cpu].x[8] = number;
	nexts[cpu] = kernel_call(cpu, &frames[cpu]);
	return nexts[cpu].yield == YIELD_NOT;
}

s64 call(u64 number, u64 a, u64 b, u64 c, u64 d)
{
	const u64 x[6] = { a, b, c, d, 0, 0xffffffff };

	CHECK(call_on(0, number, x));
	return (s64)frames[0].x[0];
}

u64 memory(u64 bytes)
{
	s64 va = call(LINUX_MMAP, 0, bytes, 3, 0x22);

	CHECK(va > 0);
	return (u64)va;
}

s64 thread(u64 stack, u64 cleared)
{
	const u64 x[6] = { 0x3d0f00, stack, cleared, 0x7515, cleared, 0 };

	CHECK(call_on(0, LINUX_CLONE, x));
	return (s64)frames[0].x[0];
}

u64 page(u64 index)
{
	return HOST_RAM / PAGE + index;
}

void set_state(u64 index, u64 count, enum flex_state state)
{
	memset(host.states + index, (int)state, count);
}
