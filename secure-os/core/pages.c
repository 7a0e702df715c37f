#include "core/pages.h"

#include "arch/arch.h"

#define BITS 64

/* A bit is set while its page is free. */
struct pool {
	u64 base;
	u64 pages;
	u64 left;
	u64 next; /* where to look first: the word that a page was found in last */
	u64 *free;
};

static u64 secure_bits[SECURE_PAGES_MAX / BITS];
static u64 given_bits[RAM_PAGES_MAX / BITS];
static struct pool secure;
static struct pool given;

static void insert(struct pool *pool, u64 pa)
{
	u64 page = (pa - pool->base) / PAGE, bit = 1ULL << page % BITS;

	if (pa < pool->base || page >= pool->pages || pool->free[page / BITS] & bit)
		arch_panic("a page is freed that is not in use");
	arch_scrub(pa);
	pool->free[page / BITS] |= bit;
	pool->left++;
}

static u64 extract(struct pool *pool, u64 page)
{
	pool->free[page / BITS] &= ~(1ULL << page % BITS);
	pool->left--;
	pool->next = page / BITS;
	return pool->base + page * PAGE;
}

/* Some free page's number; there must be one. */
static u64 find(const struct pool *pool)
{
	u64 words = (pool->pages + BITS - 1) / BITS, word = pool->next;

	while (pool->free[word] == 0)
		word = (word + 1) % words;
	return word * BITS + (u64)__builtin_ctzll(pool->free[word]);
}

static void clear(struct pool *pool, u64 *bits, u64 base, u64 pages)
{
	u64 i;

	for (i = 0; i < (pages + BITS - 1) / BITS; i++)
		bits[i] = 0;
	*pool = (struct pool){ base, pages, 0, 0, bits };
}

void pages_init(u64 first, u64 end, u64 ram)
{
	u64 pa;

	if (first % PAGE != 0 || end < first || end - first > SECURE_PAGES_MAX * PAGE)
		arch_panic("no such secure RAM");
	clear(&secure, secure_bits, first, (end - first) / PAGE);
	clear(&given, given_bits, ram, RAM_PAGES_MAX);
	for (pa = first; pa < end; pa += PAGE)
		insert(&secure, pa);
}

static u64 secure_left(enum purpose purpose)
{
	u64 kept = purpose == PAGES_TABLES ? 0 : TABLES_KEPT;

	return secure.left > kept ? secure.left - kept : 0;
}

u64 pages_left(enum purpose purpose)
{
	return secure_left(purpose) + (purpose == PAGES_PRIVATE ? given.left : 0);
}

u64 pages_take(enum purpose purpose)
{
	if (secure_left(purpose) > 0)
		return extract(&secure, find(&secure));
	if (purpose == PAGES_PRIVATE && given.left > 0)
		return extract(&given, find(&given));
	return 0;
}

void pages_put(u64 pa)
{
	insert(pa >= given.base ? &given : &secure, pa);
}

void pages_give(u64 pa)
{
	insert(&given, pa);
}

u64 pages_withdraw(u64 most, u64 *first)
{
	u64 page, count = 0;

	if (most == 0 || given.left == 0)
		return 0;
	page = find(&given);
	*first = given.base + page * PAGE;
	while (count < most && page < given.pages && given.free[page / BITS] >> page % BITS & 1) {
		extract(&given, page++);
		count++;
	}
	return count;
}

void pages_end(void)
{
	u64 page;

	for (page = 0; page < secure.pages; page++)
		arch_scrub(secure.base + page * PAGE);
	secure.left = given.left = 0;
}
