/*
 * The application's memory, as the kernel reaches it: for all addresses and lengths, only by pages that S-EL0 itself could
 * reach in this way, within them, and never beyond the caller's own buffer. Pages are small here (PAGE), so that a copy
 * crosses some of them.
 */
#include "core/types.h"

#include "tests/proofs/cbmc.h"

#include "core/user.c"

#define FRAMES 4
#define BYTES_MAX (2 * PAGE + 1)

/* An object of its own for each page: a copy that runs over its end is noticed. */
static u8 first[PAGE], second[PAGE], third[PAGE], fourth[PAGE];
/* A range ends where this does: what is copied beyond its end is noticed. */
static u8 room[BYTES_MAX];
static u8 *const frames[FRAMES] = { first, second, third, fourth };

static u64 start;
static bool writes;
static u32 asked; /* pages */
static bool refused;
static u32 watched; /* the byte that is looked at */
static u8 *seen; /* where it lies */

u64 tables_reach(u64 va, bool write)
{
	prove(va < ADDRESSES_END, "no address that S-EL0 could not say is looked up");
	prove(write == writes, "memory is written where S-EL0 may write it");
	prove(!refused, "nothing is copied past a page that is not there");
	prove(asked < FRAMES && va / PAGE == start / PAGE + asked, "pages are looked up one after the other");
	refused = nondet_bool();
	if (refused)
		return 0;
	if ((start + watched) / PAGE == va / PAGE)
		seen = &frames[asked][(start + watched) % PAGE];
	return ++asked * PAGE + va % PAGE;
}

void *arch_at(u64 pa)
{
	prove(pa / PAGE == asked, "what is reached is the page that was looked up");
	return &frames[pa / PAGE - 1][pa % PAGE];
}

int main(void)
{
	u64 va = nondet_u64(), bytes = nondet_u64();
	bool fits = va < ADDRESSES_END && bytes <= ADDRESSES_END - va, done;
	u8 *buffer;

	assume(!fits || bytes <= BYTES_MAX);
	start = va;
	writes = nondet_bool();
	watched = nondet_u32();
	assume(watched < bytes || bytes == 0);
	buffer = room + BYTES_MAX - (fits ? bytes : 0);
	done = writes ? user_write(va, buffer, bytes) : user_read(buffer, va, bytes);
	prove(fits || (!done && asked == 0), "a range that is none is refused before anything is looked up");
	prove(!fits || done == !refused, "it is copied if all of it can be reached");
	if (done && bytes > 0)
		prove(seen && *seen == buffer[watched], "each byte is copied to its place");
	possible(done && asked == 3);
	possible(refused && asked == 2);
	possible(!fits);
	return 0;
}
