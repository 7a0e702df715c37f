/*
 * The start, the self-test included, from any contents of memory and variables, on a machine of one block of
 * RAM (PAGES pages, of which SMALL_PAGES are not the monitor's): afterwards the invariant holds.
 */
#include "tests/proofs/parts.h"

#include "arch/arch.h"

#define BASE 0x40000000ULL
#define WORDS 512 /* of a table */
#define TABLES (1 + LEVEL2_TABLES + 1 + 1)

struct small small;

static u8 states[PAGES];
static u64 stage2[TABLES * WORDS];
static u64 devices[TABLES * WORDS];
static u64 mailbox[MAILBOX_WORDS];

static const struct window windows[] = {
	{ 0x08000000, BLOCK_BYTES },
	{ 0x09000000, FLEX_PAGE_BYTES },
};

void *arch_at(u64 pa)
{
	const struct layout *layout = monitor_layout();

	if (pa == layout->states)
		return states;
	if (pa == layout->mailbox)
		return mailbox;
	if (pa >= layout->stage2.level1 && pa < layout->devices.level1)
		return &stage2[(pa - layout->stage2.level1) / sizeof(u64)];
	prove(pa >= layout->devices.level1 && pa < layout->secure.level1, "only what was laid out is used");
	return &devices[(pa - layout->devices.level1) / sizeof(u64)];
}

void arch_barrier(void)
{
}

_Noreturn void arch_panic(const char *why)
{
	(void)why;
	prove(false, "the self-test finds no fault");
	assume(false);
	while (true)
		;
}

static void any_memory(void)
{
	u64 i;

	for (i = 0; i < PAGES; i++)
		states[i] = nondet_u8();
	for (i = 0; i < TABLES * WORDS; i++) {
		stage2[i] = nondet_u64();
		devices[i] = nondet_u64();
	}
	for (i = 0; i < MAILBOX_WORDS; i++)
		mailbox[i] = nondet_u64();
}

int main(void)
{
	const struct board board = { FLEX_BOARD_MAGIC, BASE, BLOCK_BYTES, 1, 0 };

	any_memory();
	small = (struct small){ .base = BASE, .pages = PAGES, .hidden = SMALL_PAGES, .states = states,
				.stage2 = stage2 + (1 + LEVEL2_TABLES) * WORDS, .devices = devices + (1 + LEVEL2_TABLES) * WORDS,
				.mailbox = mailbox, .watched = nondet_u64() % PAGES };
	prove(monitor_init(&board, windows, 2), "the machine is accepted");
	prove(!secure_attached(), "nobody is attached");
	prove(pages_hold(), "the monitor's pages are the monitor's, all others are NORMAL");
	prove(tables_hold(), "a page is in the tables of the normal world exactly while it is NORMAL");
	prove(mailbox_holds() && notices_hold(), "the rings are empty");
	prove(secure_holds(), "no page is SECURE");
	possible(small.watched < SMALL_PAGES);
	return 0;
}
