#include "core/secure.h"

#include "core/limits.h"
#include "core/mailbox.h"
#include "core/notices.h"
#include "core/npu.h"
#include "core/pages.h"
#include "core/tables.h"

/* What is left to do of a GONE. */
struct leaving {
	bool under_way;
	u64 epoch;
	u64 next; /* the first page that may still be SECURE */
};

static bool attached;
static struct leaving leaving;

void secure_init(void)
{
	attached = false;
	leaving = (struct leaving){ false, 0, 0 };
}

bool secure_attached(void)
{
	return attached;
}

/*
 * ATTACH: changes no page.
 * Refused: DENIED (somebody is attached).
 */
static void attach(const struct message *command)
{
	if (attached) {
		mailbox_event(FLEX_EVENT_DONE, command->a, (u64)FLEX_STATUS_DENIED);
		return;
	}
	attached = true;
	mailbox_event(FLEX_EVENT_ATTACHED, command->a, 0);
	notices_put(FLEX_NOTICE_ATTACHED, command->a, 0, 0);
}

/*
 * GONE: from now on no page becomes SECURE; leave_on() recalls those that are. The NPU goes back (npu_leave). What is
 * only GRANTED needs no step: it was never used, and the OS may have it back as it is.
 * Refused: never.
 */
static void leave(const struct message *command)
{
	attached = false;
	npu_leave();
	leaving = (struct leaving){ true, command->a, 0 };
}

/*
 * A step of GONE: each page that is SECURE => RECALLING.
 * Nobody is attached and no command is carried out meanwhile, so no page behind us becomes SECURE. The NPU
 * reaches nothing, so what its tree loses needs no flush.
 */
static void leave_on(void)
{
	struct range some = pages_from(leaving.next);

	tables_close(some);
	pages_sweep(FLEX_MOVE_RECALL, some);
	leaving.next += some.count;
	if (pages_from(leaving.next).count > 0)
		return;
	leaving.under_way = false;
	notices_put(FLEX_NOTICE_GONE, leaving.epoch, 0, 0);
}

/*
 * COMMIT: each page GRANTED => SECURE.
 * Refused: INVALID (no range of RAM); DENIED (nobody is attached, or a page is not GRANTED).
 */
static int commit(struct range range)
{
	if (!pages_may(FLEX_MOVE_COMMIT, range))
		return FLEX_STATUS_DENIED;
	pages_move(FLEX_MOVE_COMMIT, range);
	tables_open(range);
	return FLEX_STATUS_OK;
}

/*
 * RECALL: each page SECURE => RECALLING.
 * Refused: INVALID (no range of RAM); DENIED (nobody is attached, or a page is not SECURE).
 */
static int recall(struct range range, const struct message *command)
{
	if (!pages_may(FLEX_MOVE_RECALL, range))
		return FLEX_STATUS_DENIED;
	/* Once it is RECALLING the OS may TAKE it: then the NPU must have written for the last time. */
	tables_close(range);
	npu_forget(FLEX_NPU_STATE_SECURE);
	pages_move(FLEX_MOVE_RECALL, range);
	notices_put(FLEX_NOTICE_OFFER, command->a, command->b, 0);
	return FLEX_STATUS_OK;
}

/*
 * REFUSE: changes no page. Those that are GRANTED stay so until the OS RETURNs them.
 * Refused: INVALID (no range of RAM); DENIED (nobody is attached, or RETURN would be DENIED).
 */
static int refuse(struct range range, const struct message *command)
{
	if (!pages_may_sweep(FLEX_MOVE_RETURN, range))
		return FLEX_STATUS_DENIED;
	notices_put(FLEX_NOTICE_UNWANTED, command->a, command->b, 0);
	return FLEX_STATUS_OK;
}

/* Commands that name pages: (ipa, pages, serial). */
static int on_pages(const struct message *command)
{
	struct range range;

	if (!pages_range(command->a, command->b, &range))
		return FLEX_STATUS_INVALID;
	switch (command->kind) {
	case FLEX_COMMAND_COMMIT:
		return commit(range);
	case FLEX_COMMAND_RECALL:
		return recall(range, command);
	case FLEX_COMMAND_REFUSE:
		return refuse(range, command);
	default:
		return FLEX_STATUS_UNKNOWN;
	}
}

/*
 * WANT: changes no page: the OS may GRANT some.
 * Refused: DENIED (nobody is attached).
 * Any other command that is not known changes nothing, and is refused: DENIED (nobody is attached); INVALID or UNKNOWN.
 */
static void carry_out(const struct message *command)
{
	int status;

	if (command->kind == FLEX_COMMAND_ATTACH) {
		attach(command);
	} else if (command->kind == FLEX_COMMAND_GONE) {
		leave(command);
	} else if (command->kind == FLEX_COMMAND_WANT && attached) {
		notices_put(FLEX_NOTICE_WANT, command->a, command->b, command->c);
	} else if (command->kind >= FLEX_COMMAND_NPU_WANT && command->kind <= FLEX_COMMAND_NPU_RELEASE) {
		npu_obey(command, attached);
	} else {
		status = attached ? on_pages(command) : FLEX_STATUS_DENIED;
		mailbox_event(FLEX_EVENT_DONE, command->c, (u64)status);
	}
	mailbox_carried_out();
}

bool secure_work(void)
{
	struct message command;
	u32 i;

	for (i = 0; i < POLL_STEPS_MAX; i++) {
		/* A step leads to at most one notice and one event. */
		if (notices_full() || mailbox_room() == 0)
			return false;
		if (npu_work())
			;
		else if (leaving.under_way)
			leave_on();
		else if (mailbox_command(&command))
			carry_out(&command);
		else
			return false;
		/* An interrupt is the OS's, who takes it when this call is over. */
		if (npu_is_driving())
			return true;
	}
	return true;
}
