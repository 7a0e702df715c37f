/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* A call with every register loaded before and looked at afterwards: struct bank of lend.c. All is masked. */
#include <linux/linkage.h>

#define OUT 1024
#define SAVED 2048
#define HELD 2304
#define VECTORS 256
#define STATUS 768
#define SYSTEM 784
#define FRAME 112

	.macro	look register, at
	mrs	x2, \register
	str	x2, [x1, #\at]
	.endm

	.macro	put register, at
	ldr	x2, [x1, #\at]
	msr	\register, x2
	.endm

	.macro	each_system do
	\do	sp_el0, 0
	\do	tpidr_el0, 8
	\do	tpidrro_el0, 16
	\do	tpidr_el1, 24
	\do	contextidr_el1, 32
	\do	par_el1, 40
	\do	far_el1, 48
	\do	esr_el1, 56
	\do	elr_el1, 64
	\do	spsr_el1, 72
	\do	csselr_el1, 80
	\do	cntkctl_el1, 88
	\do	mdscr_el1, 96
	\do	pmuserenr_el0, 104
	\do	vbar_el1, 112
	\do	cntp_cval_el0, 120
	\do	cntp_ctl_el0, 128
	.endm

	.macro	each_vector do
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	\do	q\n, [x1, #16 * \n]
	.endr
	.endm

	.macro	each_general do
	.irp	n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
	\do	x\n, [x0, #8 * \n]
	.endr
	.endm

	.macro	call_with name, careless
SYM_FUNC_START(\name)
	stp	x29, x30, [sp, #-FRAME]!
	stp	x19, x20, [sp, #16]
	stp	x21, x22, [sp, #32]
	stp	x23, x24, [sp, #48]
	stp	x25, x26, [sp, #64]
	stp	x27, x28, [sp, #80]
	stp	x0, x18, [sp, #96]
	add	x1, x0, #SAVED
	each_system look
	add	x1, x0, #SYSTEM
	each_system put
	isb
	add	x1, x0, #HELD
	each_system look
	add	x1, x0, #VECTORS
	each_vector ldr
	add	x1, x0, #STATUS
	ldp	x1, x2, [x1]
	msr	fpcr, x1
	msr	fpsr, x2
	ldr	x1, [x0, #8]
	each_general ldr
	ldr	x0, [x0]
	smc	#0
	.if \careless
	mov	x5, xzr
	movi	v31.16b, #0
	msr	tpidr_el0, xzr
	.endif
	stp	x0, x1, [sp, #-16]!
	ldr	x0, [sp, #16 + 96]
	add	x0, x0, #OUT
	each_general str
	ldp	x2, x3, [sp], #16
	stp	x2, x3, [x0]
	add	x1, x0, #VECTORS
	each_vector str
	mrs	x2, fpcr
	mrs	x3, fpsr
	add	x1, x0, #STATUS
	stp	x2, x3, [x1]
	add	x1, x0, #SYSTEM
	each_system look
	ldr	x1, [sp, #96]
	add	x1, x1, #SAVED
	each_system put
	isb
	ldr	x18, [sp, #104]
	ldp	x27, x28, [sp, #80]
	ldp	x25, x26, [sp, #64]
	ldp	x23, x24, [sp, #48]
	ldp	x21, x22, [sp, #32]
	ldp	x19, x20, [sp, #16]
	ldp	x29, x30, [sp], #FRAME
	ret
SYM_FUNC_END(\name)
	.endm

	call_with call_with_bank, 0
	call_with call_with_bank_carelessly, 1
