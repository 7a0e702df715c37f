/* The Flex-Monitor's interface. Made by abi/generate.py from abi/flex.toml: do not edit. */
#ifndef FLEX_ABI_H
#define FLEX_ABI_H

#define FLEX_ABI_VERSION 3
#define FLEX_PAGE_BYTES 4096
#define FLEX_CALL_PAGES_MAX 512
#define FLEX_SMC_BASE 0xc6000000
#define FLEX_HIDDEN_BYTES 0x1800000
#define FLEX_HIDDEN_STATES 0x120000
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
#define FLEX_AT_NPU_DRIVER 384
#define FLEX_AT_NPU_STATE 416

#define FLEX_NPU_WINDOW_OFFSET 0x100000
#define FLEX_NPU_WINDOW_BYTES 0x10000
#define FLEX_NPU_WINDOW_KEPT 0x8
#define FLEX_NPU_CONTROL_OFFSET 0x110000
#define FLEX_NPU_CODE_BYTES_MAX 0x2000
#define FLEX_NPU_VERSION 0x464e5055
#define FLEX_NPU_VERSION_NUM 0x1
#define FLEX_NPU_COMMANDS_MAX 0x1000
#define FLEX_NPU_START 0x0
#define FLEX_NPU_AT_ROOT 0
#define FLEX_NPU_AT_RESET 8
#define FLEX_NPU_AT_RESET_DONE 12
#define FLEX_NPU_AT_FLUSH 16
#define FLEX_NPU_AT_FLUSH_DONE 20
#define FLEX_NPU_AT_BUSY 24

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
	FLEX_CALL_RETURN = 3, /* (ipa, pages) every page is NORMAL and mapped; those that were GRANTED are unscrubbed: the secure world never used them */
	FLEX_CALL_TAKE = 4, /* (ipa, pages) every page is zeros, NORMAL and mapped */
	FLEX_CALL_STATE = 5, /* (ipa) the state of the page, and how many pages from it on (at most 512) share it */
	FLEX_CALL_POLL = 6, /* () does at most 64 steps for the secure world (a command, or 512 pages of what a GONE recalls) and answers with the oldest notice for the OS (kind NONE: there is none) */
	FLEX_CALL_ANSWER = 7, /* (serial, pages) the secure world is told that its WANT `serial` was met with `pages` pages in all */
	FLEX_CALL_PRESSURE = 8, /* (pages, deadline_ms) the secure world is asked for `pages` pages; does not wait for it */
	FLEX_CALL_COUNTS = 9, /* () pages in each state; with the monitor's own they sum to RAM */
	FLEX_CALL_RELAX = 10, /* () protection is off: the monitor is hashed by EL3, Stage-2 no longer translates; the next call switches it on again */
	FLEX_CALL_DETACH = 11, /* () the secure world is told that the driver is leaving and wants everything back */
	FLEX_CALL_NPU_GRANT = 12, /* (code, bytes) the NPU is ENTERING: its registers are hidden, it reaches nothing, a reset is asked for, and `bytes` bytes from `code` were copied as what drives it; POLLs finish it: registers are zeroed, it is SECURE and reaches SECURE pages only, the secure world is told */
	FLEX_CALL_NPU_ASK = 13, /* (deadline_ms) the secure world is asked for the NPU; does not wait for it */
	FLEX_CALL_NPU_STATE = 14, /* () whose the NPU is (an npu state) */
};

enum flex_notice {
	FLEX_NOTICE_NONE = 0, /* nothing to do */
	FLEX_NOTICE_WANT = 1, /* the secure world asks for `pages` pages; fewer than `minimum` are of no use to it */
	FLEX_NOTICE_OFFER = 2, /* these pages are RECALLING now: TAKE them */
	FLEX_NOTICE_UNWANTED = 3, /* the secure world does not want the GRANTED pages among these: RETURN them */
	FLEX_NOTICE_ATTACHED = 4, /* a secure world started */
	FLEX_NOTICE_GONE = 5, /* the secure world ended: what it held is RECALLING; RETURN or TAKE everything that was granted */
	FLEX_NOTICE_MORE = 6, /* no notice yet, but more commands may wait, or what drives the NPU was interrupted: POLL again */
	FLEX_NOTICE_WAIT = 7, /* no notice yet, and the NPU is being reset: POLL again in some tens of microseconds */
	FLEX_NOTICE_NPU_WANTED = 8, /* the secure world wants the NPU: finish the running job, then NPU_GRANT */
	FLEX_NOTICE_NPU_BACK = 9, /* the NPU is NORMAL again, as after a reset */
};

enum flex_command {
	FLEX_COMMAND_ATTACH = 1, /* (epoch) the commands that follow are carried out; event ATTACHED, notice ATTACHED */
	FLEX_COMMAND_GONE = 2, /* (epoch) nobody is attached, and the NPU goes back as by NPU_RELEASE; then every SECURE page is RECALLING, 512 a step; then notice GONE, and the commands that follow */
	FLEX_COMMAND_WANT = 3, /* (serial, pages, minimum) notice WANT */
	FLEX_COMMAND_COMMIT = 4, /* (ipa, pages, serial) every page is SECURE; event DONE */
	FLEX_COMMAND_RECALL = 5, /* (ipa, pages, serial) every page is RECALLING; notice OFFER, event DONE */
	FLEX_COMMAND_REFUSE = 6, /* (ipa, pages, serial) nothing changes; notice UNWANTED, event DONE */
	FLEX_COMMAND_NPU_WANT = 7, /* (serial) notice NPU_WANTED; event NPU_GRANTED once the OS gave it */
	FLEX_COMMAND_NPU_DRIVE = 8, /* (list | commands << 32, tables, serial) what drives it is run, in a sandbox that holds the NPU's registers and one page of stack, to start the job of `commands` commands at `list` with the translation at `tables`; event DONE: OK when it returned 0, BUSY when another number, DENIED when it did something else, or nothing for too long; the commands that follow wait for it */
	FLEX_COMMAND_NPU_RELEASE = 9, /* (serial) it is not wanted any more; one that is not NORMAL is LEAVING: it reaches nothing and a reset is asked for; event DONE; POLLs finish it: registers and sandbox are zeroed, it is NORMAL and reaches NORMAL pages only; notice NPU_BACK */
};

enum flex_event {
	FLEX_EVENT_GRANTED = 1, /* the OS handed these pages over */
	FLEX_EVENT_ANSWER = 2, /* the OS has done for WANT `serial` what it will do: `pages` pages in all */
	FLEX_EVENT_DONE = 3, /* what came of the COMMIT, RECALL, REFUSE, NPU_DRIVE or NPU_RELEASE with this serial; also tells of any other command that was refused (for an ATTACH, serial is the epoch) */
	FLEX_EVENT_TAKEN = 4, /* the OS has these pages back (after TAKE or RETURN); left out while the ring is full, since the page states tell it, too */
	FLEX_EVENT_PRESSURE = 5, /* the OS wants `pages` pages back within `deadline_ms` milliseconds */
	FLEX_EVENT_ATTACHED = 7, /* the ATTACH of this epoch was carried out */
	FLEX_EVENT_DETACHED = 6, /* the driver is leaving: give everything back */
	FLEX_EVENT_NPU_GRANTED = 8, /* the NPU is SECURE, for the NPU_WANT with this serial; the digest of what drives it is in the mailbox */
	FLEX_EVENT_NPU_ASKED = 9, /* the OS wants the NPU back within `deadline_ms` milliseconds */
};

enum flex_byte {
	FLEX_BYTE_RING = 33, /* commands are waiting: have the OS call POLL */
	FLEX_BYTE_QUERY = 63, /* is protection on? Answered with ON or OFF, and with the other one when that changes next */
	FLEX_BYTE_EVENT = 101, /* events are waiting; not said again before all of them are read */
	FLEX_BYTE_ON = 80, /* protection is on, and the mailbox is as if new */
	FLEX_BYTE_OFF = 85, /* protection is off: nothing in the mailbox can be believed */
};

enum flex_npu_state {
	FLEX_NPU_STATE_ABSENT = 0, /* there is none */
	FLEX_NPU_STATE_NORMAL = 1, /* the OS has its registers; it reaches NORMAL pages only */
	FLEX_NPU_STATE_ENTERING = 2, /* on its way to the secure world: nobody has its registers, it reaches nothing, and is being reset */
	FLEX_NPU_STATE_SECURE = 3, /* the secure world's; it reaches SECURE pages only */
	FLEX_NPU_STATE_LEAVING = 4, /* on its way back: nobody has its registers, it reaches nothing, and is being reset */
};

enum flex_npu_register {
	FLEX_NPU_REGISTER_VERSION = 0, /* npu.version, always */
	FLEX_NPU_REGISTER_VERSION_NUM = 4, /* npu.version_num, always */
	FLEX_NPU_REGISTER_OP_EN = 8, /* 1 starts a job, written after everything else; the device writes 0 when it ended, after everything else */
	FLEX_NPU_REGISTER_DATA_ADDR = 16, /* IOVA of the job's commands, less DMA_BASE */
	FLEX_NPU_REGISTER_DATA_AMOUNT = 20, /* how many commands, at most npu.commands_max, of 8 bytes each */
	FLEX_NPU_REGISTER_INT_MASK = 32, /* which bits of INT_RAW show in INT_STATUS */
	FLEX_NPU_REGISTER_INT_CLEAR = 36, /* bits to clear in INT_RAW; the device writes 0 when it did */
	FLEX_NPU_REGISTER_INT_STATUS = 40, /* INT_RAW & INT_MASK */
	FLEX_NPU_REGISTER_INT_RAW = 44, /* what happened: the interrupt bits */
	FLEX_NPU_REGISTER_TASK_CON = 48, /* a tag of the driver's; nothing depends on it */
	FLEX_NPU_REGISTER_DMA_BASE = 52, /* added to DATA_ADDR; a whole page's address */
	FLEX_NPU_REGISTER_TASK_STATUS = 60, /* operations that this job finished */
	FLEX_NPU_REGISTER_MMU_DTE_ADDR = 36864, /* physical address of the directory: 1024 entries of 32 bits, bit 0 valid, bits 31 to 12 a table of 1024 entries: bit 0 valid, 1 readable, 2 writable, bits 31 to 12 a page */
	FLEX_NPU_REGISTER_MMU_STATUS = 36868, /* the MMU's status bits */
	FLEX_NPU_REGISTER_MMU_COMMAND = 36872, /* an MMU command; the device writes 0 when it did it */
	FLEX_NPU_REGISTER_MMU_PAGE_FAULT_ADDR = 36876, /* IOVA of the access that was stopped */
};

enum flex_npu_interrupt {
	FLEX_NPU_INTERRUPT_DONE = 1, /* the job ended well */
	FLEX_NPU_INTERRUPT_READ_FAULT = 16, /* a read was stopped, and the job with it */
	FLEX_NPU_INTERRUPT_WRITE_FAULT = 32, /* a write was stopped, and the job with it */
	FLEX_NPU_INTERRUPT_BAD_COMMAND = 64, /* a command made no sense, and ended the job */
};

enum flex_npu_mmu_status {
	FLEX_NPU_MMU_STATUS_PAGING = 1, /* translation is on */
	FLEX_NPU_MMU_STATUS_FAULT = 2, /* an access was stopped */
	FLEX_NPU_MMU_STATUS_IDLE = 4, /* no access is outstanding */
	FLEX_NPU_MMU_STATUS_MONITOR = 16, /* it was the monitor's tree that stopped it */
};

enum flex_npu_mmu_command {
	FLEX_NPU_MMU_COMMAND_ENABLE = 1, /* translate by MMU_DTE_ADDR */
	FLEX_NPU_MMU_COMMAND_DISABLE = 2, /* reach nothing */
	FLEX_NPU_MMU_COMMAND_ZAP = 4, /* forget translations */
	FLEX_NPU_MMU_COMMAND_RESET = 6, /* end the running job; registers as after a reset */
};

enum flex_npu_target {
	FLEX_NPU_TARGET_RUN = 129, /* value 1 to register 0: run the operation that was set up */
	FLEX_NPU_TARGET_PC = 257, /* a register of the program counter's block */
	FLEX_NPU_TARGET_CNA = 513, /* a register of what brings operands */
	FLEX_NPU_TARGET_CORE = 2049, /* a register of what multiplies */
	FLEX_NPU_TARGET_DPU = 4097, /* a register of what brings results away */
};

enum flex_npu_operand {
	FLEX_NPU_OPERAND_FORMAT = 4096, /* CNA: an npu format, and npu.reuse */
	FLEX_NPU_OPERAND_M = 4100, /* CNA: rows of A and C, at most 4096 */
	FLEX_NPU_OPERAND_N = 4104, /* CNA: rows of B, columns of C, at most 65536 */
	FLEX_NPU_OPERAND_K = 4108, /* CNA: columns of A and B, at most 65536; whole blocks of the format */
	FLEX_NPU_OPERAND_A = 4112, /* CNA: IOVA */
	FLEX_NPU_OPERAND_A_STRIDE = 4116, /* CNA: bytes from a row to the next */
	FLEX_NPU_OPERAND_B = 4120, /* CNA: IOVA */
	FLEX_NPU_OPERAND_B_STRIDE = 4124, /* CNA: bytes from a row to the next */
	FLEX_NPU_OPERAND_C = 16384, /* DPU: IOVA */
	FLEX_NPU_OPERAND_C_STRIDE = 16388, /* DPU: bytes from a row to the next */
};

enum flex_npu_format {
	FLEX_NPU_FORMAT_INT8 = 1, /* int8 to int32, exactly */
	FLEX_NPU_FORMAT_FP16 = 2, /* fp16 to fp32: the sum of the products, exactly, then rounded once */
	FLEX_NPU_FORMAT_Q8_0 = 3, /* ggml's q8_0 (blocks of 32: an fp16 scale, 32 int8) to fp32: for each block the exact sum times the fp32 product of both scales, added in fp32, in order */
	FLEX_NPU_FORMAT_REUSE = 256, /* a bit: B is what the operation before left on the chip */
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
