/* The laws of world.h, each checked where it can be. A broken one ends the process (host_fail). */
#ifndef LAWS_H
#define LAWS_H

#include "arch/fake_host/fake_host.h"
#include "tests/model.h"

/* The monitor is about to be entered, and this is what the model says it answers. */
void laws_expect(const struct model_answer *answer);

/* Laws 1, 2, 7 and 8 hold at each moment, also in the middle of a call. */
void laws_at_moment(enum host_moment moment);

/* Law 7, for the answer, the number of events and the bell; `rings` are the bells before the call. */
void laws_of_answer(const u64 x[5], u64 rings);

/* Law 3, of the pages that the call in `x` took or returned. */
void laws_of_pages_back(const u64 x[3]);

/* Law 9. `code` is what the OS had when it made the call. */
void laws_of_code(const u8 *code, u64 bytes);

/* Laws 4, 5, 8 and 9. */
void laws_between_steps(void);

#endif
