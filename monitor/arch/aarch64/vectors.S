/* EL2: where exceptions of the normal world arrive, and where EL3 enters once to build everything. */

#include "arch/aarch64/frame.S.h"
#include "plat/qemu_virt/plat.h"

	.section .text.start, "ax"

	/* The first instruction of the image; EL3 has set every register, the stack included. */
	.global	el2_start
el2_start:
	bl	el2_init
	mov	x1, x0
	movz	w0, #(PLAT_SMC_BOOTED & 0xffff)
	movk	w0, #(PLAT_SMC_BOOTED >> 16), lsl #16
	smc	#0
	b	.

	.balign 2048
	.global	el2_vectors
el2_vectors:
	/* Of our own level: there is no such exception. */
	.rept 8
	entry	el2, el2_unexpected
	.endr
	/*
	 * Of a lower level, 64 bits, then 32: synchronous, IRQ, FIQ, error. Interrupts come here from the sandbox
	 * only, and so do errors.
	 */
	entry	el2, el2_synchronous
	entry	el2, sandbox_interrupted
	entry	el2, el2_unexpected
	entry	el2, sandbox_faulted
	entry	el2, el2_synchronous
	entry	el2, el2_unexpected
	entry	el2, el2_unexpected
	entry	el2, el2_unexpected

	.global	el2_return
el2_return:
	restore_frame el2
