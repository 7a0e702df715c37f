/* Translation tables that assembly writes down: entries of blocks of 2 MiB, one after the other. */

#define TABLE 3 /* an entry that leads to one */
#define BLOCK 0x200000

.macro blocks first, count, kind
	.set	at, \first
	.rept	\count
	.quad	at | \kind
	.set	at, at + BLOCK
	.endr
.endm
