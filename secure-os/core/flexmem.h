/*
 * Flex-Mem: which pages of RAM the application uses, and what it may ask of the monitor. A page is mapped, or part of
 * the heap, only while the monitor's table says SECURE, and for one purpose at a time. Callers hold the lock.
 *
 * Why what the table said stays true: it is the monitor's word if protection was on before and after it was read,
 * without having been switched in between. Then no RECALL was under way (mailbox_settled), and none is put into the
 * mailbox while the page is in use; and protection does not go off while a page is SECURE.
 */
#ifndef SECURE_OS_FLEXMEM_H
#define SECURE_OS_FLEXMEM_H

#include "arch/arch.h"
#include "core/mailbox.h"

void flexmem_init(const struct board *board);

/* The calls of abi/flex_secure.h; 0, a count, or a negated errno. */
s64 flexmem_reserve(u64 bytes);
s64 flexmem_map(u64 va, u64 page, u64 count);
s64 flexmem_unmap(u64 va, u64 count);
s64 flexmem_command(struct message command);
s64 flexmem_event(struct message *event);
s64 flexmem_ring(u64 page, u64 pages, u64 *va, u64 *bytes); /* where the OS says that it is */
s64 flexmem_give(u64 page, u64 count);
s64 flexmem_take(u64 most, u64 *page);

/* The application has ended, and reaches nothing: overwrite what it used, and have the OS take it back. */
void flexmem_end(void);

#endif
