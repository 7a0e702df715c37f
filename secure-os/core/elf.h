/*
 * Starts the application: a static ELF file for AArch64 Linux that lies in flash. What it may read or run is mapped
 * where it lies; what it may write is copied.
 */
#ifndef SECURE_OS_ELF_H
#define SECURE_OS_ELF_H

#include "core/types.h"

struct started {
	u64 pc;
	u64 sp;
	u64 end; /* of its data: where brk begins */
};

enum loaded {
	LOADED,
	LOADED_NONE, /* there is no file */
	LOADED_BAD, /* it is not such a file, or asks for what is not given */
	LOADED_LARGE, /* there is not enough memory for it */
};

/* Map the file of at most `bytes` that lies at `pa`, and its stack. It has no threads yet. */
enum loaded elf_load(u64 pa, u64 bytes, struct started *started);

#endif
