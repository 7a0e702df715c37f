/*
 * The application's address space, in pieces. Private memory has its pages from the moment on that it may be used:
 * nothing is promised that is not there, and no access waits for the kernel. Callers hold the lock.
 */
#ifndef SECURE_OS_AREAS_H
#define SECURE_OS_AREAS_H

#include "core/tables.h"

enum area_kind {
	AREA_IMAGE, /* read-only parts of the application, where they lie in flash */
	AREA_PRIVATE, /* memory of zeros: its pages are the heap's */
	AREA_CHUNKS, /* for flex_map */
	AREA_RING,
};

struct area {
	u64 start;
	u64 end;
	enum area_kind kind;
	enum use use;
};

void areas_init(void);

/* The piece that an address lies in; NULL: in none. */
const struct area *areas_at(u64 va);

/* Whether all of a range lies in pieces of this kind. */
bool areas_are(u64 va, u64 bytes, enum area_kind kind);

/* So many bytes between two addresses that nothing is in; 0: there are none. */
u64 areas_room(u64 from, u64 to, u64 bytes);

/* A new piece, of whole pages. 0, or ENOMEM: something lies there, or there are too many. It has no pages yet. */
int areas_add(u64 va, u64 bytes, enum area_kind kind, enum use use);

/* Private memory at an address, with its pages. 0 or ENOMEM. */
int areas_private(u64 va, u64 bytes, enum use use);

/* What may be done with private memory. 0; ENOMEM, and nothing was changed: not enough pages; EINVAL: it is none. */
int areas_protect(u64 va, u64 bytes, enum use use);

/* Zeros again. 0 or EINVAL. */
int areas_clear(u64 va, u64 bytes);

/* Free private memory, and ranges for chunks that hold none. 0; EINVAL: other pieces lie in there; ENOMEM: too many. */
int areas_free(u64 va, u64 bytes);

#endif
