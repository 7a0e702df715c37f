/* All 32 vector registers, FPCR and FPSR, to and from a struct vectors (world.c) at x0. C here uses none of them. */

#include "arch/aarch64/registers.S.h"

	.arch_extension simd

	.text
	.global	vectors_save
vectors_save:
	store_vectors
	mrs	x1, fpcr
	mrs	x2, fpsr
	add	x0, x0, #512
	stp	x1, x2, [x0]
	ret

	.global	vectors_load
vectors_load:
	load_vectors
	add	x0, x0, #512
	ldp	x1, x2, [x0]
	msr	fpcr, x1
	msr	fpsr, x2
	ret
