// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reaching a physical address, by one of the ways of window.c.
 *
 * `peek WAY ADDRESS`: "fault" 0 and "value", or -14 when the access faulted. `poke WAY ADDRESS VALUE`.
 * `execute WAY ADDRESS`: jumps there, where a return instruction should be; "fault" -14 when that
 * killed the thread.
 */
#include <linux/mm.h>
#include <linux/uaccess.h>

#include "flexattack.h"

static int load(const u64 *at, u64 *value)
{
	__get_kernel_nofault(value, at, u64, fault);
	return 0;
fault:
	return -EFAULT;
}

static int store(u64 *at, u64 value)
{
	__put_kernel_nofault(at, &value, u64, fault);
	return 0;
fault:
	return -EFAULT;
}

static void access(struct attack *attack, bool write)
{
	struct window window;
	u64 value = word(attack, 3);

	attack->error = attack->words[1] ? open_window(&window, attack->words[1], word(attack, 2)) : -EINVAL;
	if (attack->error)
		return;
	tell(attack, "fault", write ? store(window.at, value) : load(window.at, &value));
	tell(attack, "value", value);
	close_window(&window);
}

void peek(struct attack *attack)
{
	access(attack, false);
}

void poke(struct attack *attack)
{
	access(attack, true);
}

static void jump(void *at)
{
	((void (*)(void))at)();
}

void execute(struct attack *attack)
{
	struct window window;

	attack->error = attack->words[1] ? open_window(&window, attack->words[1], word(attack, 2)) : -EINVAL;
	if (attack->error)
		return;
	tell(attack, "fault", attempt(jump, window.at));
	close_window(&window);
}
