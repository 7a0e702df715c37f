/*
 * What the application at S-EL0 asks of the secure OS, beside Linux's system calls: svc #0, number in x8,
 * arguments in x0 to x3. The answer in x0 is not negative, or a negated errno of Linux:
 *
 *     EINVAL  an argument is malformed, or names nothing of the caller's
 *     EPERM   a page is not SECURE by the monitor's table, or is in use; or EL2 was altered
 *     EBUSY   a page that is to be recalled is mapped, or is part of the heap
 *     EAGAIN  the mailbox is full, a RECALL is not carried out yet, or protection is off and the OS was asked to switch
 *             it on: wait (FLEX_SECURE_WAIT) and try again
 *     ENOMEM  no page is left for tables
 *     ENOENT  the OS has named no ring
 *     EFAULT  a pointer leads nowhere
 *
 * Pages are numbered by their physical address: address / 4096. A call names at most FLEX_CALL_PAGES_MAX of them.
 * A process of Linux, and qemu-aarch64, answer ENOSYS to all of them.
 */
#ifndef FLEX_SECURE_H
#define FLEX_SECURE_H

/* (bytes) → address of a range for chunks, whole pages: nothing is behind it. munmap gives back one that holds none. */
#define FLEX_SECURE_RESERVE 0x1000

/* (address, page, count): map pages, each SECURE, and mapped nowhere else. They are read and written, never run. */
#define FLEX_SECURE_MAP 0x1001

/* (address, count): unmap them on all CPUs. Only then may they be RECALLed. */
#define FLEX_SECURE_UNMAP 0x1002

/* (kind, a, b, c): put a command into the mailbox (enum flex_command without the NPU's), and ring. */
#define FLEX_SECURE_COMMAND 0x1003

/* (u64 event[4]) → 1: kind and three arguments of the oldest event; 0: there is none. */
#define FLEX_SECURE_EVENT 0x1004

/* (ns): wait for an event, a message in the ring, or so long (~0: for ever). It may return early. */
#define FLEX_SECURE_WAIT 0x1005

/* (u64 *address, u64 *bytes): where the ring of messages with the normal world is mapped. Its memory is hostile. */
#define FLEX_SECURE_RING 0x1006

/* (struct flex_secure_protection *) → enum flex_secure_state, as EL3 says. */
#define FLEX_SECURE_PROTECTION 0x1007

/* (page, count): pages, each SECURE and mapped nowhere, become part of the heap. What stood in them is overwritten. */
#define FLEX_SECURE_GIVE 0x1008

/* (count, u64 *page) → how many free pages of those, in a row from `page` on, left the heap, overwritten. */
#define FLEX_SECURE_TAKE 0x1009

/* (u8 secret[32]): what the keys of this layer are derived from. Once: it is not kept here. ENOENT: there is none. */
#define FLEX_SECURE_SECRET 0x100a

#ifndef __ASSEMBLER__

enum flex_secure_state {
	FLEX_SECURE_OFF = 0, /* the mailbox and the page states are anybody's to write */
	FLEX_SECURE_ON = 1,
	FLEX_SECURE_BROKEN = 2, /* EL2 was altered while protection was off */
};

struct flex_secure_protection {
	unsigned char digest[32]; /* SHA-256 of EL2's image */
	unsigned long long switches; /* how often protection went on or off: the mailbox is as if new after each ON */
};

#endif

#endif
