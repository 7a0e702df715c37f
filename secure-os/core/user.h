/* The application's memory, as the kernel reads and writes it: where S-EL0 itself could, and nowhere else. */
#ifndef SECURE_OS_USER_H
#define SECURE_OS_USER_H

#include "core/types.h"

/* Copy; false when S-EL0 could not read, or write, all of it. A part may be copied then. */
bool user_read(void *to, u64 va, u64 bytes);
bool user_write(u64 va, const void *from, u64 bytes);

#endif
