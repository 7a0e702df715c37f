/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR Apache-2.0 */
/*
 * What this kernel says in the first page of the ring of messages, beside the counts of the two who talk
 * (trusted-app/ring.h): that it wants memory back. Whoever decides for the secure world runs in user space,
 * and looks here. All is little-endian.
 *
 * `demands` grows by one, modulo 2^32, after the others were written.
 */
#ifndef UAPI_FLEXMEM_RING_H
#define UAPI_FLEXMEM_RING_H

#include <linux/types.h>

#define FLEXMEM_RING_DEMAND 2048 /* bytes from the ring's start */

struct flexmem_ring_demand {
	__u32 demands;
	__u32 deadline_ms;
	__u64 pages; /* all: more than there are */
};

#endif
