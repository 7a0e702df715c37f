#include "tests/unit.h"

static bool fits(const struct layout *layout, const struct tree *tree, u64 after)
{
	u64 blocks = layout->ram_bytes / BLOCK_BYTES;

	return tree->level1 >= after && tree->level2 == tree->level1 + FLEX_PAGE_BYTES &&
	       tree->level3 == tree->level2 + 4 * FLEX_PAGE_BYTES &&
	       tree->registers == tree->level3 + blocks * FLEX_PAGE_BYTES && tree->level1 % FLEX_PAGE_BYTES == 0;
}

TEST(every_size_of_ram_has_its_parts_one_behind_the_other)
{
	struct board board = { FLEX_BOARD_MAGIC, RAM_BASE, 0, 1, 0 };
	struct layout layout;

	for (board.ram_bytes = RAM_SMALL; board.ram_bytes <= RAM_LARGE; board.ram_bytes += BLOCK_BYTES) {
		CHECK(layout_make(&layout, &board));
		CHECK_EQUAL(layout.hidden_base, RAM_BASE + board.ram_bytes - FLEX_HIDDEN_BYTES);
		CHECK_EQUAL(layout.pages, board.ram_bytes / FLEX_PAGE_BYTES);
		CHECK(layout.window >= layout.hidden_base + IMAGE_BYTES);
		CHECK(layout.control >= layout.window + FLEX_NPU_WINDOW_BYTES);
		CHECK(layout.code == layout.control + FLEX_PAGE_BYTES && layout.stack == layout.code + FLEX_NPU_CODE_BYTES_MAX);
		CHECK_EQUAL(layout.code + SANDBOX_PAGES * FLEX_PAGE_BYTES, layout.sandbox);
		CHECK(layout.window / BLOCK_BYTES == (layout.sandbox - 1) / BLOCK_BYTES);
		CHECK(layout.states >= layout.sandbox + 3 * FLEX_PAGE_BYTES);
		CHECK(fits(&layout, &layout.stage2, layout.states + layout.pages));
		CHECK(fits(&layout, &layout.devices, layout.stage2.registers + REGISTER_TABLES * FLEX_PAGE_BYTES));
		CHECK(fits(&layout, &layout.secure, layout.devices.registers + REGISTER_TABLES * FLEX_PAGE_BYTES));
		CHECK(layout.mailbox >= layout.secure.registers + REGISTER_TABLES * FLEX_PAGE_BYTES);
		CHECK_EQUAL(layout.mailbox + MAILBOX_BYTES, RAM_BASE + board.ram_bytes);
		CHECK_EQUAL(layout.mailbox % FLEX_PAGE_BYTES, 0);
	}
}

TEST(ram_may_end_at_4_gib_and_not_beyond)
{
	struct board board = { FLEX_BOARD_MAGIC, 0x40000000, RAM_LARGE, 1, 0 };
	struct layout layout;

	CHECK(layout_make(&layout, &board));
	board.ram_base = 0x80000000;
	CHECK(!layout_make(&layout, &board));
}

TEST(a_board_that_cannot_be_protected_is_refused)
{
	static const struct board boards[] = {
		{ FLEX_BOARD_MAGIC ^ 1, RAM_BASE, RAM_SMALL, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE + BLOCK_BYTES, RAM_SMALL, 1, 0 },
		{ FLEX_BOARD_MAGIC, 0, RAM_SMALL, 1, 0 },
		{ FLEX_BOARD_MAGIC, 0x4000000000, RAM_SMALL, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE, RAM_SMALL - BLOCK_BYTES, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE, RAM_LARGE + BLOCK_BYTES, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE, RAM_SMALL + FLEX_PAGE_BYTES, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE, 0, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE, ~0ULL, 1, 0 },
		{ FLEX_BOARD_MAGIC, RAM_BASE, RAM_SMALL, 1, 2 },
	};
	struct layout layout;
	u32 i;

	for (i = 0; i < sizeof(boards) / sizeof(boards[0]); i++) {
		CHECK(!layout_make(&layout, &boards[i]));
		CHECK(!monitor_init(&boards[i], NULL, 0));
	}
}
