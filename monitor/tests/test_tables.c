#include "core/tables.h"

#include "tests/unit.h"

#define STAGE2_LEAF 0x7ffULL
#define DEVICE_LEAF 0x743ULL
#define REGISTERS 0x00400000000004c5ULL /* never executable, accessed, read and write, Device-nGnRE; a block or, | 2, a page */
#define SANDBOX_CODE 0x77fULL /* a page as STAGE2_LEAF, but read only */
#define SANDBOX_STACK 0x00400000000007ffULL /* as STAGE2_LEAF, but never executed */
#define ADDRESS 0x0000fffffffff000ULL
#define RAM_END(bytes) (RAM_BASE + (bytes) - FLEX_HIDDEN_BYTES)

static bool is_window(u64 ipa)
{
	return host.npu.root && ipa >= monitor_layout()->window && ipa < monitor_layout()->window + FLEX_NPU_WINDOW_BYTES;
}

/* The windows of boot() in unit.c, and the NPU's, if there is one. */
static bool is_register(u64 ipa)
{
	return (ipa >= 0x08000000 && ipa < 0x08200000) || (ipa >= 0x09000000 && ipa < 0x09001000) ||
	       (ipa >= 0x09010000 && ipa < 0x09011000) || is_window(ipa);
}

/* Every page of the 4 GiB that can be translated leads to itself, or nowhere. */
static void check_all(u64 ram_bytes)
{
	u64 ipa, cpu, device, entry;

	for (ipa = 0; ipa < 1ULL << 32; ipa += FLEX_PAGE_BYTES) {
		bool is_ram = ipa >= RAM_BASE && ipa < RAM_END(ram_bytes);

		entry = host_walk(HOST_CPUS, ipa, &cpu);
		CHECK_EQUAL(entry != 0, is_ram || is_register(ipa));
		CHECK(!is_ram || !tables_is_open((ipa - RAM_BASE) / FLEX_PAGE_BYTES));
		if (entry)
			CHECK_EQUAL(cpu, ipa);
		if (is_ram)
			CHECK_EQUAL(entry & ~ADDRESS, STAGE2_LEAF);
		if (is_register(ipa))
			CHECK_EQUAL(entry & ~ADDRESS, ipa < 0x08200000 ? REGISTERS : REGISTERS | 2);
		entry = host_walk(HOST_DEVICES, ipa, &device);
		CHECK_EQUAL(entry != 0, is_ram);
		if (entry)
			CHECK(device == ipa && (entry & ~ADDRESS) == DEVICE_LEAF);
	}
	CHECK_EQUAL(host_walk(HOST_CPUS, 1ULL << 32, &cpu), 0);
}

TEST(at_boot_all_but_hidden_memory_and_chosen_registers_is_mapped_one_to_one)
{
	boot(RAM_SMALL);
	check_all(RAM_SMALL);
}

TEST(so_it_is_on_the_largest_machine)
{
	boot(RAM_LARGE);
	check_all(RAM_LARGE);
}

/* Whether exactly the pages of the range are out of reach, among it and its neighbours. */
static void check_hidden(struct range range, bool is_hidden)
{
	u64 page, pa, neighbour = range.first ? range.first - 1 : 0;

	for (page = neighbour; page < range.first + range.count + 1; page++) {
		u64 ipa = RAM_BASE + page * FLEX_PAGE_BYTES;
		bool inside = page >= range.first && page < range.first + range.count;
		bool shown = ipa < monitor_layout()->hidden_base && !(inside && is_hidden);

		CHECK_EQUAL(host_walk(HOST_CPUS, ipa, &pa) != 0, shown);
		CHECK_EQUAL(host_walk(HOST_DEVICES, ipa, &pa) != 0, shown);
		CHECK_EQUAL(tables_shown(page), shown);
	}
}

TEST(what_is_hidden_is_gone_from_both_tables_and_its_neighbours_are_not)
{
	static const struct range ranges[] = { { 0, 1 }, { 0, 512 }, { 511, 1 }, { 511, 2 }, { 512, 512 }, { 700, 512 } };
	u32 i;

	boot(RAM_SMALL);
	for (i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		tables_hide(ranges[i]);
		check_hidden(ranges[i], true);
		tables_show(ranges[i]);
		check_hidden(ranges[i], false);
	}
	tables_hide((struct range){ page_number(1), 1 });
	check_hidden((struct range){ page_number(1), 1 }, true);
}

TEST(every_page_has_a_leaf_of_its_own)
{
	u64 page, pages = (RAM_SMALL - FLEX_HIDDEN_BYTES) / FLEX_PAGE_BYTES, pa;

	boot(RAM_SMALL);
	for (page = 0; page < pages; page++) {
		tables_hide((struct range){ page, 1 });
		CHECK_EQUAL(host_walk(HOST_CPUS, RAM_BASE + page * FLEX_PAGE_BYTES, &pa), 0);
		CHECK_EQUAL(host_walk(HOST_DEVICES, RAM_BASE + page * FLEX_PAGE_BYTES, &pa), 0);
		if (page > 0)
			tables_show((struct range){ page - 1, 1 });
	}
	tables_show((struct range){ pages - 1, 1 });
	check_all(RAM_SMALL);
}

TEST(without_an_npu_nothing_of_hidden_memory_is_mapped)
{
	boot_without_npu();
	check_all(RAM_SMALL);
}

TEST(what_an_npu_of_the_secure_world_reaches_is_opened_and_closed_page_by_page)
{
	static const struct range ranges[] = { { 0, 1 }, { 511, 2 }, { 512, 512 } };
	u64 page, pa;
	u32 i;

	boot(RAM_SMALL);
	host.npu.root = monitor_layout()->secure.level1;
	for (i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		tables_open(ranges[i]);
		for (page = 0; page < RAM_SMALL / FLEX_PAGE_BYTES; page++) {
			u64 entry = host_walk(HOST_NPU, RAM_BASE + page * FLEX_PAGE_BYTES, &pa);
			bool inside = page >= ranges[i].first && page < ranges[i].first + ranges[i].count;

			CHECK_EQUAL(entry, inside ? (RAM_BASE + page * FLEX_PAGE_BYTES) | DEVICE_LEAF : 0);
			CHECK_EQUAL(tables_is_open(page), inside);
		}
		tables_close(ranges[i]);
	}
}

TEST(the_sandbox_reaches_its_code_its_stack_the_registers_and_nothing_else)
{
	const struct layout *layout;
	u64 ipa, pa, entry, wanted;

	boot(RAM_SMALL);
	layout = monitor_layout();
	for (ipa = 0; ipa < 1ULL << 32; ipa += FLEX_PAGE_BYTES) {
		entry = host_walk(HOST_SANDBOX, ipa, &pa);
		wanted = 0;
		if (is_window(ipa))
			wanted = ipa | REGISTERS | 2;
		else if (ipa >= layout->code && ipa < layout->code + FLEX_NPU_CODE_BYTES_MAX)
			wanted = ipa | SANDBOX_CODE;
		else if (ipa == layout->stack)
			wanted = ipa | SANDBOX_STACK;
		CHECK_EQUAL(entry, wanted);
	}
}

TEST(the_npus_registers_are_hidden_and_shown_whole_and_alone)
{
	u64 ipa, pa;

	boot(RAM_SMALL);
	tables_hide_registers();
	for (ipa = monitor_layout()->hidden_base; ipa < RAM_BASE + RAM_SMALL; ipa += FLEX_PAGE_BYTES)
		CHECK_EQUAL(host_walk(HOST_CPUS, ipa, &pa), 0);
	tables_show_registers();
	check_all(RAM_SMALL);
}
