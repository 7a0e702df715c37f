/* Reset, and where exceptions arrive at EL3. */

#include "arch/aarch64/frame.S.h"
#include "arch/aarch64/tables.S.h"
#include "el3/secure_os.h"
#include "flex.h"
#include "plat/qemu_virt/plat.h"

#define STACK_BYTES 0x2000
#define MPIDR_THREADS 24 /* which bit */
#define SCTLR 0x30c51835 /* translation and caches on */
#define TCR 0x80803520 /* 4 GiB of addresses, 4 KiB pages, cached walks */
#define MAIR 0xff00 /* 0: device, 1: normal, write-back */

	/* arch/aarch64/affinity.h says why. */
	.macro	cpu_number register
	mrs	\register, mpidr_el1
	tbz	\register, #MPIDR_THREADS, .Lfield_0_\@
	lsr	\register, \register, #8
.Lfield_0_\@:
	and	\register, \register, #0xff
	.endm

	.section .text.start, "ax"
	.global	el3_start
el3_start:
	b	reset

	/* struct board: patched into the image by who builds the machine. */
	.org	FLEX_BOARD_OFFSET
	.global	el3_board
el3_board:
	.quad	0, 0, 0, 0, 0
	/* And how many bytes were loaded: kernel, device tree, first file system. */
	.global	el3_loaded
el3_loaded:
	.quad	0, 0, 0

reset:
	msr	daifset, #0xf
	adr	x0, el3_vectors
	msr	vbar_el3, x0
	ldr	x0, =MAIR
	msr	mair_el3, x0
	ldr	x0, =TCR
	msr	tcr_el3, x0
	ldr	x0, =level1
	msr	ttbr0_el3, x0
	tlbi	alle3
	ic	iallu
	dsb	sy
	isb
	ldr	x0, =SCTLR
	msr	sctlr_el3, x0
	isb
	cpu_number x19
	cmp	x19, #PLAT_CPUS
	b.hs	.

	ldr	x0, =stacks_end
	mov	x1, #STACK_BYTES
	msub	x0, x19, x1, x0
	mov	sp, x0
	cbnz	x19, secondary

	/* The first CPU puts data in its place. */
	ldr	x0, =data_start
	ldr	x1, =data_end
	ldr	x2, =data_source
1:	cmp	x0, x1
	b.hs	2f
	ldr	x3, [x2], #8
	str	x3, [x0], #8
	b	1b
	/* And overwrites the rest of secure RAM: a reset asks nobody, and the secure world's lies there, too. */
2:	ldr	x0, =bss_start
	ldr	x1, =PLAT_SECURE_RAM + PLAT_SECURE_RAM_BYTES
3:	cmp	x0, x1
	b.hs	4f
	stp	xzr, xzr, [x0], #16
	b	3b
4:	sub	sp, sp, #272
	mov	x0, sp
	bl	el3_first
	b	el3_return

secondary:
	/*
	 * RAM may hold anything after a reset, the GIC cannot: no group is enabled, and the first CPU enables them once
	 * its data are in place. Before, this CPU's stack would be overwritten under it.
	 */
	ldr	x0, =PLAT_GICD
5:	ldr	w1, [x0]
	tbnz	w1, #0, 6f
	yield
	b	5b
	.global	el3_repark
el3_repark:
	/* A CPU that was turned off starts over with an empty stack. */
	cpu_number x19
	ldr	x0, =stacks_end
	mov	x1, #STACK_BYTES
	msub	x0, x19, x1, x0
	mov	sp, x0
6:	sub	sp, sp, #272
	mov	x0, sp
	mov	x1, x19
	bl	el3_secondary
	b	el3_return

	.balign 2048
el3_vectors:
	.rept 8
	entry	el3, el3_unexpected
	.endr
	entry	el3, el3_smc
	entry	el3, el3_unexpected
	entry	el3, el3_interrupt
	entry	el3, el3_unexpected
	entry	el3, el3_smc
	entry	el3, el3_unexpected
	entry	el3, el3_interrupt
	entry	el3, el3_unexpected

el3_return:
	restore_frame el3

	/*
	 * Our own map: memory where it is. RAM is cached, as it is for EL2 and the normal world: what is
	 * hashed must be what they would run.
	 */
#define MEMORY 0x745 /* a block, attribute 1, shareable */
#define REGISTERS 0x441
#define READ_ONLY 0x80
#define NORMAL_WORLDS 0x20
#define NEVER_RUN (1 << 54)
#define GIB 0x40000000

	.section .rodata, "a"
	.balign	4096
level2:
	blocks	PLAT_FLASH, 1, MEMORY | READ_ONLY
	.space	8 * (SECURE_OS_IMAGE / BLOCK - 1)
	blocks	SECURE_OS_IMAGE, 1, MEMORY | READ_ONLY | NEVER_RUN /* its header */
	.space	8 * (PLAT_GICD / BLOCK - SECURE_OS_IMAGE / BLOCK - 1)
	blocks	PLAT_GICD, 16, REGISTERS | NEVER_RUN
	.space	8 * (PLAT_SECURE_RAM / BLOCK - PLAT_GICD / BLOCK - 16)
	blocks	PLAT_SECURE_RAM, PLAT_SECURE_RAM_BYTES / BLOCK, MEMORY | NEVER_RUN
	.balign	4096
level1:
	.quad	level2 + TABLE
	.quad	1 * GIB | MEMORY | NORMAL_WORLDS | NEVER_RUN
	.quad	2 * GIB | MEMORY | NORMAL_WORLDS | NEVER_RUN
	.quad	3 * GIB | MEMORY | NORMAL_WORLDS | NEVER_RUN

	.section .stacks, "aw", @nobits
	.balign 16
	.space	STACK_BYTES * PLAT_CPUS
stacks_end:
