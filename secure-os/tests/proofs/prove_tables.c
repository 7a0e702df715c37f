/*
 * The application's translation tables, walked here as a CPU does. Of all tables two ways through them matter: that to the
 * address of the call, and that to any other, `other`. Each way is there up to any level; the two share tables as their
 * addresses do. All other words are anything. Tables are short (ENTRIES), and so are the numbers within an address.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#include "core/tables.c"

#define SECURE 0x0e200000ULL /* where the pages of this proof lie */
#define ALL 7 /* the root, two levels for each way, and two pages that are free */
#define FREE_FIRST 5

static u64 memory[ALL][ENTRIES];
static u32 taken;
static bool may_panic;

struct seen {
	bool there;
	u64 pa;
	bool read;
	bool write;
	bool run;
	bool run_by_kernel;
	bool non_secure;
};

void *arch_at(u64 pa)
{
	prove(pa >= SECURE && pa < SECURE + ALL * PAGE && pa % PAGE == 0, "only tables are written to");
	prove((pa - SECURE) / PAGE < FREE_FIRST + taken, "and only those that were taken");
	return memory[(pa - SECURE) / PAGE];
}

static void zero(u64 *table)
{
	u32 i;

	for (i = 0; i < ENTRIES; i++)
		table[i] = 0;
}

u64 pages_take(enum purpose purpose)
{
	prove(purpose == PAGES_TABLES, "tables lie in secure RAM");
	prove(taken < ALL - FREE_FIRST, "no more tables than two are needed for a page");
	zero(memory[FREE_FIRST + taken]);
	return SECURE + (FREE_FIRST + taken++) * PAGE;
}

void arch_scrub(u64 pa)
{
	prove(pa == root, "the root is what ends it");
	zero(memory[0]);
}

_Noreturn void arch_panic(const char *why)
{
	(void)why;
	prove(may_panic, "only a page that is mapped twice, or changed where none is, ends the machine");
	assume(false);
	while (true)
		;
}

static u64 word_at(u64 table, u64 va, u32 shift)
{
	return memory[(table - SECURE) / PAGE][va >> shift & (ENTRIES - 1)];
}

static bool is_table(u64 word)
{
	u64 table = word & 0x0000fffffffff000ULL;

	return (word & 3) == 3 && table >= SECURE && table < SECURE + ALL * PAGE;
}

/* What a CPU finds at an address. */
static struct seen walk(u64 va)
{
	u64 word = word_at(SECURE, va, 30);

	if (!is_table(word))
		return (struct seen){ 0 };
	word = word_at(word & 0x0000fffffffff000ULL, va, 21);
	if (!is_table(word))
		return (struct seen){ 0 };
	word = word_at(word & 0x0000fffffffff000ULL, va, 12);
	if ((word & 3) != 3)
		return (struct seen){ 0 };
	return (struct seen){
		.there = true,
		.pa = word & 0x0000fffffffff000ULL,
		.read = word >> 6 & 1,
		.write = (word >> 6 & 3) == 1,
		.run = !(word >> 54 & 1),
		.run_by_kernel = !(word >> 53 & 1),
		.non_secure = word >> 5 & 1,
	};
}

static bool same(struct seen a, struct seen b)
{
	return a.there == b.there && a.pa == b.pa && a.read == b.read && a.write == b.write && a.run == b.run &&
	       a.run_by_kernel == b.run_by_kernel && a.non_secure == b.non_secure;
}

/* Whether an address names entries that tables have. */
static bool is_short(u64 va)
{
	return (va >> 30) % 512 < ENTRIES && (va >> 21) % 512 < ENTRIES && (va >> 12) % 512 < ENTRIES;
}

/* What an entry may be: nothing, or a page as leaf() has it. */
static u64 any_leaf(void)
{
	u64 pa = nondet_u64() & 0x0000fffffffff000ULL;

	return nondet_bool() && pa != 0 ? leaf(pa, nondet_u32() % 4) : 0;
}

static u64 table_word(u64 page)
{
	return (SECURE + page * PAGE) | 3;
}

/* Both ways, each up to any level. */
static void any_ways(u64 va, u64 other)
{
	bool first = nondet_bool(), second = nondet_bool(), other_first = nondet_bool(), other_second = nondet_bool();
	bool one = va >> 30 == other >> 30, two = va >> 21 == other >> 21;

	memory[0][va >> 30 & (ENTRIES - 1)] = first ? table_word(1) : 0;
	if (!one)
		memory[0][other >> 30 & (ENTRIES - 1)] = other_first ? table_word(3) : 0;
	memory[1][va >> 21 & (ENTRIES - 1)] = second ? table_word(2) : 0;
	if (!two)
		memory[one ? 1 : 3][other >> 21 & (ENTRIES - 1)] = other_second ? table_word(4) : 0;
	memory[2][va >> 12 & (ENTRIES - 1)] = any_leaf();
	if (va >> 12 != other >> 12)
		memory[two ? 2 : 4][other >> 12 & (ENTRIES - 1)] = any_leaf();
}

static void prove_page(struct seen now, u64 pa, enum use use)
{
	prove(now.there == (use != USE_NONE), "it is reached unless it is to be kept out of reach");
	if (!now.there)
		return;
	prove(now.pa == pa, "it leads to its page");
	prove(now.read && now.write == (use == USE_WRITE) && now.run == (use == USE_RUN), "for the use that was said");
	prove(!now.run_by_kernel, "the kernel never runs it");
	prove(now.non_secure == (pa >= 0x40000000ULL), "RAM is of the non-secure kind, and nothing else");
}

int main(void)
{
	u64 va = nondet_u64(), other = nondet_u64(), pa = nondet_u64() & 0x0000fffffffff000ULL, got;
	enum use use = nondet_u32() % 4;
	bool far, write = nondet_bool();
	struct seen before, other_before, now;
	u64 kept;

	assume(other < ADDRESSES_END && pa != 0 && is_short(va) && is_short(other));
	root = SECURE;
	any_ways(va & (ADDRESSES_END - 1), other);
	far = va >= ADDRESSES_END;
	before = walk(va & (ADDRESSES_END - 1));
	other_before = walk(other);
	prove(!before.there || !(before.write && before.run), "nothing is written and run");
	kept = tables_page(va);
	prove(!far || kept == 0, "beyond the addresses there are, nothing is mapped");
	prove(far || !before.there || kept == before.pa, "what is mapped is told");
	may_panic = far || (CASE == 0 ? kept != 0 : kept == 0);
	switch (CASE) {
	case 0:
		tables_map(va, pa, use);
		prove(!may_panic, "nothing is mapped where a page is");
		prove_page(walk(va), pa, use);
		prove(tables_page(va) == pa, "the page is kept, whatever its use");
		possible(taken == 2);
		possible(taken == 0);
		break;
	case 1:
		tables_protect(va, use);
		prove_page(walk(va), kept, use);
		prove(tables_page(va) == kept && taken == 0, "it stays where it is");
		break;
	case 2:
		got = tables_unmap(va);
		prove(got == kept && taken == 0, "the page that was there is told");
		prove(far || !walk(va).there, "it is not reached any more");
		prove(far || tables_page(va) == 0, "nor kept");
		break;
	case 3:
		got = tables_reach(va, write);
		now = walk(va & (ADDRESSES_END - 1));
		prove(taken == 0 && (far || same(now, before)), "looking changes nothing");
		prove(got == (!far && before.there && (before.write || !write) ? before.pa + va % PAGE : 0),
		      "the kernel reaches what S-EL0 itself would, and nothing else");
		possible(got != 0);
		break;
	default:
		tables_end();
		prove(!walk(other).there, "at the end nothing is reached");
		return 0;
	}
	if (far || va >> 12 != other >> 12)
		prove(same(walk(other), other_before), "no other address is touched");
	possible(other_before.there && va >> 21 == other >> 21 && va >> 12 != other >> 12);
	return 0;
}
