/*
 * The allocator of pages, from any state that its invariant allows: what is free is free once, holds zeros, and is
 * counted. What is proved of each page is proved of one, `watched`, which may be any. That two holders never have the same
 * page follows: a page that is handed out was free, is not any more, and becomes free only when it is given back.
 *
 * Sizes are small: pools of two words of bits, as the loops go word by word; and in the beginning free are at most the
 * first and last pages of a word, since a page's place within one is but a number.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#include "core/pages.c"

#define WORDS 2
#define FIRST_WORD 0xc000000000000003ULL
#define SECOND_WORD 3ULL
#define MOST 3 /* pages that are withdrawn at once: they are looked at one by one */

static u64 watched;
static bool written; /* something may stand in it */
static bool may_panic;

void arch_scrub(u64 pa)
{
	if (pa == watched)
		written = false;
}

_Noreturn void arch_panic(const char *why)
{
	(void)why;
	prove(may_panic, "only what is freed twice, or is no page, ends the machine");
	assume(false);
	while (true)
		;
}

static bool is_in(const struct pool *pool, u64 pa)
{
	return pa >= pool->base && (pa - pool->base) / PAGE < pool->pages;
}

static bool is_free(const struct pool *pool, u64 pa)
{
	u64 page = (pa - pool->base) / PAGE;

	return is_in(pool, pa) && (pool->free[page / BITS] >> page % BITS & 1);
}

static bool pool_holds(const struct pool *pool, const u64 *bits)
{
	u64 word, past, found = 0;

	for (word = 0; word < WORDS; word++) {
		past = pool->pages > word * BITS ? pool->pages - word * BITS : 0;
		if (past < BITS && pool->free[word] >> past)
			return false;
		found += (u64)__builtin_popcountll(pool->free[word]);
	}
	return pool->free == bits && pool->base % PAGE == 0 && pool->pages <= WORDS * BITS && pool->left == found &&
	       (pool->next == 0 || pool->next < (pool->pages + BITS - 1) / BITS);
}

static bool holds(void)
{
	return pool_holds(&secure, secure_bits) && pool_holds(&given, given_bits) && given.pages == RAM_PAGES_MAX &&
	       secure.base + secure.pages * PAGE <= given.base && given.base <= 1ULL << 40 &&
	       (!(is_free(&secure, watched) || is_free(&given, watched)) || !written);
}

static void any(void)
{
	u64 word;

	for (word = 0; word < WORDS; word++) {
		secure_bits[word] = nondet_u64() & (word == 0 ? FIRST_WORD : SECOND_WORD);
		given_bits[word] = nondet_u64() & (word == 0 ? FIRST_WORD : SECOND_WORD);
	}
	secure = (struct pool){ nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64(), secure_bits };
	given = (struct pool){ nondet_u64(), RAM_PAGES_MAX, nondet_u64(), nondet_u64(), given_bits };
	written = nondet_bool();
	assume(secure.base >= PAGE && secure.base <= 1ULL << 40 && holds());
}

static bool watched_is_free(void)
{
	return is_free(&secure, watched) || is_free(&given, watched);
}

static void take(void)
{
	enum purpose purpose = nondet_bool() ? PAGES_TABLES : PAGES_PRIVATE;
	bool was_free = watched_is_free(), any_left = pages_left(purpose) > 0;
	u64 left = pages_left(purpose), pa = pages_take(purpose);

	prove((pa != 0) == any_left, "there is a page as long as there is said to be one");
	prove(pa == 0 || pages_left(purpose) == left - 1, "and one less then");
	prove(pa != watched || was_free, "a page that is handed out was nobody's");
	prove(pa != watched || !written, "and holds zeros");
	prove(watched_is_free() == (was_free && pa != watched), "then it is somebody's, and no other is");
	prove(pa == 0 || purpose != PAGES_TABLES || is_in(&secure, pa), "tables lie in secure RAM");
	prove(pa == 0 || purpose != PAGES_PRIVATE || is_in(&given, pa) || secure.left >= TABLES_KEPT,
	      "pages are kept for tables");
	possible(pa == watched && is_in(&given, pa));
	possible(pa == watched && is_in(&secure, pa));
	possible(pa == 0);
}

static void put(bool gift)
{
	u64 pa = nondet_u64() / PAGE * PAGE;
	bool was_free = watched_is_free(), fits = gift ? is_in(&given, pa) : is_in(&given, pa) || is_in(&secure, pa);

	may_panic = !fits || is_free(&secure, pa) || is_free(&given, pa);
	if (gift)
		pages_give(pa);
	else
		pages_put(pa);
	prove(!may_panic, "nothing is freed twice");
	prove(watched_is_free() == (was_free || pa == watched), "it is free then, and no other is");
	possible(pa == watched);
}

static void withdraw(void)
{
	bool was_free = is_free(&given, watched), in_secure = is_free(&secure, watched), left = given.left > 0, gone;
	u64 most = nondet_u64(), first = 0, count;

	assume(most <= MOST);
	count = pages_withdraw(most, &first);
	gone = count > 0 && watched >= first && (watched - first) / PAGE < count && watched % PAGE == 0;
	prove(count <= most && (count > 0) == (left && most > 0), "no more leave than are asked for, and some if there are any");
	prove(!gone || (was_free && !written), "a page that leaves the heap was free, and holds zeros");
	prove(is_free(&given, watched) == (was_free && !gone), "it is not the heap's any more; all others stay");
	prove(is_free(&secure, watched) == in_secure, "secure RAM stays");
	possible(gone && count == MOST && watched == first + 2 * PAGE);
}

static void start(void)
{
	u64 first = nondet_u64(), pages = nondet_u64(), ram = nondet_u64();

	assume(first % PAGE == 0 && first >= PAGE && pages <= MOST && ram % PAGE == 0 && ram <= 1ULL << 40 &&
	       first <= ram && pages * PAGE <= ram - first);
	written = true;
	for (u32 word = 0; word < WORDS; word++)
		secure_bits[word] = given_bits[word] = 0; /* as at each start */
	pages_init(first, first + pages * PAGE, ram);
	prove(watched_is_free() == (watched >= first && (watched - first) / PAGE < pages), "secure RAM is free, no other");
	possible(watched_is_free());
}

int main(void)
{
	watched = nondet_u64();
	assume(watched % PAGE == 0 && watched >= PAGE);
	any();
	switch (CASE) {
	case 0:
		take();
		break;
	case 1:
		put(nondet_bool());
		break;
	case 2:
		withdraw();
		break;
	default:
		start();
	}
	prove(holds(), "what is free is counted, and holds zeros");
	return 0;
}
