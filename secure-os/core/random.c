#include "core/random.h"

#include "core/sha256.h"

/* What is hashed: the key, and which block of output this is; block 0 is the next key. */
struct block {
	u8 key[SEED_BYTES];
	u64 number;
};

static u8 key[SEED_BYTES];
static bool seeded;

void random_init(const u8 seed[SEED_BYTES])
{
	u32 i;

	seeded = false;
	for (i = 0; i < SEED_BYTES; i++) {
		key[i] = seed[i];
		seeded = seeded || seed[i] != 0;
	}
}

static struct digest block_of(u64 number)
{
	struct block block = { .number = number };
	u32 i;

	for (i = 0; i < SEED_BYTES; i++)
		block.key[i] = key[i];
	return sha256(&block, sizeof(block));
}

bool random_fill(u8 *to, u64 bytes)
{
	struct digest digest;
	u64 i;

	if (!seeded)
		return false;
	for (i = 0; i < bytes; i++) {
		if (i % sizeof(digest.bytes) == 0)
			digest = block_of(1 + i / sizeof(digest.bytes));
		to[i] = digest.bytes[i % sizeof(digest.bytes)];
	}
	digest = block_of(0);
	for (i = 0; i < SEED_BYTES; i++)
		key[i] = digest.bytes[i];
	return true;
}
