/*
 * Physical pages: those of secure RAM, and SECURE pages of RAM that the application gave to the heap. One that is
 * free holds zeros. Callers hold the lock.
 */
#ifndef SECURE_OS_PAGES_H
#define SECURE_OS_PAGES_H

#include "core/limits.h"
#include "core/types.h"

enum purpose {
	PAGES_TABLES, /* secure RAM alone */
	PAGES_PRIVATE, /* secure RAM but for TABLES_KEPT pages, then what was given */
};

/* Secure RAM from `first` up to `end`, which is overwritten; RAM from `ram` on, of which nothing was given yet. */
void pages_init(u64 first, u64 end, u64 ram);

/* How many there are. */
u64 pages_left(enum purpose purpose);

/* A page of zeros; 0: there is none. */
u64 pages_take(enum purpose purpose);

/* It is free again, and overwritten. */
void pages_put(u64 pa);

/* A page of RAM is given to the heap, and overwritten. */
void pages_give(u64 pa);

/* At most `most` free pages in a row, which had been given, leave the heap. How many: the first is `*first`. */
u64 pages_withdraw(u64 most, u64 *first);

/* Overwrite all of secure RAM. Nothing of it may be used any more. */
void pages_end(void);

#endif
