/* Pages, tables, pieces of the address space, and the calls that change them. */
#include "tests/unit.h"

#include <string.h>

#define PAGES_FREE pages_left(PAGES_PRIVATE)

static u64 word_at(u64 va)
{
	u64 word = 0;

	CHECK(user_read(&word, va, sizeof(word)));
	return word;
}

TEST(a_page_that_is_freed_is_overwritten)
{
	u64 pa;

	boot();
	pa = pages_take(PAGES_PRIVATE);
	memset(arch_at(pa), 0x5a, PAGE);
	pages_put(pa);
	CHECK_EQUAL(*(u64 *)arch_at(pa), 0);
}

static void free_twice(void)
{
	u64 pa = pages_take(PAGES_PRIVATE);

	pages_put(pa);
	pages_put(pa);
}

static void free_a_stranger(void)
{
	pages_put(0x0e000000);
}

TEST(a_page_that_is_not_in_use_cannot_be_freed)
{
	boot();
	CHECK(host_panic_of(free_twice) != NULL);
	boot();
	CHECK(host_panic_of(free_a_stranger) != NULL);
}

TEST(pages_of_tables_are_kept_from_the_heap)
{
	boot();
	while (pages_take(PAGES_PRIVATE))
		;
	CHECK_EQUAL(pages_left(PAGES_TABLES), TABLES_KEPT);
	CHECK(pages_take(PAGES_TABLES) != 0);
}

TEST(mapped_memory_is_zeros_and_can_be_written_and_never_run)
{
	u64 va, pa, word = 0x1234;

	boot();
	va = memory(3 * PAGE);
	for (u32 i = 0; i < 3; i++) {
		CHECK_EQUAL(word_at(va + i * PAGE), 0);
		pa = tables_reach(va + i * PAGE, true);
		CHECK_EQUAL(host_reach(pa), 3);
	}
	CHECK(user_write(va + 2 * PAGE - 4, &word, sizeof(word)));
	CHECK_EQUAL(word_at(va + 2 * PAGE - 4), 0x1234);
	CHECK(!user_write(va + 3 * PAGE - 4, &word, sizeof(word)));
	CHECK_EQUAL(call(LINUX_MPROTECT, va, PAGE, 5, 0), ERROR_ACCES);
	CHECK_EQUAL(call(LINUX_MMAP, 0, PAGE, 7, 0x22), ERROR_ACCES);
}

TEST(memory_that_is_promised_is_there_and_what_is_not_there_is_refused)
{
	u64 before, left;

	boot();
	before = PAGES_FREE;
	CHECK_EQUAL(call(LINUX_MMAP, 0, 100 << 20, 3, 0x22), ERROR_NOMEM);
	CHECK_EQUAL(PAGES_FREE, before);
	CHECK(call(LINUX_MMAP, 0, 128 << 20, 0, 0x4022) > 0); /* a range without anything behind it */
	CHECK_EQUAL(PAGES_FREE, before);
	memory(PAGE);
	for (left = PAGES_FREE; call(LINUX_MMAP, 0, PAGE, 3, 0x22) > 0; left = PAGES_FREE)
		;
	CHECK(left < 8);
}

TEST(a_range_gets_its_pages_when_it_may_be_used_and_keeps_them)
{
	s64 va;
	u64 word = 7;

	boot();
	va = call(LINUX_MMAP, 0, 16 * PAGE, 0, 0x22);
	CHECK(!user_write((u64)va, &word, 8));
	CHECK_EQUAL(call(LINUX_MPROTECT, (u64)va + PAGE, 2 * PAGE, 3, 0), 0);
	CHECK(!user_write((u64)va, &word, 8));
	CHECK(user_write((u64)va + PAGE, &word, 8));
	CHECK_EQUAL(call(LINUX_MPROTECT, (u64)va + PAGE, PAGE, 1, 0), 0);
	CHECK(!user_write((u64)va + PAGE, &word, 8));
	CHECK_EQUAL(call(LINUX_MPROTECT, (u64)va, 16 * PAGE, 0, 0), 0);
	CHECK(!user_read(&word, (u64)va + PAGE, 8));
	CHECK_EQUAL(call(LINUX_MPROTECT, (u64)va, 16 * PAGE, 3, 0), 0);
	CHECK_EQUAL(word_at((u64)va + PAGE), 7);
	CHECK_EQUAL(call(LINUX_MADVISE, (u64)va, 16 * PAGE, 4, 0), 0);
	CHECK_EQUAL(word_at((u64)va + PAGE), 0);
}

TEST(freed_memory_is_out_of_reach_and_its_pages_are_free)
{
	u64 before, va, word = 1;

	boot();
	memory(PAGE); /* the tables of this part of the addresses stay */
	before = PAGES_FREE;
	va = memory(8 * PAGE);
	CHECK(user_write(va, &word, 8));
	CHECK_EQUAL(call(LINUX_MUNMAP, va + 2 * PAGE, 3 * PAGE, 0, 0), 0);
	CHECK(!user_write(va + 2 * PAGE, &word, 8));
	CHECK(user_write(va + 5 * PAGE, &word, 8));
	CHECK_EQUAL(memory(3 * PAGE), va + 2 * PAGE); /* the same addresses, zeros again */
	CHECK_EQUAL(call(LINUX_MUNMAP, va, 8 * PAGE, 0, 0), 0);
	CHECK_EQUAL(PAGES_FREE, before);
}

TEST(brk_grows_and_shrinks_and_goes_no_further_than_memory)
{
	u64 before;

	boot();
	CHECK_EQUAL(call(LINUX_BRK, 0, 0, 0, 0), DATA_END);
	CHECK_EQUAL(call(LINUX_BRK, DATA_END + 100, 0, 0, 0), DATA_END + 100);
	before = PAGES_FREE;
	CHECK_EQUAL(call(LINUX_BRK, DATA_END + 5 * PAGE, 0, 0, 0), DATA_END + 5 * PAGE);
	CHECK_EQUAL(PAGES_FREE, before - 4);
	CHECK_EQUAL(call(LINUX_BRK, DATA_END + 1, 0, 0, 0), DATA_END + 1);
	CHECK_EQUAL(PAGES_FREE, before);
	CHECK_EQUAL(call(LINUX_BRK, DATA_END + (1ULL << 30), 0, 0, 0), DATA_END + 1);
	CHECK_EQUAL(call(LINUX_BRK, DATA_END - 1, 0, 0, 0), DATA_END + 1);
	CHECK_EQUAL(call(LINUX_BRK, ~0ULL, 0, 0, 0), DATA_END + 1);
}

TEST(ranges_that_are_none_are_refused)
{
	static const u64 bad[][2] = {
		{ 1, PAGE }, { 0, 0 }, { PAGE, ~0ULL }, { ~0ULL << 12, PAGE }, { ADDRESSES_END, PAGE },
		{ ADDRESSES_END - PAGE, 2 * PAGE }, { TEXT, PAGE }, { 1ULL << 63, 1ULL << 63 },
	};
	u32 i;

	boot();
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK_EQUAL(call(LINUX_MPROTECT, bad[i][0], bad[i][1], 3, 0), ERROR_INVAL);
		CHECK_EQUAL(call(LINUX_MADVISE, bad[i][0], bad[i][1], 4, 0), ERROR_INVAL);
		CHECK_EQUAL(call(LINUX_MUNMAP, bad[i][0], bad[i][1], 0, 0), ERROR_INVAL);
	}
	CHECK_EQUAL(call(LINUX_MMAP, 0, 0, 3, 0x22), ERROR_INVAL);
	CHECK_EQUAL(call(LINUX_MMAP, 0, ~0ULL, 3, 0x22), ERROR_INVAL);
	CHECK_EQUAL(call(LINUX_MMAP, DATA, PAGE, 3, 0x32), ERROR_INVAL); /* at a fixed place */
	CHECK_EQUAL(call(LINUX_MMAP, 0, PAGE, 3, 0x2), ERROR_INVAL); /* of a file */
}

TEST(pieces_are_joined_and_there_is_a_bound_to_them)
{
	u64 va, i;

	boot();
	va = memory(2 * AREAS_MAX * PAGE);
	for (i = 0; i < AREAS_MAX; i++)
		if (call(LINUX_MPROTECT, va + 2 * i * PAGE, PAGE, 1, 0) == ERROR_NOMEM)
			break;
	CHECK(i > AREAS_MAX / 4 && i < AREAS_MAX - 1);
	CHECK_EQUAL(call(LINUX_MUNMAP, va + (2 * AREAS_MAX - 2) * PAGE, PAGE, 0, 0), ERROR_NOMEM);
	while (i-- > 0)
		CHECK_EQUAL(call(LINUX_MPROTECT, va + 2 * i * PAGE, PAGE, 3, 0), 0);
	CHECK_EQUAL(call(LINUX_MUNMAP, va + PAGE, PAGE, 0, 0), 0);
}
