#include "core/tables.h"

#include "arch/arch.h"

#define VALID_TABLE 3ULL
#define VALID_PAGE 3ULL
#define VALID_BLOCK 1ULL
#define ACCESSED (1ULL << 10)
#define INNER_SHAREABLE (3ULL << 8)
#define ENTRIES 512
#define GIB 0x40000000ULL
#define WINDOW_PAGES (FLEX_NPU_WINDOW_BYTES / FLEX_PAGE_BYTES)
#define CODE_PAGES (FLEX_NPU_CODE_BYTES_MAX / FLEX_PAGE_BYTES)

/* Stage-2: normal write-back memory, read and write, executable; devices never are. */
#define STAGE2_RAM (ACCESSED | INNER_SHAREABLE | 3ULL << 6 | 0xfULL << 2 | VALID_PAGE)
#define STAGE2_REGISTERS (ACCESSED | 3ULL << 6 | 1ULL << 2 | 1ULL << 54)
/* Stage-2 of the sandbox: what runs there cannot be written, and what can be written never runs. */
#define SANDBOX_CODE (ACCESSED | INNER_SHAREABLE | 1ULL << 6 | 0xfULL << 2 | VALID_PAGE)
#define SANDBOX_STACK (STAGE2_RAM | 1ULL << 54)
/* Stage 1 of a device: attribute 0 of its context descriptor, read and write at any privilege. */
#define DEVICE_RAM (ACCESSED | INNER_SHAREABLE | 1ULL << 6 | VALID_PAGE)

static const struct layout *here;
static u64 *stage2_leaves;
static u64 *device_leaves;
static u64 *secure_leaves;
static u64 register_tables; /* so many are in use */

/* One page after the other, from this leaf on. */
static void map(u64 *leaf, u64 at, u64 pages, u64 kind)
{
	u64 *end = leaf + pages;

	for (; leaf < end; at += FLEX_PAGE_BYTES)
		*leaf++ = at | kind;
}

static void clear(u64 *entry, u64 count)
{
	u64 *end = entry + count;

	while (entry < end)
		*entry++ = 0;
}

static void map_pages(u64 *leaves, struct range range, u64 kind)
{
	map(&leaves[range.first], here->ram_base + range.first * FLEX_PAGE_BYTES, range.count, kind);
}

void tables_show(struct range range)
{
	map_pages(stage2_leaves, range, STAGE2_RAM);
	map_pages(device_leaves, range, DEVICE_RAM);
}

void tables_hide(struct range range)
{
	clear(&stage2_leaves[range.first], range.count);
	clear(&device_leaves[range.first], range.count);
}

void tables_open(struct range range)
{
	map_pages(secure_leaves, range, DEVICE_RAM);
}

void tables_close(struct range range)
{
	clear(&secure_leaves[range.first], range.count);
}

bool tables_is_open(u64 page)
{
	return secure_leaves[page] != 0;
}

bool tables_shown(u64 page)
{
	return stage2_leaves[page] != 0 || device_leaves[page] != 0;
}

/* The upper levels: all of them point to tables that stay where they are. */
static void link_tree(const struct tree *tree)
{
	u64 *level1 = arch_at(tree->level1), *level2 = arch_at(tree->level2);
	u64 i, first = here->ram_base / BLOCK_BYTES;

	clear(level1, (tree->registers - tree->level1) / sizeof(u64) + REGISTER_TABLES * ENTRIES);
	for (i = 0; i < LEVEL2_TABLES; i++)
		level1[i] = (tree->level2 + i * FLEX_PAGE_BYTES) | VALID_TABLE;
	for (i = 0; i < here->ram_bytes / BLOCK_BYTES; i++)
		level2[first + i] = (tree->level3 + i * FLEX_PAGE_BYTES) | VALID_TABLE;
}

/* Registers: whole blocks at level 2, smaller windows (in one of REGISTER_TABLES blocks) at level 3. */
static void map_window(const struct window *window)
{
	u64 *level2 = arch_at(here->stage2.level2), *leaves;
	u64 at = window->base, end = window->base + window->bytes;

	if (at % BLOCK_BYTES == 0 && end % BLOCK_BYTES == 0) {
		for (; at < end; at += BLOCK_BYTES)
			level2[at / BLOCK_BYTES] = at | STAGE2_REGISTERS | VALID_BLOCK;
		return;
	}
	if (level2[at / BLOCK_BYTES] == 0)
		level2[at / BLOCK_BYTES] = (here->stage2.registers + register_tables++ * FLEX_PAGE_BYTES) | VALID_TABLE;
	leaves = arch_at(level2[at / BLOCK_BYTES] & ~VALID_TABLE);
	map(&leaves[at / FLEX_PAGE_BYTES % ENTRIES], at, window->bytes / FLEX_PAGE_BYTES, STAGE2_REGISTERS | VALID_PAGE);
}

static u64 *registers_leaf(void)
{
	return stage2_leaves + (here->window - here->ram_base) / FLEX_PAGE_BYTES;
}

void tables_show_registers(void)
{
	map(registers_leaf(), here->window, WINDOW_PAGES, STAGE2_REGISTERS | VALID_PAGE);
}

void tables_hide_registers(void)
{
	clear(registers_leaf(), WINDOW_PAGES);
}

/* All of it lies in one block of memory. */
static void make_sandbox(void)
{
	u64 *level1 = arch_at(here->sandbox), *level2 = level1 + ENTRIES, *leaves = level2 + ENTRIES;

	clear(level1, 3 * ENTRIES);
	level1[here->window / GIB] = (here->sandbox + FLEX_PAGE_BYTES) | VALID_TABLE;
	level2[here->window / BLOCK_BYTES % ENTRIES] = (here->sandbox + 2 * FLEX_PAGE_BYTES) | VALID_TABLE;
	map(&leaves[here->window / FLEX_PAGE_BYTES % ENTRIES], here->window, WINDOW_PAGES,
	    STAGE2_REGISTERS | VALID_PAGE);
	map(&leaves[here->code / FLEX_PAGE_BYTES % ENTRIES], here->code, CODE_PAGES, SANDBOX_CODE);
	map(&leaves[here->stack / FLEX_PAGE_BYTES % ENTRIES], here->stack, 1, SANDBOX_STACK);
}

void tables_init(const struct layout *layout, const struct window *windows, u32 count)
{
	struct range ram = { 0, (layout->hidden_base - layout->ram_base) / FLEX_PAGE_BYTES };
	u32 i;

	here = layout;
	stage2_leaves = arch_at(layout->stage2.level3);
	device_leaves = arch_at(layout->devices.level3);
	secure_leaves = arch_at(layout->secure.level3);
	link_tree(&layout->stage2);
	link_tree(&layout->devices);
	link_tree(&layout->secure);
	if (layout->npu)
		make_sandbox();
	register_tables = 0;
	for (i = 0; i < count; i++)
		map_window(&windows[i]);
	tables_show(ram);
}
