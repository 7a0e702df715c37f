/*
 * The start, the self-test included, from any contents of memory and variables, on a machine of one block of
 * RAM (PAGES pages, of which SMALL_PAGES are not the monitor's) with NPUS NPUs: afterwards the invariant holds.
 */
#include "tests/proofs/parts.h"

#include "arch/arch.h"

#define BASE 0x40000000ULL
#define WORDS 512 /* of a table */
#define TABLES (1 + LEVEL2_TABLES + 1 + REGISTER_TABLES)

struct small small;

static u8 states[PAGES];
static u64 stage2[TABLES * WORDS];
static u64 devices[TABLES * WORDS];
static u64 secure[TABLES * WORDS];
static u64 sandbox[3 * WORDS];
static bool sandbox_empty;
static u64 root;
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
	if (pa >= layout->sandbox && pa < layout->sandbox + sizeof(sandbox))
		return &sandbox[(pa - layout->sandbox) / sizeof(u64)];
	if (pa >= layout->stage2.level1 && pa < layout->devices.level1)
		return &stage2[(pa - layout->stage2.level1) / sizeof(u64)];
	if (pa >= layout->devices.level1 && pa < layout->secure.level1)
		return &devices[(pa - layout->devices.level1) / sizeof(u64)];
	prove(pa >= layout->secure.level1 && pa < layout->secure.level1 + sizeof(secure),
	      "only what was laid out is used");
	return &secure[(pa - layout->secure.level1) / sizeof(u64)];
}

void arch_barrier(void)
{
}

void arch_scrub(u64 pa, u64 pages)
{
	prove(pa == monitor_layout()->code && pages == SANDBOX_PAGES, "the sandbox is scrubbed, all of it");
	sandbox_empty = true;
}

void arch_npu_root(u64 level1)
{
	root = level1;
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
		secure[i] = nondet_u64();
	}
	for (i = 0; i < 3 * WORDS; i++)
		sandbox[i] = nondet_u64();
	for (i = 0; i < MAILBOX_WORDS; i++)
		mailbox[i] = nondet_u64();
}

/* The sandbox holds the NPU's registers, code that cannot be written, a stack that never runs; no more. */
static u64 sandbox_leaf(u64 page)
{
	u64 at = BASE + page * FLEX_PAGE_BYTES;

	if (is_register(page))
		return at | 0x400000000004c7ULL;
	if (at >= monitor_layout()->code && at < monitor_layout()->stack)
		return at | 0x77f;
	return at == monitor_layout()->stack ? at | 0x400000000007ffULL : 0;
}

static void prove_npu(void)
{
	u64 level1 = nondet_u64() % WORDS, level2 = nondet_u64() % WORDS, tables = monitor_layout()->sandbox;

	prove(root == monitor_layout()->devices.level1 && npu_state() == FLEX_NPU_STATE_NORMAL,
	      "the NPU is the OS's, and reaches what its other devices do");
	prove(sandbox_empty, "nothing drives it yet");
	prove(sandbox[level1] == (level1 == BASE >> 30 ? (tables + FLEX_PAGE_BYTES) | 3 : 0),
	      "the sandbox is in one GiB");
	prove(sandbox[WORDS + level2] == (level2 == 0 ? (tables + 2 * FLEX_PAGE_BYTES) | 3 : 0),
	      "and in one block of it");
	prove(sandbox[2 * WORDS + small.watched] == sandbox_leaf(small.watched),
	      "the sandbox holds the NPU's registers, code and a page of stack");
}

int main(void)
{
	const struct board board = { FLEX_BOARD_MAGIC, BASE, BLOCK_BYTES, 1, NPUS };

	any_memory();
	small = (struct small){ .base = BASE, .pages = PAGES, .hidden = SMALL_PAGES, .states = states,
				.stage2 = stage2 + (1 + LEVEL2_TABLES) * WORDS, .devices = devices + (1 + LEVEL2_TABLES) * WORDS,
				.secure = secure + (1 + LEVEL2_TABLES) * WORDS, .npus = NPUS, .mailbox = mailbox,
				.window = SMALL_PAGES + FLEX_NPU_WINDOW_OFFSET / FLEX_PAGE_BYTES,
			        .watched = nondet_u64() % PAGES };
	prove(monitor_init(&board, windows, 2), "the machine is accepted");
	prove(!secure_attached(), "nobody is attached");
	prove(pages_hold(), "the monitor's pages are the monitor's, all others are NORMAL");
	prove(tables_hold(), "the normal world's tables have exactly what is NORMAL, the secure NPU's nothing");
	prove(mailbox_holds() && notices_hold(), "the rings are empty");
	prove(secure_holds() && npu_holds(), "no page is SECURE, and nobody wants the NPU");
	if (NPUS)
		prove_npu();
	possible(small.watched < SMALL_PAGES);
	return 0;
}
