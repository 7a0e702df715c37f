#include "core/layout.h"

static u64 pages_up(u64 bytes)
{
	return (bytes + FLEX_PAGE_BYTES - 1) / FLEX_PAGE_BYTES * FLEX_PAGE_BYTES;
}

static u64 place_tree(struct tree *tree, u64 at, u64 blocks)
{
	tree->level1 = at;
	tree->level2 = tree->level1 + FLEX_PAGE_BYTES;
	tree->level3 = tree->level2 + LEVEL2_TABLES * (u64)FLEX_PAGE_BYTES;
	tree->registers = tree->level3 + blocks * FLEX_PAGE_BYTES;
	return tree->registers + REGISTER_TABLES * (u64)FLEX_PAGE_BYTES;
}

static bool board_is_sane(const struct board *board)
{
	return board->magic == FLEX_BOARD_MAGIC && board->ram_base % 0x40000000 == 0 && board->ram_base != 0 &&
	       board->ram_bytes >= RAM_BYTES_MIN && board->ram_bytes <= RAM_BYTES_MAX &&
	       board->npu <= 1 && board->ram_bytes % BLOCK_BYTES == 0 && board->ram_base <= 0x100000000ULL - board->ram_bytes;
}

bool layout_make(struct layout *layout, const struct board *board)
{
	u64 at;

	if (!board_is_sane(board))
		return false;
	layout->ram_base = board->ram_base;
	layout->ram_bytes = board->ram_bytes;
	layout->pages = board->ram_bytes / FLEX_PAGE_BYTES;
	layout->hidden_base = board->ram_base + board->ram_bytes - FLEX_HIDDEN_BYTES;
	layout->npu = board->npu;
	layout->window = layout->hidden_base + FLEX_NPU_WINDOW_OFFSET;
	layout->control = layout->hidden_base + FLEX_NPU_CONTROL_OFFSET;
	layout->code = layout->control + FLEX_PAGE_BYTES;
	layout->stack = layout->code + FLEX_NPU_CODE_BYTES_MAX;
	layout->sandbox = layout->stack + FLEX_PAGE_BYTES;
	layout->states = layout->hidden_base + FLEX_HIDDEN_STATES;
	at = layout->states + pages_up(layout->pages);
	at = place_tree(&layout->stage2, at, board->ram_bytes / BLOCK_BYTES);
	at = place_tree(&layout->devices, at, board->ram_bytes / BLOCK_BYTES);
	at = place_tree(&layout->secure, at, board->ram_bytes / BLOCK_BYTES);
	layout->mailbox = board->ram_base + board->ram_bytes - pages_up(MAILBOX_BYTES);
	return at <= layout->mailbox;
}
