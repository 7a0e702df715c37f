/* Save and restore a struct frame around a C function; the suffix names the exception level's registers. */

#include "arch/aarch64/registers.S.h"

.macro save_frame level
	sub	sp, sp, #272
	store_general
	mrs	x0, elr_\level
	mrs	x1, spsr_\level
	stp	x30, x0, [sp, #240]
	str	x1, [sp, #256]
	mov	x0, sp
.endm

.macro restore_frame level
	ldr	x1, [sp, #256]
	ldp	x30, x0, [sp, #240]
	msr	spsr_\level, x1
	msr	elr_\level, x0
	load_general
	add	sp, sp, #272
	eret
.endm

.macro entry level, function
	.balign 128
	save_frame \level
	bl	\function
	b	\level\()_return
.endm
