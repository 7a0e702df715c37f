/* Where EL3 enters, where exceptions arrive at S-EL1, and the kernel's own map, which never changes. */

#include "arch/aarch64/registers.S.h"
#include "arch/aarch64/tables.S.h"
#include "el3/secure_os.h"
#include "flex.h"
#include "flex_run.h"
#include "plat/qemu_virt/secure_plat.h"

#define PHYSICAL(symbol) symbol - OS_ADDRESSES
#define MAIR 0xff00 /* 0: device, 1: normal, write-back */
#define TCR 0x2b5193519 /* 39 bits of addresses twice, 4 KiB pages, cached walks, 40 bits of physical address */
/* Translation and caches on, what can be written is never run, S-EL0's data are no kernel's; DC ZVA, CTR_EL0, WFE, WFI for S-EL0. */
#define SCTLR 0x305dd81d
#define VECTORS_USABLE (3 << 20)

	.section .text.start, "ax"
	.quad	SECURE_OS_MAGIC
	.quad	secure_os_start - header
	.quad	image_bytes
	.set	header, . - 24
	/* 32 bytes that nobody knows: put here by who starts the machine, as a board's generator would. */
	.global	secure_os_seed
secure_os_seed:
	.quad	0, 0, 0, 0
	/* And the secret of the layer above, as a boot ROM would hand it on; zeros: there is none. */
	.global	secure_os_secret
secure_os_secret:
	.quad	0, 0, 0, 0

	.global	secure_os_start
secure_os_start:
	mov	x19, x0
	mov	x20, x1 /* where the ring is, as RUN says */
	mov	x21, x2
	cbz	x19, first

	/* The others wait for the first one to have put everything in its place; the OS lends it when it likes. */
1:	ldr	x1, =PHYSICAL(secure_os_ready)
	ldr	w2, [x1]
	cbnz	w2, translate
	ldr	x0, =PLAT_SMC_YIELD
	mov	x1, #FLEX_RUN_IDLE
	ldr	x2, =1000000
	smc	#0
	mov	x20, x1
	mov	x21, x2
	b	1b

first:
	ldr	x0, =PHYSICAL(data_start)
	ldr	x1, =PHYSICAL(data_end)
	ldr	x2, =data_source
2:	cmp	x0, x1
	b.hs	3f
	ldr	x3, [x2], #8
	str	x3, [x0], #8
	b	2b
3:	ldr	x0, =PHYSICAL(bss_start)
	ldr	x1, =PHYSICAL(bss_end)
4:	cmp	x0, x1
	b.hs	5f
	str	xzr, [x0], #8
	b	4b
5:	ldr	x0, =PLAT_FLASH + FLEX_BOARD_OFFSET
	ldr	x1, =PHYSICAL(secure_os_board)
	mov	x2, #5
6:	ldr	x3, [x0], #8
	str	x3, [x1], #8
	subs	x2, x2, #1
	b.ne	6b

translate:
	ldr	x0, =MAIR
	msr	mair_el1, x0
	ldr	x0, =TCR
	msr	tcr_el1, x0
	ldr	x0, =PHYSICAL(passage1)
	msr	ttbr0_el1, x0
	ldr	x0, =PHYSICAL(level1)
	msr	ttbr1_el1, x0
	ldr	x0, =VECTORS_USABLE
	msr	cpacr_el1, x0
	ldr	x0, =vectors
	msr	vbar_el1, x0
	tlbi	vmalle1
	ic	iallu
	dsb	nsh
	isb
	ldr	x0, =SCTLR
	msr	sctlr_el1, x0
	isb
	ldr	x0, =translated
	br	x0
translated:
	msr	tpidr_el1, x19
	ldr	x0, =stacks_end
	mov	x1, #OS_STACK_BYTES
	msub	x0, x19, x1, x0
	mov	sp, x0
	cbnz	x19, 7f
	bl	secure_os_first
7:	ldr	x0, =secure_os_root
	ldr	x0, [x0]
	msr	ttbr0_el1, x0
	dsb	ish
	isb
	tlbi	vmalle1
	dsb	nsh
	isb
	sub	sp, sp, #272
	mov	x0, sp
	mov	x1, x19
	mov	x2, x20
	mov	x3, x21
	bl	secure_os_enter
	b	resume

	.macro	unexpected
	.balign 128
	mrs	x0, esr_el1
	mrs	x1, elr_el1
	bl	secure_os_unexpected
	.endm

	.balign 2048
vectors:
	.rept 8
	unexpected
	.endr
	.balign 128
	sub	sp, sp, #272
	store_general
	b	arrive
	.rept 7
	unexpected
	.endr

arrive:
	mrs	x0, sp_el0
	stp	x30, x0, [sp, #240]
	mrs	x0, elr_el1
	mrs	x1, spsr_el1
	stp	x0, x1, [sp, #256]
	mov	x0, sp
	mrs	x1, tpidr_el1
	bl	secure_os_exception
resume:
	ldp	x0, x1, [sp, #256]
	msr	elr_el1, x0
	msr	spsr_el1, x1
	ldp	x30, x0, [sp, #240]
	msr	sp_el0, x0
	load_general
	add	sp, sp, #272
	eret

	/* The vector registers, which C code here never uses. */

	.global	secure_os_save_vectors
secure_os_save_vectors:
	store_vectors
	ret

	.global	secure_os_load_vectors
secure_os_load_vectors:
	load_vectors
	ret

#define MEMORY 0x705 /* a block, attribute 1, shareable */
#define PAGE_OF_MEMORY 0x707
#define READ_ONLY 0x80
#define NEVER_EL0 (1 << 54)
#define NEVER_RUN (3 << 53)

	.section .rodata, "a"
	.balign	4096
level3: /* the block that EL3's RAM begins */
	.space	8 * 256
	.set	at, SECURE_OS_RAM
	.rept	256
	.quad	at | PAGE_OF_MEMORY | NEVER_RUN
	.set	at, at + 4096
	.endr
level2:
	.space	8 * (SECURE_OS_IMAGE / BLOCK)
	blocks	SECURE_OS_IMAGE, 1, MEMORY | READ_ONLY | NEVER_EL0
	blocks	OS_CONSTANTS, (OS_APPLICATION_END - OS_CONSTANTS) / BLOCK, MEMORY | READ_ONLY | NEVER_RUN
	.space	8 * (SECURE_OS_RAM / BLOCK - OS_APPLICATION_END / BLOCK)
	.quad	PHYSICAL(level3) + TABLE
	blocks	SECURE_OS_RAM + 0x100000, (SECURE_OS_RAM_END - SECURE_OS_RAM) / BLOCK, MEMORY | NEVER_RUN
	.balign	4096
windows2:
	.quad	PHYSICAL(secure_os_windows) + TABLE
	.balign	4096
level1:
	.quad	PHYSICAL(level2) + TABLE
	.space	8 * 3
	.quad	PHYSICAL(windows2) + TABLE
	.balign	4096
	/* While translation is switched on, we are still where we lie. */
passage2:
	.space	8 * (SECURE_OS_IMAGE / BLOCK)
	blocks	SECURE_OS_IMAGE, 1, MEMORY | READ_ONLY | NEVER_EL0
	.balign	4096
passage1:
	.quad	PHYSICAL(passage2) + TABLE
	.balign	4096

	.section .stacks, "aw", @nobits
	.balign 16
	.space	OS_STACK_BYTES * PLAT_CPUS
stacks_end:
