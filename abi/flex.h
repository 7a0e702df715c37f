/* The Flex-Monitor's interface. Made by abi/generate.py from abi/flex.toml: do not edit. */
#ifndef FLEX_ABI_H
#define FLEX_ABI_H

#define FLEX_ABI_VERSION 1
#define FLEX_PAGE_BYTES 4096
#define FLEX_CALL_PAGES_MAX 512
#define FLEX_SMC_BASE 0xc6000000
#define FLEX_HIDDEN_BYTES 0x1000000
#define FLEX_BOARD_MAGIC 0x4452414f42584c46ULL
#define FLEX_BOARD_OFFSET 0x40
#define FLEX_DOORBELL_INTID 128
#define FLEX_MAILBOX_MAGIC 0x464c455831303030ULL
#ifndef FLEX_MAILBOX_SLOTS /* a small one can be asked for by a test */
#define FLEX_MAILBOX_SLOTS 4096
#endif
#define FLEX_MAILBOX_HEADER_BYTES 4096
#define FLEX_MAILBOX_SLOT_BYTES 32
#define FLEX_AT_MAGIC 0
#define FLEX_AT_VERSION 8
#define FLEX_AT_RAM_BASE 16
#define FLEX_AT_RAM_BYTES 24
#define FLEX_AT_STATES_OFFSET 32
#define FLEX_AT_FAULTS 40
#define FLEX_AT_COMMAND_HEAD 64
#define FLEX_AT_COMMAND_TAIL 128
#define FLEX_AT_EVENT_HEAD 192
#define FLEX_AT_EVENT_TAIL 256
#define FLEX_AT_SLEEPING 320

#ifndef __ASSEMBLER__

enum flex_state {
	FLEX_STATE_NORMAL = 0, /* the OS allocates, reads and writes it as any other memory */
	FLEX_STATE_GRANTED = 1, /* taken from the OS for the secure world; nobody uses it, and it holds no secret yet */
	FLEX_STATE_SECURE = 2, /* only the secure world can reach it */
	FLEX_STATE_RECALLING = 3, /* on its way back: no longer used, not yet scrubbed, invisible to the OS */
	FLEX_STATE_MONITOR = 4, /* the monitor's own memory: never anybody else's */
};

enum flex_status {
	FLEX_STATUS_OK = 0, /* done, all of it */
	FLEX_STATUS_UNKNOWN = -1, /* no such call (SMCCC's own value) */
	FLEX_STATUS_INVALID = -2, /* an argument is malformed: not aligned, zero or too many pages, outside RAM */
	FLEX_STATUS_DENIED = -3, /* a page is in a state, or belongs to somebody, that rules this out; nothing was changed */
	FLEX_STATUS_BUSY = -4, /* a ring is full or another CPU is switching protection; nothing was changed, ask again */
	FLEX_STATUS_TAMPERED = -5, /* the monitor was altered while protection was off: it refuses everything until reset */
	FLEX_STATUS_HELD = -6, /* the secure world holds memory or stays attached: protection cannot go off */
};

enum flex_call {
	FLEX_CALL_VERSION = 0, /* () x1 is this file's version; switches protection on when it is off */
	FLEX_CALL_LAYOUT = 1, /* () tells where RAM lies; from hidden_base to its end it is the monitor's */
	FLEX_CALL_GRANT = 2, /* (ipa, pages) every page is GRANTED, unmapped from the normal world and its devices; the secure world is told */
	FLEX_CALL_RETURN = 3, /* (ipa, pages) every page is NORMAL and mapped, unscrubbed: the secure world never used it */
	FLEX_CALL_TAKE = 4, /* (ipa, pages) every page is zeros, NORMAL and mapped */
	FLEX_CALL_STATE = 5, /* (ipa) the state of the page, and how many pages from it on (at most 512) share it */
	FLEX_CALL_POLL = 6, /* () does at most 64 steps for the secure world (a command, or 512 pages of what a GONE recalls) and answers with the oldest notice for the OS (kind NONE: there is none) */
	FLEX_CALL_ANSWER = 7, /* (serial, pages) the secure world is told that its WANT `serial` was met with `pages` pages in all */
	FLEX_CALL_PRESSURE = 8, /* (pages, deadline_ms) the secure world is asked for `pages` pages; does not wait for it */
	FLEX_CALL_COUNTS = 9, /* () pages in each state; with the monitor's own they sum to RAM */
	FLEX_CALL_RELAX = 10, /* () protection is off: the monitor is hashed by EL3, Stage-2 no longer translates; the next call switches it on again */
	FLEX_CALL_DETACH = 11, /* () the secure world is told that the driver is leaving and wants everything back */
};

enum flex_notice {
	FLEX_NOTICE_NONE = 0, /* nothing to do */
	FLEX_NOTICE_WANT = 1, /* the secure world asks for `pages` pages; fewer than `minimum` are of no use to it */
	FLEX_NOTICE_OFFER = 2, /* these pages are RECALLING now: TAKE them */
	FLEX_NOTICE_UNWANTED = 3, /* the secure world does not want these GRANTED pages: RETURN them */
	FLEX_NOTICE_ATTACHED = 4, /* a secure world started */
	FLEX_NOTICE_GONE = 5, /* the secure world ended: what it held is RECALLING; RETURN or TAKE everything that was granted */
	FLEX_NOTICE_MORE = 6, /* no notice yet, but more commands may wait: POLL again */
};

enum flex_command {
	FLEX_COMMAND_ATTACH = 1, /* (epoch) the commands that follow are carried out; event ATTACHED, notice ATTACHED */
	FLEX_COMMAND_GONE = 2, /* (epoch) nobody is attached; then every SECURE page is RECALLING, 512 a step; then notice GONE, and the commands that follow */
	FLEX_COMMAND_WANT = 3, /* (serial, pages, minimum) notice WANT */
	FLEX_COMMAND_COMMIT = 4, /* (ipa, pages, serial) every page is SECURE; event DONE */
	FLEX_COMMAND_RECALL = 5, /* (ipa, pages, serial) every page is RECALLING; notice OFFER, event DONE */
	FLEX_COMMAND_REFUSE = 6, /* (ipa, pages, serial) nothing changes; notice UNWANTED, event DONE */
};

enum flex_event {
	FLEX_EVENT_GRANTED = 1, /* the OS handed these pages over */
	FLEX_EVENT_ANSWER = 2, /* the OS has done for WANT `serial` what it will do: `pages` pages in all */
	FLEX_EVENT_DONE = 3, /* what came of the COMMIT, RECALL or REFUSE with this serial; also tells of any other command that was refused (for an ATTACH, serial is the epoch) */
	FLEX_EVENT_TAKEN = 4, /* the OS has these pages back (after TAKE or RETURN); left out while the ring is full, since the page states tell it, too */
	FLEX_EVENT_PRESSURE = 5, /* the OS wants `pages` pages back within `deadline_ms` milliseconds */
	FLEX_EVENT_ATTACHED = 7, /* the ATTACH of this epoch was carried out */
	FLEX_EVENT_DETACHED = 6, /* the driver is leaving: give everything back */
};

enum flex_byte {
	FLEX_BYTE_RING = 33, /* commands are waiting: have the OS call POLL */
	FLEX_BYTE_QUERY = 63, /* is protection on? Answered with ON or OFF */
	FLEX_BYTE_EVENT = 101, /* events are waiting */
	FLEX_BYTE_ON = 80, /* protection is on, and the mailbox is as if new */
	FLEX_BYTE_OFF = 85, /* protection is off: nothing in the mailbox can be believed */
};

enum flex_move {
	FLEX_MOVE_GRANT,
	FLEX_MOVE_COMMIT,
	FLEX_MOVE_RETURN,
	FLEX_MOVE_RECALL,
	FLEX_MOVE_SCRUBBED,
};

/* FLEX_TRANSITION(event, from, to): every legal one. */
#define FLEX_TRANSITIONS(FLEX_TRANSITION) \
	FLEX_TRANSITION(GRANT, NORMAL, GRANTED) \
	FLEX_TRANSITION(COMMIT, GRANTED, SECURE) \
	FLEX_TRANSITION(RETURN, GRANTED, NORMAL) \
	FLEX_TRANSITION(RECALL, SECURE, RECALLING) \
	FLEX_TRANSITION(SCRUBBED, RECALLING, NORMAL)

#endif

#endif
