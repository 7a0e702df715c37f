/*
 * The one function that judges the normal world's numbers, with the constants of the real monitor: for every
 * RAM there may be, all 2^64 addresses and all 2^64 lengths. Registers of devices lie outside of RAM
 * (prove_layout.c), so no call can name them.
 */
#include "tests/proofs/parts.h"
#undef STATES

#include "core/pages.c"

typedef unsigned __int128 wide;

int main(void)
{
	u64 ipa = nondet_u64(), pages = nondet_u64();
	struct range range = { nondet_u64(), nondet_u64() }, before = range;
	wide ram_end, named_end = (wide)ipa + (wide)pages * FLEX_PAGE_BYTES;
	bool sane;

	base = nondet_u64();
	total = nondet_u64();
	ram_end = (wide)base + (wide)total * FLEX_PAGE_BYTES;
	assume(base % FLEX_PAGE_BYTES == 0 && ram_end < (wide)1 << 64);
	sane = ipa % FLEX_PAGE_BYTES == 0 && pages >= 1 && pages <= 512 && ipa >= base && named_end <= ram_end;
	possible(sane && pages == 512);
	possible(!sane && pages == 512);
	prove(pages_range(ipa, pages, &range) == sane, "a range is 1 to 512 whole pages of RAM");
	prove(sane || (range.first == before.first && range.count == before.count), "no range, no result");
	if (sane) {
		prove(base + range.first * FLEX_PAGE_BYTES == ipa && range.count == pages, "it is what was named");
		prove(range.first < total && range.count <= total - range.first, "it is in the table of pages");
	}
	return 0;
}
