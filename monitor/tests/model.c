#include "tests/model_parts.h"

#include <string.h>

_Static_assert(FLEX_MAILBOX_SLOTS <= MODEL_QUEUE_MAX && SMALL_NOTICES <= MODEL_QUEUE_MAX, "the small machine is too large");

void model_reset(struct model *model, u32 npus)
{
	memset(model->state, FLEX_STATE_NORMAL, sizeof(model->state));
	model->attached = model->leaving = false;
	model->epoch = 0;
	model->unread = 0;
	memset(&model->commands, 0, sizeof(model->commands));
	memset(&model->notices, 0, sizeof(model->notices));
	model->npu = npus ? FLEX_NPU_STATE_NORMAL : FLEX_NPU_STATE_ABSENT;
	model->npu_resetting = model->npu_wanted = model->driving = false;
	model->npu_serial = model->driving_serial = 0;
	model->turn = 0;
}

u8 model_state(const struct model *model, u64 ipa)
{
	u64 page = (ipa - model->base) / FLEX_PAGE_BYTES;

	return page < model->pages ? model->state[page] : FLEX_STATE_MONITOR;
}

/* Every page by itself, as the words of the interface have it. */
bool model_well_formed(const struct model *model, u64 ipa, u64 pages)
{
	u64 i;

	if (pages < 1 || pages > 512 || ipa % 4096 != 0)
		return false;
	for (i = 0; i < pages; i++)
		if (ipa + i * 4096 < model->base || ipa + i * 4096 >= model->end || ipa + i * 4096 < ipa)
			return false;
	return true;
}

bool model_all_are(const struct model *model, u64 ipa, u64 pages, u8 state)
{
	u64 i;

	for (i = 0; i < pages; i++)
		if (model_state(model, ipa + i * 4096) != state)
			return false;
	return true;
}

/* Pages to be RETURNed, others of the OS between them. */
bool model_are_unused(const struct model *model, u64 ipa, u64 pages)
{
	u64 i;

	for (i = 0; i < pages; i++) {
		int state = model_state(model, ipa + i * 4096);

		if (state != FLEX_STATE_GRANTED && (state != FLEX_STATE_NORMAL || i == 0 || i == pages - 1))
			return false;
	}
	return true;
}

void model_become(struct model *model, u64 ipa, u64 pages, u8 state)
{
	memset(model->state + (ipa - model->base) / 4096, state, pages);
}

void model_push(struct model_queue *queue, u64 kind, u64 a, u64 b, u64 c)
{
	queue->at[queue->count++] = (struct message){ kind, a, b, c };
}

struct message model_pop(struct model_queue *queue)
{
	struct message oldest = queue->at[0];

	queue->count--;
	memmove(queue->at, queue->at + 1, queue->count * sizeof(queue->at[0]));
	memset(queue->at + queue->count, 0, sizeof(queue->at[0]));
	return oldest;
}

bool model_has_room(const struct ask *ask)
{
	return !ask->lies.event_tail && ask->model->unread < ask->model->event_slots;
}

void model_tell_secure(struct ask *ask, u64 kind, u64 a, u64 b)
{
	model_push(&ask->answer->events, kind, a, b, 0);
	ask->model->unread++;
}

/* ---- the OS's calls --------------------------------------------------------------------------------- */

static int grant(struct ask *ask, u64 ipa, u64 pages)
{
	if (!model_well_formed(ask->model, ipa, pages))
		return FLEX_STATUS_INVALID;
	if (!ask->model->attached)
		return FLEX_STATUS_DENIED;
	if (!model_has_room(ask))
		return FLEX_STATUS_BUSY;
	if (!model_all_are(ask->model, ipa, pages, FLEX_STATE_NORMAL))
		return FLEX_STATUS_DENIED;
	model_become(ask->model, ipa, pages, FLEX_STATE_GRANTED);
	model_tell_secure(ask, FLEX_EVENT_GRANTED, ipa, pages);
	return FLEX_STATUS_OK;
}

static int give_back(struct ask *ask, u64 ipa, u64 pages, bool unused)
{
	if (!model_well_formed(ask->model, ipa, pages))
		return FLEX_STATUS_INVALID;
	if (unused ? !model_are_unused(ask->model, ipa, pages) : !model_all_are(ask->model, ipa, pages, FLEX_STATE_RECALLING))
		return FLEX_STATUS_DENIED;
	model_become(ask->model, ipa, pages, FLEX_STATE_NORMAL);
	if (ask->model->attached && model_has_room(ask))
		model_tell_secure(ask, FLEX_EVENT_TAKEN, ipa, pages);
	return FLEX_STATUS_OK;
}

static int tell(struct ask *ask, u64 kind, u64 a, u64 b)
{
	if (!ask->model->attached)
		return FLEX_STATUS_DENIED;
	if (!model_has_room(ask))
		return FLEX_STATUS_BUSY;
	model_tell_secure(ask, kind, a, b);
	return FLEX_STATUS_OK;
}

static int state_of(struct ask *ask, u64 ipa, u64 results[4])
{
	u64 count = 0;

	if (!model_well_formed(ask->model, ipa, 1))
		return FLEX_STATUS_INVALID;
	results[0] = model_state(ask->model, ipa);
	while (count < 512 && ipa + count * 4096 < ask->model->end &&
	       model_state(ask->model, ipa + count * 4096) == results[0])
		count++;
	results[1] = count;
	return FLEX_STATUS_OK;
}

static int counts(struct ask *ask, u64 results[4])
{
	u32 page;

	for (page = 0; page < ask->model->pages; page++)
		results[ask->model->state[page]]++;
	return FLEX_STATUS_OK;
}

static int poll(struct ask *ask, u64 results[4])
{
	bool more = model_work(ask);
	struct message notice = { FLEX_NOTICE_NONE, 0, 0, 0 };

	if (more || model_npu_moves(ask->model))
		notice.kind = more ? FLEX_NOTICE_MORE : FLEX_NOTICE_WAIT;
	if (ask->model->notices.count > 0)
		notice = model_pop(&ask->model->notices);
	memcpy(results, &notice, sizeof(notice));
	return FLEX_STATUS_OK;
}

static int relax(struct ask *ask, int allowed)
{
	if (model_npu_moves(ask->model) || ask->model->npu == FLEX_NPU_STATE_SECURE)
		return FLEX_STATUS_HELD;
	if (ask->model->attached || !model_all_are(ask->model, ask->model->base, ask->model->pages, FLEX_STATE_NORMAL))
		return FLEX_STATUS_HELD;
	return allowed;
}

static int grant_npu(struct ask *ask, u64 code, u64 bytes)
{
	struct model *model = ask->model;

	if (bytes < 1 || bytes > 8192 || !model_well_formed(model, code, bytes > 4096 ? 2 : 1))
		return FLEX_STATUS_INVALID;
	if (model->npu != FLEX_NPU_STATE_NORMAL || !model->npu_wanted ||
	    !model_all_are(model, code, bytes > 4096 ? 2 : 1, FLEX_STATE_NORMAL))
		return FLEX_STATUS_DENIED;
	model_move_npu(ask, FLEX_NPU_STATE_ENTERING);
	return FLEX_STATUS_OK;
}

static int ask_for_npu(struct ask *ask, u64 deadline)
{
	if (ask->model->npu == FLEX_NPU_STATE_ABSENT || ask->model->npu == FLEX_NPU_STATE_NORMAL)
		return FLEX_STATUS_DENIED;
	return tell(ask, FLEX_EVENT_NPU_ASKED, deadline, 0);
}

static int serve(struct ask *ask, const u64 x[5], u64 results[4], int relax_status)
{
	switch (x[0]) {
	case FLEX_SMC_BASE + FLEX_CALL_VERSION:
		results[0] = FLEX_ABI_VERSION;
		return FLEX_STATUS_OK;
	case FLEX_SMC_BASE + FLEX_CALL_LAYOUT:
		results[0] = ask->model->base;
		results[1] = ask->model->end - ask->model->base;
		results[2] = ask->model->base + ask->model->pages * 4096ULL;
		return FLEX_STATUS_OK;
	case FLEX_SMC_BASE + FLEX_CALL_GRANT:
		return grant(ask, x[1], x[2]);
	case FLEX_SMC_BASE + FLEX_CALL_RETURN:
		return give_back(ask, x[1], x[2], true);
	case FLEX_SMC_BASE + FLEX_CALL_TAKE:
		return give_back(ask, x[1], x[2], false);
	case FLEX_SMC_BASE + FLEX_CALL_STATE:
		return state_of(ask, x[1], results);
	case FLEX_SMC_BASE + FLEX_CALL_POLL:
		return poll(ask, results);
	case FLEX_SMC_BASE + FLEX_CALL_ANSWER:
		return tell(ask, FLEX_EVENT_ANSWER, x[1], x[2]);
	case FLEX_SMC_BASE + FLEX_CALL_PRESSURE:
		return tell(ask, FLEX_EVENT_PRESSURE, x[1], x[2]);
	case FLEX_SMC_BASE + FLEX_CALL_COUNTS:
		return counts(ask, results);
	case FLEX_SMC_BASE + FLEX_CALL_RELAX:
		return relax(ask, relax_status);
	case FLEX_SMC_BASE + FLEX_CALL_DETACH:
		return tell(ask, FLEX_EVENT_DETACHED, 0, 0);
	case FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT:
		return grant_npu(ask, x[1], x[2]);
	case FLEX_SMC_BASE + FLEX_CALL_NPU_ASK:
		return ask_for_npu(ask, x[1]);
	case FLEX_SMC_BASE + FLEX_CALL_NPU_STATE:
		results[0] = ask->model->npu;
		return FLEX_STATUS_OK;
	default:
		return FLEX_STATUS_UNKNOWN;
	}
}

struct model_answer model_call(struct model *model, const u64 x[5], struct model_lies lies, int relax_status)
{
	struct model_answer answer = { { 0 }, { 0 } };
	struct ask ask = { model, &answer, lies };

	answer.x[0] = (u64)(int64_t)serve(&ask, x, answer.x + 1, relax_status);
	return answer;
}

bool model_retries(const struct model *model, u64 ipa)
{
	return ipa >= model->base && ipa < model->end && model_state(model, ipa) == FLEX_STATE_NORMAL;
}

void model_end(struct model *model)
{
	model_recall_all(model);
	if (model->npu == FLEX_NPU_STATE_ENTERING || model->npu == FLEX_NPU_STATE_SECURE)
		model->npu = FLEX_NPU_STATE_LEAVING;
}
