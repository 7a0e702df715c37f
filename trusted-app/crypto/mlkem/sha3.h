/* FIPS 202 as mlkem-native asks for it, by Nettle. Nettle 3.8 has the permutation, and not SHAKE128. */
#ifndef MLKEM_SHA3_H
#define MLKEM_SHA3_H

#include <nettle/sha3.h>

#include <string.h>

#include "cbmc.h"

#define SHAKE128_RATE 168
#define SHAKE256_RATE 136
#define SHA3_256_RATE 136
#define SHA3_384_RATE 104
#define SHA3_512_RATE 72

typedef struct sha3_state mlk_shake128ctx;

static inline void mlk_shake128_init(mlk_shake128ctx *state)
{
	memset(state, 0, sizeof *state);
}

static inline void mlk_shake128_release(mlk_shake128ctx *state)
{
	explicit_bzero(state, sizeof *state);
}

/* Of a little-endian machine. The input is shorter than a block: mlkem-native's has 34 bytes. */
static inline void mlk_shake128_absorb_once(mlk_shake128ctx *state, const uint8_t *input, size_t bytes)
{
	uint8_t *const block = (uint8_t *)state->a;

	memcpy(block, input, bytes);
	block[bytes] = 0x1f;
	block[SHAKE128_RATE - 1] = 0x80;
}

static inline void mlk_shake128_squeezeblocks(uint8_t *output, size_t blocks, mlk_shake128ctx *state)
{
	for (; blocks != 0; blocks--, output += SHAKE128_RATE) {
		sha3_permute(state);
		memcpy(output, state->a, SHAKE128_RATE);
	}
}

static inline void mlk_shake256(uint8_t *output, size_t bytes, const uint8_t *input, size_t input_bytes)
{
	struct sha3_256_ctx context;

	sha3_256_init(&context);
	sha3_256_update(&context, input_bytes, input);
	sha3_256_shake(&context, bytes, output);
	explicit_bzero(&context, sizeof context);
}

static inline void mlk_sha3_256(uint8_t *output, const uint8_t *input, size_t bytes)
{
	struct sha3_256_ctx context;

	sha3_256_init(&context);
	sha3_256_update(&context, bytes, input);
	sha3_256_digest(&context, SHA3_256_DIGEST_SIZE, output);
	explicit_bzero(&context, sizeof context);
}

static inline void mlk_sha3_512(uint8_t *output, const uint8_t *input, size_t bytes)
{
	struct sha3_512_ctx context;

	sha3_512_init(&context);
	sha3_512_update(&context, bytes, input);
	sha3_512_digest(&context, SHA3_512_DIGEST_SIZE, output);
	explicit_bzero(&context, sizeof context);
}

#endif
