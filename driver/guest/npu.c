/* SPDX-License-Identifier: Apache-2.0 */
/*
 * npu multiply [M N K [TIMES]]   products of random matrices in each format, compared bit by bit with
 *                                what this program computes itself: "ok", "bad", or how a job ended
 * npu vision SECONDS             a small network's layers as int8 products, over and over, with two jobs
 *                                in flight; how many, and how many were not what they should be
 * npu read PHYSICAL              has the NPU read a page that /dev/flexattack maps: what came of it
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../flexnpu/uapi/flexnpu.h"
#include "guest.h"

enum { PATIENCE_MS = 120000 };

static const char *const outcomes[] = { "done", "fault", "bad command", "timed out", "lost" };

static int npu;

/* ---- matrices ---- */

struct block {
	__fp16 scale;
	int8_t values[FLEXNPU_BLOCK];
};
_Static_assert(sizeof(struct block) == 34, "as ggml has them");

static size_t row_bytes(uint32_t format, uint32_t k)
{
	switch (format) {
	case FLEXNPU_INT8:
		return k;
	case FLEXNPU_FP16:
		return 2UL * k;
	default:
		return k / FLEXNPU_BLOCK * sizeof(struct block);
	}
}

/* Small halves, multiples of 1/64: their sums are exact in double, in whichever order. */
static __fp16 random_half(uint64_t seed)
{
	return ((int)(mixed(seed) % 257) - 128) / (__fp16)64;
}

static void fill_row(uint32_t format, void *row, uint32_t k, uint64_t seed)
{
	for (uint32_t i = 0; i < k; i++, seed++) {
		struct block *block = (struct block *)row + i / FLEXNPU_BLOCK;

		if (format == FLEXNPU_INT8) {
			((int8_t *)row)[i] = mixed(seed);
		} else if (format == FLEXNPU_FP16) {
			((__fp16 *)row)[i] = random_half(seed);
		} else {
			block->values[i % FLEXNPU_BLOCK] = mixed(seed);
			if (i % FLEXNPU_BLOCK == 0)
				block->scale = random_half(seed ^ 0x5ca1e);
		}
	}
}

static void *new_matrix(uint32_t format, uint32_t rows, uint32_t k, size_t stride, uint64_t seed)
{
	char *matrix = calloc(rows, stride);

	for (uint32_t row = 0; matrix && row < rows; row++)
		fill_row(format, matrix + row * stride, k, seed + (uint64_t)row * k);
	return matrix;
}

/* ---- the reference: one element as 32 bits ---- */

static uint32_t bits(float value)
{
	uint32_t word;

	memcpy(&word, &value, sizeof(word));
	return word;
}

static uint32_t dot_int8(const int8_t *a, const int8_t *b, uint32_t k)
{
	int32_t sum = 0;

	for (uint32_t i = 0; i < k; i++)
		sum += a[i] * b[i];
	return sum;
}

static uint32_t dot_fp16(const __fp16 *a, const __fp16 *b, uint32_t k)
{
	double sum = 0;

	for (uint32_t i = 0; i < k; i++)
		sum += (double)a[i] * (double)b[i];
	return bits(sum);
}

static uint32_t dot_q8_0(const struct block *a, const struct block *b, uint32_t k)
{
	float sum = 0;

	for (uint32_t i = 0; i < k / FLEXNPU_BLOCK; i++) {
		int32_t part = dot_int8(a[i].values, b[i].values, FLEXNPU_BLOCK);
		sum += part * ((float)a[i].scale * (float)b[i].scale);
	}
	return bits(sum);
}

static uint32_t dot(uint32_t format, const void *a, const void *b, uint32_t k)
{
	switch (format) {
	case FLEXNPU_INT8:
		return dot_int8(a, b, k);
	case FLEXNPU_FP16:
		return dot_fp16(a, b, k);
	default:
		return dot_q8_0(a, b, k);
	}
}

/* ---- products ---- */

struct product {
	struct flexnpu_submit submit;
	char *a, *b;
	uint32_t *c, *reference;
};

/* Random matrices, with `gap` bytes between their rows, and the product as it should be. */
static int make(struct product *product, uint32_t format, uint32_t m, uint32_t n, uint32_t k, uint64_t seed,
		size_t gap)
{
	size_t row = row_bytes(format, k), a_stride = row + gap, b_stride = row + 2 * gap;

	product->a = new_matrix(format, m, k, a_stride, seed);
	product->b = new_matrix(format, n, k, b_stride, mixed(seed));
	product->c = malloc(4UL * m * n);
	product->reference = malloc(4UL * m * n);
	if (!product->a || !product->b || !product->c || !product->reference)
		return -1;
	for (uint32_t i = 0; i < m; i++)
		for (uint32_t j = 0; j < n; j++)
			product->reference[i * n + j] =
				dot(format, product->a + i * a_stride, product->b + j * b_stride, k);
	memset(product->c, 0xff, 4UL * m * n);
	product->submit = (struct flexnpu_submit){
		.a = (uintptr_t)product->a, .b = (uintptr_t)product->b, .c = (uintptr_t)product->c,
		.a_stride = a_stride, .b_stride = b_stride, .c_stride = 4 * n,
		.m = m, .n = n, .k = k, .format = format,
	};
	return 0;
}

static void unmake(struct product *product)
{
	free(product->a);
	free(product->b);
	free(product->c);
	free(product->reference);
}

static int submit(struct product *product)
{
	return ioctl(npu, FLEXNPU_SUBMIT, &product->submit);
}

/* Returns how a job ended, or -1. */
static int await(struct product *product, uint32_t *stopped)
{
	struct flexnpu_wait wait = { .job = product->submit.job, .timeout_ms = PATIENCE_MS };

	if (ioctl(npu, FLEXNPU_WAIT, &wait))
		return -1;
	if (stopped)
		*stopped = wait.stopped;
	return wait.outcome;
}

static int is_right(const struct product *product)
{
	return !memcmp(product->c, product->reference, 4UL * product->submit.m * product->submit.n);
}

/* ---- programs ---- */

/* One product, from its matrices to the comparison; NULL when there is no memory for it, or no job. */
static const char *try(uint32_t format, uint32_t m, uint32_t n, uint32_t k, uint64_t seed)
{
	const char *came = NULL;
	struct product product;
	int outcome = -1;

	if (!make(&product, format, m, n, k, seed, 2) && !submit(&product))
		outcome = await(&product, NULL);
	if (outcome == FLEXNPU_DONE)
		came = is_right(&product) ? "ok" : "bad";
	else if (outcome > 0)
		came = outcomes[outcome];
	unmake(&product);
	return came;
}

static int multiply(int argc, char **argv)
{
	static const char *const names[] = { "int8", "fp16", "q8_0" };
	uint32_t m = number(argc > 2 ? argv[2] : NULL, 37), n = number(argc > 3 ? argv[3] : NULL, 41);
	uint32_t k = number(argc > 4 ? argv[4] : NULL, 288), times = number(argc > 5 ? argv[5] : NULL, 1);
	uint32_t wrong = 0;

	printf("{");
	for (int i = 0; i < 3; i++) {
		const char *last = "ok";

		for (uint32_t time = 0; time < times; time++) {
			const char *came = try(FLEXNPU_INT8 + i, m, n, k, mixed(getpid()) + time);

			if (!came)
				return 1;
			if (strcmp(came, "ok")) {
				wrong++;
				last = came;
			}
		}
		printf("\"%s\": \"%s\", ", names[i], last);
	}
	printf("\"wrong\": %u}\n", wrong);
	return wrong != 0;
}

/* Convolutions of a small network, as the products they become: pixels, filters, taps of a filter. */
static const struct {
	uint32_t m, n, k;
} layers[] = { { 784, 16, 27 }, { 196, 32, 144 }, { 196, 64, 32 }, { 49, 64, 576 } };

enum { LAYERS = sizeof(layers) / sizeof(*layers) };

static int vision(int argc, char **argv)
{
	double seconds = number(argc > 2 ? argv[2] : NULL, 3), took;
	uint64_t operations = 0, products = 0, wrong = 0;
	struct product stream[LAYERS];

	for (int i = 0; i < LAYERS; i++)
		if (make(&stream[i], FLEXNPU_INT8, layers[i].m, layers[i].n, layers[i].k, i, 0))
			return 1;
	double began = now();
	if (submit(&stream[0]))
		return 1;
	do {
		struct product *product = &stream[products % LAYERS];

		if (submit(&stream[(products + 1) % LAYERS]))
			return 1;
		wrong += await(product, NULL) != FLEXNPU_DONE || !is_right(product);
		memset(product->c, 0xff, 4UL * product->submit.m * product->submit.n);
		operations += 2UL * product->submit.m * product->submit.n * product->submit.k;
		products++;
	} while ((took = now() - began) < seconds);
	printf("{\"products\": %lu, \"operations\": %lu, \"wrong\": %lu, \"seconds\": %.3f, \"per_second\": %.0f}\n",
	       products, operations, wrong, took, operations / took);
	return wrong != 0;
}

static int read_page(int argc, char **argv)
{
	int fd = open("/dev/flexattack", O_RDWR | O_CLOEXEC), outcome = -1, error = 0;
	uint32_t stopped = 0;
	struct product product;
	void *page;

	if (fd < 0 || make(&product, FLEXNPU_INT8, 1, 1, PAGE, 1, 0))
		return 1;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, number(argc > 2 ? argv[2] : NULL, 0));
	if (page == MAP_FAILED)
		error = errno;
	product.submit.a = (uintptr_t)page;
	memset(product.b, 0, PAGE);
	product.b[0] = 1;
	if (!error && (submit(&product) || (outcome = await(&product, &stopped)) < 0))
		error = errno;
	printf("{\"errno\": %d, \"outcome\": \"%s\", \"stopped\": %u, \"value\": %d}\n", error,
	       outcome < 0 ? "" : outcomes[outcome], stopped, (int)product.c[0]);
	return 0;
}

int npu_main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*main)(int argc, char **argv);
	} programs[] = { { "multiply", multiply }, { "vision", vision }, { "read", read_page } };

	npu = open("/dev/flexnpu", O_RDWR | O_CLOEXEC);
	if (npu < 0) {
		printf("no NPU\n");
		return 1;
	}
	for (size_t i = 0; argc > 1 && i < sizeof(programs) / sizeof(*programs); i++)
		if (!strcmp(argv[1], programs[i].name))
			return programs[i].main(argc, argv);
	return 127;
}
