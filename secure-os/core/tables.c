#include "core/tables.h"

#include "arch/arch.h"
#include "core/pages.h"

#define ENTRIES (PAGE / sizeof(u64))
#define ADDRESS 0x0000fffffffff000ULL
#define RAM_FIRST 0x40000000ULL /* from here on memory is of the non-secure kind */

#define VALID 1ULL
#define TABLE 3ULL
#define LEAF 2ULL /* valid: with VALID; without it: a page that is kept, out of reach */
#define MEMORY (1ULL << 2) /* attribute 1: normal, write-back */
#define NON_SECURE (1ULL << 5)
#define FOR_EL0 (1ULL << 6)
#define READ_ONLY (1ULL << 7)
#define SHARED (3ULL << 8)
#define ACCESSED (1ULL << 10)
#define NOT_GLOBAL (1ULL << 11)
#define NEVER_EL1 (1ULL << 53)
#define NEVER_EL0 (1ULL << 54)

static u64 root;

u64 tables_init(void)
{
	root = pages_take(PAGES_TABLES);
	return root;
}

u64 tables_needed(u64 pages)
{
	return pages / ENTRIES + 2 + pages / (ENTRIES * ENTRIES) + 2;
}

static u64 leaf(u64 pa, enum use use)
{
	u64 entry = pa | LEAF | MEMORY | SHARED | ACCESSED | NOT_GLOBAL | FOR_EL0 | NEVER_EL1;

	if (pa >= RAM_FIRST)
		entry |= NON_SECURE;
	if (use != USE_NONE)
		entry |= VALID;
	if (use != USE_WRITE)
		entry |= READ_ONLY;
	if (use != USE_RUN)
		entry |= NEVER_EL0;
	return entry;
}

static u64 *entry_of(u64 table, u64 va, u32 level)
{
	return (u64 *)arch_at(table) + (va >> (39 - 9 * level)) % ENTRIES;
}

/* The level-3 entry of an address; NULL when there is no table for it, and none is to be made. */
static u64 *entry_at(u64 va, bool make)
{
	u64 table = root, *entry;
	u32 level;

	if (va >= ADDRESSES_END)
		return NULL;
	for (level = 1; level < 3; level++) {
		entry = entry_of(table, va, level);
		if (!(*entry & VALID)) {
			if (!make)
				return NULL;
			table = pages_take(PAGES_TABLES);
			if (table == 0)
				arch_panic("no page for a table");
			*entry = table | TABLE;
		}
		table = *entry & ADDRESS;
	}
	return entry_of(table, va, 3);
}

void tables_map(u64 va, u64 pa, enum use use)
{
	u64 *entry = entry_at(va, true);

	if (!entry || *entry != 0)
		arch_panic("a page is mapped where one is");
	*entry = leaf(pa, use);
}

u64 tables_page(u64 va)
{
	const u64 *entry = entry_at(va, false);

	return entry ? *entry & ADDRESS : 0;
}

void tables_protect(u64 va, enum use use)
{
	u64 *entry = entry_at(va, false);

	if (!entry || *entry == 0)
		arch_panic("a page is protected that is not there");
	*entry = leaf(*entry & ADDRESS, use);
}

u64 tables_unmap(u64 va)
{
	u64 *entry = entry_at(va, false), pa;

	if (!entry)
		return 0;
	pa = *entry & ADDRESS;
	*entry = 0;
	return pa;
}

u64 tables_reach(u64 va, bool write)
{
	const u64 *entry = entry_at(va, false);

	if (!entry || !(*entry & VALID) || (write && (*entry & READ_ONLY)))
		return 0;
	return (*entry & ADDRESS) + va % PAGE;
}

void tables_end(void)
{
	arch_scrub(root);
}
