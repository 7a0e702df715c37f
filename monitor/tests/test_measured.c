/* What EL3 says of EL2: the whole of el3/measured.c, which needs no machine. */
#include "el3/measured.c"
#include "tests/unit.h"

static u8 said[128];
static u32 count;

static void say(u8 byte)
{
	said[count++ % sizeof(said)] = byte;
}

static struct digest counted(void)
{
	struct digest digest;
	u32 i;

	for (i = 0; i < sizeof(digest.bytes); i++)
		digest.bytes[i] = (u8)(i * 0x11 + 3);
	return digest;
}

TEST(the_answer_is_protection_and_then_the_digest_four_bits_at_a_time)
{
	struct digest digest = counted();
	u32 i;

	count = 0;
	measured_say(FLEX_MEASURED_ON, &digest, say);
	CHECK_EQUAL(count, 65);
	CHECK_EQUAL(said[0], FLEX_MEASURED_ON);
	for (i = 0; i < 32; i++)
		CHECK_EQUAL((said[1 + 2 * i] & 0xf) << 4 | (said[2 + 2 * i] & 0xf), digest.bytes[i]);
}

TEST(no_byte_of_the_answer_is_one_of_the_doorbell)
{
	struct digest digest = counted();
	u32 i;

	count = 0;
	measured_say(FLEX_MEASURED_TAMPERED, &digest, say);
	for (i = 0; i < count; i++)
		CHECK(said[i] >= 0x80 && said[i] != FLEX_BYTE_RING && said[i] != FLEX_BYTE_QUERY &&
		      said[i] != FLEX_BYTE_EVENT && said[i] != FLEX_BYTE_ON && said[i] != FLEX_BYTE_OFF);
}

TEST(one_bit_that_was_altered_is_noticed_anywhere_in_what_is_compared_and_nowhere_behind_it)
{
	u64 image[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, copy[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	u32 bit;

	CHECK(measured_is_whole(image, copy, sizeof(image)));
	for (bit = 0; bit < 512; bit++) {
		copy[bit / 64] ^= 1ULL << bit % 64;
		CHECK(!measured_is_whole(image, copy, sizeof(image)));
		CHECK_EQUAL(measured_is_whole(image, copy, 32), bit >= 256);
		copy[bit / 64] ^= 1ULL << bit % 64;
	}
}
