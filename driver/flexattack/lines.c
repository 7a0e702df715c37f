// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What the CPU does to lines of a cache, and what it says of a translation, by virtual address.
 *
 * `line OPERATION WAY ADDRESS`: zva (overwrites the line with zeros), civac, cvac, ivac, ivau (cleans or forgets
 * it); through one of the ways of window.c; "fault" -14 when it killed the thread. `translate WAY ADDRESS`: "par", what
 * the CPU's walk makes of it.
 */
#include <linux/mm.h>

#include "flexattack.h"

static struct {
	void *at;
	char operation;
	u64 par;
} lines;

#define LINE_OPERATION(text) __asm__ volatile(text ", %0\n\tdsb sy\n\tisb" ::"r"(lines.at) : "memory")

static void operate(void *unused)
{
	switch (lines.operation) {
	case 'z':
		LINE_OPERATION("dc zva");
		break;
	case 'c':
		LINE_OPERATION("dc civac");
		break;
	case 'v':
		LINE_OPERATION("dc cvac");
		break;
	case 'i':
		LINE_OPERATION("dc ivac");
		break;
	case 'u':
		LINE_OPERATION("ic ivau");
		break;
	}
}

static void ask_translation(void *unused)
{
	__asm__ volatile("at s1e1r, %0\n\tisb" ::"r"(lines.at) : "memory");
	lines.par = read_sysreg(par_el1);
}

static void through(struct attack *attack, int way, void (*body)(void *))
{
	struct window window;

	attack->error = attack->words[way] ? open_window(&window, attack->words[way], word(attack, way + 1)) : -EINVAL;
	if (attack->error)
		return;
	lines.at = window.at;
	tell(attack, "fault", attempt(body, NULL));
	close_window(&window);
}

void line(struct attack *attack)
{
	static const struct {
		const char *name;
		char letter;
	} operations[] = { { "zva", 'z' }, { "civac", 'c' }, { "cvac", 'v' }, { "ivac", 'i' }, { "ivau", 'u' } };

	lines.operation = 0;
	for (int i = 0; attack->words[1] && i < ARRAY_SIZE(operations); i++)
		if (!strcmp(attack->words[1], operations[i].name))
			lines.operation = operations[i].letter;
	attack->error = -EINVAL;
	if (lines.operation)
		through(attack, 2, operate);
}

void translate(struct attack *attack)
{
	lines.par = 0;
	through(attack, 1, ask_translation);
	tell(attack, "par", lines.par);
}
