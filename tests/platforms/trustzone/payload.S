/*
 * A secure OS of one page, for tests: it does what a block of wishes for its CPU says. The block lies in hidden memory,
 * so that the test, which plays the hardware, reaches it, and no OS. Its MMU is off, but for one wish.
 *
 * secure_payload.py puts two macros before this, made from its list of registers: load_all and dump_all, to and from
 * an image of registers at x0, which alone stays as it is. (dump_all leaves other values in x1 and x2.)
 */
#include "el3/secure_os.h"
#include "flex.h"
#include "flex_run.h"

#define BLOCKS_FROM_END 0x800000 /* of RAM */
#define BLOCK_BYTES 0x8000
#define WISH 0x00
#define A 0x08
#define B 0x10
#define GO 0x18
#define BEATS 0x20
#define TICKS 0x28 /* of the counter, that this CPU had */
#define GOT 0x30 /* six registers */
#define IMAGE 0x1000 /* to be loaded; behind it, as it is then, after the wait, and at the very first */
#define CODE 0x5000
#define FIRST (SECURE_OS_RAM + 0x100000) /* where the first image waits until there is a block */
#define TABLE (SECURE_OS_RAM + 0x140000)

	.arch_extension simd
image:
	.quad	SECURE_OS_MAGIC
	.quad	first - image
	.quad	end - image
	.space	32 /* the seed, which each start writes */

	/* Whatever the OS left in registers that are not switched is seen here. */
first:
	lsl	x0, x0, #14
	orr	x0, x0, #0x0e000000
	add	x0, x0, #0x200, lsl #12
	dump_all
	bl	block
	mrs	x1, mpidr_el1
	and	x1, x1, #0xff
	ldr	x2, =FIRST
	add	x1, x2, x1, lsl #14
	add	x2, x20, #IMAGE + 0x3000
	mov	x3, #0x400
1:	ldr	x4, [x1], #8
	str	x4, [x2], #8
	subs	x3, x3, #8
	b.ne	1b

next:
	adr	x1, vectors
	msr	vbar_el1, x1
	isb
	mov	x28, #0
	bl	block
	ldr	x1, [x20, #WISH]
	ldp	x2, x3, [x20, #A]
	adr	x4, wishes
	add	x4, x4, x1, lsl #2
	br	x4
wishes:
	b	idle
	b	busy
	b	canaries
	b	finish
	b	call
	b	touch
	b	fetch
	b	scan
	b	paint

	/* Where this CPU's wishes are: x20. */
block:
	mov	x21, #PLAT_FLASH + FLEX_BOARD_OFFSET
	ldp	x22, x23, [x21, #8]
	add	x22, x22, x23
	sub	x22, x22, #BLOCKS_FROM_END
	mrs	x23, mpidr_el1
	and	x23, x23, #0xff
	mov	x21, #BLOCK_BYTES
	madd	x20, x23, x21, x22
	ret

	.macro	ask function, what, argument
	ldr	w0, =\function
	mov	x1, \what
	mov	x2, \argument
	smc	#0
	.endm

idle:
	ask	PLAT_SMC_YIELD, #FLEX_RUN_IDLE, x2
	b	next

	/* Until another wish comes. A step that took longer than A ticks was not this CPU's alone. It reads the
	   counter rarely: QEMU locks all CPUs out for that. */
busy:
	mrs	x5, cntpct_el0
1:	mov	x3, #4000
2:	subs	x3, x3, #1
	b.ne	2b
	mrs	x6, cntpct_el0
	sub	x7, x6, x5
	mov	x5, x6
	ldp	x8, x9, [x20, #BEATS]
	add	x8, x8, #1
	cmp	x7, x2
	csel	x7, x7, xzr, lo
	add	x9, x9, x7
	stp	x8, x9, [x20, #BEATS]
	ldr	x1, [x20, #WISH]
	cmp	x1, #1
	b.eq	1b
	b	next

canaries:
	add	x0, x20, #IMAGE
	load_all
	add	x0, x0, #0x1000
	dump_all
	ldp	x1, x2, [x0, #8]
2:	sub	x1, x0, #0x2000
	ldr	x1, [x1, #GO]
	cbz	x1, 2b
	add	x0, x0, #0x1000
	dump_all
	bl	block
	b	done

finish:
	ask	PLAT_SMC_YIELD, #FLEX_RUN_ENDED, x2
	b	next

call:
	mov	x0, x2
	mov	x1, x3
	mov	x3, #0
	mov	x4, #0
	mov	x5, #0
	smc	#0
	stp	x0, x1, [x20, #GOT]
	stp	x2, x3, [x20, #GOT + 16]
	stp	x4, x5, [x20, #GOT + 32]
	b	done

	/* What is not the secure OS's: EL3 ends the machine. */
touch:
	adr	x4, 3f
	add	x4, x4, x2, lsl #3
	br	x4
3:	mrs	x0, pmccntr_el0
	b	done
	mrs	x0, dbgbvr0_el1
	b	done
	msr	s3_0_c4_c6_0, xzr	/* ICC_PMR_EL1 */
	b	done

	/* Run a return that lies at A, with the MMU on: the first GiB is secure, the second is not. */
fetch:
	ldr	w4, =0xd65f03c0
	str	w4, [x2]
	ldr	x4, =TABLE
	ldr	x5, =0x701
	ldr	x6, =0x40000721
	stp	x5, x6, [x4]
	msr	ttbr0_el1, x4
	mov	x4, #0xff
	msr	mair_el1, x4
	ldr	x4, =0x803520
	msr	tcr_el1, x4
	ic	iallu
	tlbi	vmalle1
	dsb	sy
	isb
	mrs	x6, sctlr_el1
	orr	x4, x6, #1
	msr	sctlr_el1, x4
	isb
	str	xzr, [x20, #GOT]
	adr	x28, 4f
	blr	x2
4:	msr	sctlr_el1, x6
	isb
	b	done

	/* How many words from A to B are not zero. */
scan:
	mov	x5, #0
5:	ldr	x4, [x2], #8
	cmp	x4, #0
	cinc	x5, x5, ne
	cmp	x2, x3
	b.lo	5b
	str	x5, [x20, #GOT]
	b	done

	/* A into all of them. */
paint:
	ldr	x2, =SECURE_OS_RAM
	ldr	x3, =SECURE_OS_RAM_END
	ldr	x4, [x20, #A]
6:	str	x4, [x2], #8
	cmp	x2, x3
	b.lo	6b

done:
	dsb	sy
	str	xzr, [x20, #WISH]
	b	next

	.balign	2048
vectors:
	.space	0x200
	bl	block
	mrs	x1, esr_el1
	str	x1, [x20, #GOT]
	msr	elr_el1, x28
	cbz	x28, 7f
	eret
7:	ask	PLAT_SMC_YIELD, #FLEX_RUN_ENDED, x1
	b	.

	.ltorg
end:
