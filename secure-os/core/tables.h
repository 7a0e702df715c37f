/*
 * The application's translation tables: three levels, pages of 4 KiB, 39 bits of addresses. Nothing can be written
 * and run. Callers hold the lock, and flush (arch_flush) what they took away.
 */
#ifndef SECURE_OS_TABLES_H
#define SECURE_OS_TABLES_H

#include "core/limits.h"
#include "core/types.h"

/* What S-EL0 may do with a page. */
enum use {
	USE_NONE, /* the page stays where it is, out of reach */
	USE_READ,
	USE_WRITE,
	USE_RUN,
};

/* An empty root; its physical address. */
u64 tables_init(void);

/* How many pages of tables it takes at most to map so many pages that are next to each other. */
u64 tables_needed(u64 pages);

/* Map a page where none is. There must be tables_needed pages left. */
void tables_map(u64 va, u64 pa, enum use use);

/* What is mapped at an address, USE_NONE included; 0: nothing. */
u64 tables_page(u64 va);

/* Change what may be done with a page that is mapped. */
void tables_protect(u64 va, enum use use);

/* Unmap a page; its physical address, 0: there was none. */
u64 tables_unmap(u64 va);

/* Where S-EL0 reaches when it reads, or writes, at an address; 0: nowhere. */
u64 tables_reach(u64 va, bool write);

/* Nothing is mapped any more. */
void tables_end(void);

#endif
