/*
 * EL3 for a test of the secure OS alone: it lends all cores all the time, and what protects memory is a table of
 * numbers. The machine ends with the number that the application ended with.
 */
#include "el3/secure_os.h"
#include "flex.h"
#include "flex_run.h"
#include "plat/qemu_virt/secure_plat.h"

#define SCR 0x63e /* secure, 64 bits below, its code too; interrupts and errors would come here */
#define BOARD_RAM 0x40000000
#define BOARD_BYTES 0x10000000
#define STATES (BOARD_RAM + BOARD_BYTES - FLEX_HIDDEN_BYTES + FLEX_HIDDEN_STATES)
#define ON 144 /* FLEX_MEASURED_ON */
#define SECURE 2 /* FLEX_STATE_SECURE */
#define SECURE_FIRST 0x1000 /* pages of RAM that this machine says are SECURE, and what it names as the ring */
#define SECURE_COUNT 0x8000
#define RING 0x42

	.text
	b	reset
	.org	FLEX_BOARD_OFFSET
	.quad	FLEX_BOARD_MAGIC, BOARD_RAM, BOARD_BYTES, 2, 0
reset:
	mrs	x19, mpidr_el1
	orr	x19, x19, x19, lsr #8 /* field 0 or field 1 counts cores; the other one is 0 */
	and	x19, x19, #0xff
	adr	x0, vectors
	msr	vbar_el3, x0
	mov	x0, #(SCR)
	msr	scr_el3, x0
	msr	cptr_el3, xzr
	msr	mdcr_el3, xzr
	cbnz	x19, 2f
	ldr	x0, =STATES + SECURE_FIRST
	mov	x1, #SECURE_COUNT
	mov	w2, #SECURE
1:	strb	w2, [x0], #1
	subs	x1, x1, #1
	b.ne	1b
2:	ldr	x0, =SECURE_OS_IMAGE
	ldr	x1, [x0, #SECURE_OS_AT_ENTRY]
	add	x0, x0, x1
	msr	elr_el3, x0
	mov	x0, #0x3c5
	msr	spsr_el3, x0
	ldr	x0, =0x30d00800
	msr	sctlr_el1, x0
	mov	x0, x19
	eret

serve:
	cmp	x0, x17
	b.eq	yield
	ldr	x17, =PLAT_SMC_DOORBELL
	cmp	x0, x17
	mov	x0, #0
	b.eq	3f
	mov	x1, #ON /* SWITCHES and PROTECTION */
	mov	x2, #1
3:	mrs	x17, tpidr_el3
	eret
yield:
	cmp	x1, #FLEX_RUN_ENDED
	b.eq	ended
	mov	x0, #0
	ldr	x1, =BOARD_RAM / 4096 + RING
	mov	x2, #1
	b	3b
ended:
	lsr	x4, x2, #8
	and	x5, x2, #0xff
	cmp	x5, #1 /* ENDING_EXIT: its status; else a number from 128 on */
	orr	x5, x5, #0x80
	csel	x2, x4, x5, eq
	ldr	x0, =PLAT_SECURE_RAM
	ldr	x3, =0x20026 /* ADP_Stopped_ApplicationExit, of semihosting */
	stp	x3, x2, [x0]
	mov	x1, x0
	mov	x0, #0x18
	hlt	#0xf000
	b	.
	.balign 2048
vectors:
	.rept 16
	.balign 128
	msr	tpidr_el3, x17
	mrs	x17, esr_el3
	lsr	x17, x17, #26
	cmp	x17, #0x17
	b.ne	strange
	ldr	x17, =PLAT_SMC_YIELD
	b	serve
	.endr
strange:
	mov	x2, #0xfe
	b	ended
