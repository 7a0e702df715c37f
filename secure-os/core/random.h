/*
 * Random bytes, from a seed that whoever starts the machine put into the image, as a board's generator would. Each
 * answer's key is gone before it is given. Callers hold the lock.
 */
#ifndef SECURE_OS_RANDOM_H
#define SECURE_OS_RANDOM_H

#include "core/types.h"

#define SEED_BYTES 32

/* A seed of zeros is none. */
void random_init(const u8 seed[SEED_BYTES]);

/* Fill `to`; false: there was no seed. */
bool random_fill(u8 *to, u64 bytes);

#endif
