/* Where things lie in the small machine, and what both worlds write there. */
#ifndef PLACES_H
#define PLACES_H

#include "core/mailbox.h"

#define SECRET 0x5ec7e75ec7e75ec7ULL
#define JUNK 0x0badcafe0badcafeULL
#define WORDS_OF_A_PAGE (FLEX_PAGE_BYTES / sizeof(u64))
#define REGISTERS_PAGES (FLEX_NPU_WINDOW_BYTES / FLEX_PAGE_BYTES)
#define REGISTERS_WORDS (FLEX_NPU_WINDOW_BYTES / sizeof(u64))

u8 *ram(u64 pa);
u32 *field(u32 offset); /* of the mailbox */
struct message *slot(u32 ring, u32 count);
u64 *words_of(u32 page);

/* Where registers begin that are not always the same. */
u64 *registers(void);
u64 *registers_leaves(void);

/* The first and the last word of the code's and the stack's pages: all that is ever used of them. */
u64 *sandbox_word(u32 number);

#endif
