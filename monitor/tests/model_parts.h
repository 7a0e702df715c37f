/* What model.c (the OS's calls) and model_commands.c (the secure world's commands) share. */
#ifndef MODEL_PARTS_H
#define MODEL_PARTS_H

#include "tests/model.h"

/* The call under way. */
struct ask {
	struct model *model;
	struct model_answer *answer;
	struct model_lies lies;
};

/* Whether these are pages of RAM, as many as a call may name. */
bool model_well_formed(const struct model *model, u64 ipa, u64 pages);

/* Whether each of these pages is in `state`; whether they may be RETURNed; and have them all in `state`. */
bool model_all_are(const struct model *model, u64 ipa, u64 pages, u8 state);
bool model_are_unused(const struct model *model, u64 ipa, u64 pages);
void model_become(struct model *model, u64 ipa, u64 pages, u8 state);

/* Add the newest to a queue that has room; take the oldest from one that is not empty. */
void model_push(struct model_queue *queue, u64 kind, u64 a, u64 b, u64 c);
struct message model_pop(struct model_queue *queue);

/* Whether there is room for an event; and put one. */
bool model_has_room(const struct ask *ask);
void model_tell_secure(struct ask *ask, u64 kind, u64 a, u64 b);

/* Whether the NPU is on its way from one world to the other. */
bool model_npu_moves(const struct model *model);

/* The NPU goes to `state`, and is asked for a reset. */
void model_move_npu(struct ask *ask, u8 state);

/* Every SECURE page becomes RECALLING. */
void model_recall_all(struct model *model);

/* Do what a POLL does for the secure world; whether there may be more. */
bool model_work(struct ask *ask);

#endif
