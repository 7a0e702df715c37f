/* Where things lie, with the constants of the real monitor, on every board that it accepts. */
#include "tests/proofs/parts.h"

static u64 tree_end(const struct tree *tree)
{
	return tree->registers + REGISTER_TABLES * (u64)FLEX_PAGE_BYTES;
}

/* Its tables follow each other, and its level 3 has a leaf for each page of RAM. */
static void prove_tree(const struct tree *tree, u64 pages)
{
	prove(tree->level1 % FLEX_PAGE_BYTES == 0 && tree->level2 == tree->level1 + FLEX_PAGE_BYTES &&
		      tree->level3 == tree->level2 + LEVEL2_TABLES * FLEX_PAGE_BYTES &&
		      tree->registers == tree->level3 + pages * sizeof(u64),
	      "a tree's tables follow each other");
}

/* Each thing ends before the next begins, from the start of what is hidden to its end. */
static void prove_order(const struct layout *layout)
{
	u64 end = layout->ram_base + layout->ram_bytes;

	prove(layout->hidden_base > layout->ram_base && layout->hidden_base + FLEX_HIDDEN_BYTES == end,
	      "what is hidden is the end of RAM");
	prove(layout->window == layout->hidden_base + IMAGE_BYTES, "the NPU's registers come after the image");
	prove(layout->control >= layout->window + FLEX_NPU_WINDOW_BYTES && layout->control % FLEX_PAGE_BYTES == 0,
	      "the page between monitor and NPU comes after its registers, which are whole pages");
	prove(layout->code >= layout->control + FLEX_PAGE_BYTES &&
		      layout->stack >= layout->code + FLEX_NPU_CODE_BYTES_MAX &&
		      layout->sandbox >= layout->stack + FLEX_PAGE_BYTES,
	      "then what the sandbox is made of");
	prove(layout->window / BLOCK_BYTES == layout->stack / BLOCK_BYTES, "whose pages are in one block");
	prove(layout->states >= layout->sandbox + 3 * FLEX_PAGE_BYTES, "then come the page states");
	prove(layout->stage2.level1 >= layout->states + layout->pages, "then come the tables: Stage-2's");
	prove(layout->devices.level1 >= tree_end(&layout->stage2), "the devices'");
	prove(layout->secure.level1 >= tree_end(&layout->devices), "the secure NPU's");
	prove(layout->mailbox >= tree_end(&layout->secure) && layout->mailbox + MAILBOX_BYTES <= end,
	      "and last, the mailbox");
}

int main(void)
{
	struct board board = { nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64(), nondet_u64() };
	struct layout layout;
	bool accepted = layout_make(&layout, &board);

	possible(accepted && board.ram_bytes == RAM_BYTES_MIN);
	possible(accepted && board.ram_bytes == RAM_BYTES_MAX);
	possible(!accepted && board.ram_bytes == RAM_BYTES_MAX);
	if (!accepted)
		return 0;
	prove(layout.ram_base == board.ram_base && layout.ram_bytes == board.ram_bytes &&
		      layout.pages * FLEX_PAGE_BYTES == layout.ram_bytes,
	      "RAM is the board's");
	prove(layout.ram_base >= 0x40000000 && layout.ram_base + layout.ram_bytes > layout.ram_base &&
		      layout.ram_base + layout.ram_bytes <= 1ULL << 32,
	      "RAM is between 1 and 4 GiB, above the registers of all devices");
	prove_order(&layout);
	prove_tree(&layout.stage2, layout.pages);
	prove_tree(&layout.devices, layout.pages);
	prove_tree(&layout.secure, layout.pages);
	return 0;
}
