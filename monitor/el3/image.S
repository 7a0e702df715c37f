/* EL2's image, as it is copied to RAM. */

	.section .rodata, "a"
	.global	el2_image, el2_image_end
	.balign 8
el2_image:
	.incbin "el2.bin"
	.balign 8
el2_image_end:
