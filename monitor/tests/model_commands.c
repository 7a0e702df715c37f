/* The secure world's side of the model: its commands, and the NPU. */
#include "tests/model_parts.h"

static int obey_on_pages(struct model *model, const struct message *order)
{
	if (order->kind != FLEX_COMMAND_COMMIT && order->kind != FLEX_COMMAND_RECALL && order->kind != FLEX_COMMAND_REFUSE)
		return model_well_formed(model, order->a, order->b) ? FLEX_STATUS_UNKNOWN : FLEX_STATUS_INVALID;
	if (!model_well_formed(model, order->a, order->b))
		return FLEX_STATUS_INVALID;
	if (order->kind == FLEX_COMMAND_RECALL) {
		if (!model_all_are(model, order->a, order->b, FLEX_STATE_SECURE))
			return FLEX_STATUS_DENIED;
		model_become(model, order->a, order->b, FLEX_STATE_RECALLING);
		model_push(&model->notices, FLEX_NOTICE_OFFER, order->a, order->b, 0);
		return FLEX_STATUS_OK;
	}
	if (order->kind == FLEX_COMMAND_REFUSE) {
		if (!model_are_unused(model, order->a, order->b))
			return FLEX_STATUS_DENIED;
		model_push(&model->notices, FLEX_NOTICE_UNWANTED, order->a, order->b, 0);
		return FLEX_STATUS_OK;
	}
	if (!model_all_are(model, order->a, order->b, FLEX_STATE_GRANTED))
		return FLEX_STATUS_DENIED;
	model_become(model, order->a, order->b, FLEX_STATE_SECURE);
	return FLEX_STATUS_OK;
}

/* ---- the NPU ---- */

bool model_npu_moves(const struct model *model)
{
	return model->npu == FLEX_NPU_STATE_ENTERING || model->npu == FLEX_NPU_STATE_LEAVING;
}

void model_move_npu(struct ask *ask, u8 state)
{
	ask->model->npu = state;
	ask->model->npu_resetting = ask->lies.npu_deaf;
}

static void give_npu_up(struct ask *ask)
{
	ask->model->npu_wanted = false;
	if (ask->model->npu == FLEX_NPU_STATE_ENTERING || ask->model->npu == FLEX_NPU_STATE_SECURE)
		model_move_npu(ask, FLEX_NPU_STATE_LEAVING);
}

static void drive_on(struct ask *ask)
{
	static const int ends[] = { [ARCH_RETURNED] = FLEX_STATUS_OK, [ARCH_INTERRUPTED] = FLEX_STATUS_DENIED,
				    [ARCH_FAULTED] = FLEX_STATUS_DENIED };
	struct model *model = ask->model;
	int status = ends[ask->lies.stop];

	model->turn++;
	if (ask->lies.stop == ARCH_INTERRUPTED && model->turn < model->turns)
		return;
	if (ask->lies.stop == ARCH_RETURNED && ask->lies.result != 0)
		status = FLEX_STATUS_BUSY;
	model_tell_secure(ask, FLEX_EVENT_DONE, model->driving_serial, (u64)status);
	model->driving = false;
	model->driving_serial = model->turn = 0;
}

static void arrive(struct ask *ask)
{
	struct model *model = ask->model;

	model->npu_resetting = false;
	if (model->npu == FLEX_NPU_STATE_ENTERING) {
		model->npu = FLEX_NPU_STATE_SECURE;
		model->npu_wanted = false;
		model_tell_secure(ask, FLEX_EVENT_NPU_GRANTED, model->npu_serial, 0);
	} else {
		model->npu = FLEX_NPU_STATE_NORMAL;
		model_push(&model->notices, FLEX_NOTICE_NPU_BACK, 0, 0, 0);
	}
}

static void obey_about_npu(struct ask *ask, struct message order)
{
	struct model *model = ask->model;

	if (order.kind == FLEX_COMMAND_NPU_DRIVE && model->attached && model->npu == FLEX_NPU_STATE_SECURE) {
		model->driving = true;
		model->driving_serial = order.c;
		drive_on(ask);
	} else if (order.kind == FLEX_COMMAND_NPU_DRIVE) {
		model_tell_secure(ask, FLEX_EVENT_DONE, order.c, (u64)FLEX_STATUS_DENIED);
	} else if (order.kind == FLEX_COMMAND_NPU_WANT && model->attached && model->npu == FLEX_NPU_STATE_NORMAL) {
		model->npu_wanted = true;
		model->npu_serial = order.a;
		model_push(&model->notices, FLEX_NOTICE_NPU_WANTED, order.a, 0, 0);
	} else if (order.kind == FLEX_COMMAND_NPU_RELEASE && model->attached &&
		   (model->npu_wanted || model->npu == FLEX_NPU_STATE_SECURE)) {
		give_npu_up(ask);
		model_tell_secure(ask, FLEX_EVENT_DONE, order.a, FLEX_STATUS_OK);
	} else {
		model_tell_secure(ask, FLEX_EVENT_DONE, order.a, (u64)FLEX_STATUS_DENIED);
	}
}

static void obey(struct ask *ask, struct message order)
{
	struct model *model = ask->model;
	int status;

	if (order.kind == FLEX_COMMAND_GONE) {
		model->attached = false;
		give_npu_up(ask);
		model->leaving = true;
		model->epoch = order.a;
	} else if (order.kind == FLEX_COMMAND_ATTACH && !model->attached) {
		model->attached = true;
		model_tell_secure(ask, FLEX_EVENT_ATTACHED, order.a, 0);
		model_push(&model->notices, FLEX_NOTICE_ATTACHED, order.a, 0, 0);
	} else if (order.kind == FLEX_COMMAND_ATTACH) {
		model_tell_secure(ask, FLEX_EVENT_DONE, order.a, (u64)FLEX_STATUS_DENIED);
	} else if (order.kind == FLEX_COMMAND_WANT && model->attached) {
		model_push(&model->notices, FLEX_NOTICE_WANT, order.a, order.b, order.c);
	} else if (order.kind == FLEX_COMMAND_NPU_WANT || order.kind == FLEX_COMMAND_NPU_DRIVE ||
		   order.kind == FLEX_COMMAND_NPU_RELEASE) {
		obey_about_npu(ask, order);
	} else {
		status = model->attached ? obey_on_pages(model, &order) : FLEX_STATUS_DENIED;
		model_tell_secure(ask, FLEX_EVENT_DONE, order.c, (u64)status);
	}
}

void model_recall_all(struct model *model)
{
	u32 page;

	for (page = 0; page < model->pages; page++)
		if (model->state[page] == FLEX_STATE_SECURE)
			model->state[page] = FLEX_STATE_RECALLING;
}

/* RAM of a model is so small that one step sweeps all of it. */
static void finish_leaving(struct model *model)
{
	model_recall_all(model);
	model->leaving = false;
	model_push(&model->notices, FLEX_NOTICE_GONE, model->epoch, 0, 0);
}

bool model_work(struct ask *ask)
{
	struct model *model = ask->model;
	u32 step;

	for (step = 0; step < model->steps; step++) {
		if (model->notices.count == model->notice_slots || !model_has_room(ask))
			return false;
		if (model->driving)
			drive_on(ask);
		else if (model_npu_moves(model) && !(model->npu_resetting && ask->lies.npu_deaf))
			arrive(ask);
		else if (model->leaving)
			finish_leaving(model);
		else if (model->commands.count > 0 && !ask->lies.command_head)
			obey(ask, model_pop(&model->commands));
		else
			return false;
		if (model->driving)
			return true;
	}
	return true;
}
