/*
 * A normal world of one page: it does what a page of wishes says, one after the other. Its MMU maps memory
 * where it is. It takes no interrupts, but sets a timer before a call, so that one comes while that is served.
 */
#define WISHES 0x40100000
#define WANTED 0 /* a number … */
#define DONE 4 /* … and the same once it is done */
#define KIND 8 /* 0: call, 1: load from x1, 2: store x2 to x1, 4: run what lies at x1, which keeps x20 and x21 */
#define TICK 12 /* of the counter, from before a call to an interrupt; 0: none comes */
#define GIVEN 16 /* x0 … x7 */
#define GOT 80 /* x0 … x7; after an access x0 is its syndrome, 0 when it went well */
#define TABLE 0x40110000
#define BLOCK 0x701 /* of 1 GiB, for EL1 */
#define MEMORY 0x4 /* else registers */
#define MAIR 0xff00
#define TCR 0x803520 /* 4 GiB of addresses, 4 KiB pages, one table */
#define GICR 0x080b0000 /* where a CPU's own interrupts are set up */
#define TIMER 27

start:
	adr	x0, vectors
	msr	vbar_el1, x0
	ldr	x1, =TABLE
	mov	x2, #BLOCK
	ldr	x3, =0x40000000 | BLOCK | MEMORY
	stp	x2, x3, [x1]
	msr	ttbr0_el1, x1
	mov	x0, #MAIR
	msr	mair_el1, x0
	ldr	x0, =TCR
	msr	tcr_el1, x0
	mrs	x0, sctlr_el1
	orr	x0, x0, #1
	dsb	sy
	isb
	msr	sctlr_el1, x0
	isb
	mov	x0, #1
	msr	s3_0_c12_c12_5, x0	/* ICC_SRE_EL1 */
	isb
	mov	x0, #0xff
	msr	s3_0_c4_c6_0, x0	/* ICC_PMR_EL1 */
	mov	x0, #1
	msr	s3_0_c12_c12_7, x0	/* ICC_IGRPEN1_EL1 */
	ldr	x1, =GICR
	mov	w0, #1 << TIMER
	str	w0, [x1, #0x100]
	isb
	ldr	x20, =WISHES
next:
	yield
	ldr	w21, [x20, #WANTED]
	ldr	w22, [x20, #DONE]
	cmp	w21, w22
	b.eq	next
	dmb	sy
	ldp	x0, x1, [x20, #GIVEN]
	ldp	x2, x3, [x20, #GIVEN + 16]
	ldp	x4, x5, [x20, #GIVEN + 32]
	ldp	x6, x7, [x20, #GIVEN + 48]
	ldr	w22, [x20, #KIND]
	cbz	w22, call
	tbnz	w22, #1, store
	tbnz	w22, #2, run
	mov	x0, #0
	ldr	x1, [x1]
	b	tell
run:
	blr	x1
	b	tell
store:
	mov	x0, #0
	str	x2, [x1]
	b	tell
call:
	ldr	w22, [x20, #TICK]
	cbz	w22, 1f
	msr	cntv_tval_el0, x22
	mov	x22, #1
	msr	cntv_ctl_el0, x22
	isb
1:	mov	x23, #0x5a5a
	msr	tpidr_el0, x23
	mov	sp, x20
	msr	spsel, #0
	mov	sp, x23
	msr	spsel, #1
	smc	#0
	msr	cntv_ctl_el0, xzr
	mrs	x24, tpidr_el0
	mrs	x25, sp_el0
	eor	x24, x24, x23
	eor	x25, x25, x23
	orr	x7, x24, x25		/* a call leaves these alone */
tell:
	stp	x0, x1, [x20, #GOT]
	stp	x2, x3, [x20, #GOT + 16]
	stp	x4, x5, [x20, #GOT + 32]
	stp	x6, x7, [x20, #GOT + 48]
	dmb	sy
	str	w21, [x20, #DONE]
	b	next

	.balign	2048
vectors:
	.space	0x200
	/* An access that was refused: say so, and go on behind it. */
	mrs	x0, elr_el1
	add	x0, x0, #4
	msr	elr_el1, x0
	mrs	x0, esr_el1
	eret
