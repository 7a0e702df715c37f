/* SPDX-License-Identifier: Apache-2.0 */
/*
 * btree SECONDS [ROWS]: a database in miniature. A file of 4 KiB pages in three levels; a transaction
 * walks down, and every third one changes a row: the old leaf goes to a journal, is synced, the new
 * one is written in place, is synced, and the journal is emptied. Transactions a second; "wrong"
 * counts rows that do not hold what was written last.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

enum { FAN = 64, ROWS_OF_LEAF = 128 };

struct leaf {
	struct {
		uint64_t key, value, check, unused;
	} rows[ROWS_OF_LEAF];
};
_Static_assert(sizeof(struct leaf) == PAGE, "a leaf is a page");

static int tree, journal;

static off_t inner_at(uint64_t leaf)
{
	return PAGE * (1 + leaf / FAN);
}

static off_t leaf_at(uint64_t leaf, uint64_t leaves)
{
	return PAGE * (1 + (leaves + FAN - 1) / FAN + leaf);
}

static int create(uint64_t leaves)
{
	uint64_t inner[PAGE / 8] = { 0 };
	struct leaf page;

	for (uint64_t leaf = 0; leaf < leaves; leaf++) {
		for (int i = 0; i < ROWS_OF_LEAF; i++) {
			uint64_t key = leaf * ROWS_OF_LEAF + i;
			page.rows[i].key = key;
			page.rows[i].value = 0;
			page.rows[i].check = mixed(key);
		}
		inner[leaf % FAN] = leaf_at(leaf, leaves);
		if (pwrite(tree, inner, PAGE, inner_at(leaf)) != PAGE ||
		    pwrite(tree, &page, PAGE, leaf_at(leaf, leaves)) != PAGE)
			return -1;
	}
	return 0;
}

/* Returns 0, or 1 when the row is not what it should be, or -1. */
static int transact(uint64_t key, int change)
{
	uint64_t inner[PAGE / 8], leaf = key / ROWS_OF_LEAF;
	struct leaf page;

	if (pread(tree, inner, PAGE, 0) < 0 || pread(tree, inner, PAGE, inner_at(leaf)) != PAGE)
		return -1;
	off_t at = inner[leaf % FAN];
	if (pread(tree, &page, PAGE, at) != PAGE)
		return -1;
	typeof(&page.rows[0]) row = &page.rows[key % ROWS_OF_LEAF];
	if (row->key != key || row->check != mixed(key + row->value))
		return 1;
	if (!change)
		return 0;
	if (pwrite(journal, &page, PAGE, 0) != PAGE || fdatasync(journal))
		return -1;
	row->value++;
	row->check = mixed(key + row->value);
	if (pwrite(tree, &page, PAGE, at) != PAGE || fdatasync(tree) || ftruncate(journal, 0))
		return -1;
	return 0;
}

int btree_main(int argc, char **argv)
{
	double seconds = number(argc > 1 ? argv[1] : NULL, 3), took;
	uint64_t leaves = number(argc > 2 ? argv[2] : NULL, 65536) / ROWS_OF_LEAF + 1, wrong = 0, done = 0;

	tree = open("/tmp/tree", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	journal = open("/tmp/journal", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (tree < 0 || journal < 0 || create(leaves))
		return 1;
	double began = now();
	do {
		int came = transact(mixed(done) % (leaves * ROWS_OF_LEAF), done % 3 == 0);
		if (came < 0)
			return 1;
		wrong += came;
		done++;
	} while ((took = now() - began) < seconds);
	printf("{\"per_second\": %.0f, \"wrong\": %lu}\n", done / took, wrong);
	unlink("/tmp/tree");
	unlink("/tmp/journal");
	return wrong != 0;
}
