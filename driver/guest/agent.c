/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent: answers the host's questions, which come as lines of words over the virtio port "flex",
 * with one line of JSON each; {"error": …} when it cannot. It says {"ready": true} once, at its start.
 *
 *   ping                          {}
 *   meminfo                       bytes: total, available, free, cached, flexmem; stall: % of the last 10 s
 *   flexmem                       the driver's state and counters
 *   flexnpu                       the same of the NPU's driver
 *   read PATH                     {"text": …}
 *   write PATH WORDS…             {}
 *   load NAME [PARAMETERS…]       a module of /modules; {}
 *   unload NAME                   flexmem and flexnpu get everything back first; {}
 *   start PROGRAM WORDS…          {"job": N}: runs beside what follows
 *   job N                         {"running": true}, or what came of it, once:
 *                                 {"running": false, "status": …, "signal": …, "result": …}
 *   stop N                        kills it; {}
 *   run PROGRAM WORDS…            start, wait, job
 *   attack WORDS…                 what the attack module says (driver/flexattack)
 *   poweroff                      no answer
 *
 * It is bounded in all it keeps: lines, words, jobs and what jobs say.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "agent.h"
#include "guest.h"

enum { WORDS = 32 };

/* ---- questions ---- */

static void ping(char **words)
{
	(void)words;
	say("{}");
}

static double stall(void)
{
	char text[256];
	double percent = 0;

	if (read_whole("/proc/pressure/memory", text, sizeof(text)) > 0)
		sscanf(text, "some avg10=%lf", &percent);
	return percent;
}

static unsigned long granted(void)
{
	char text[1024];
	unsigned long pages = 0;

	if (read_whole("/sys/kernel/debug/flexmem/state", text, sizeof(text)) > 0)
		sscanf(text, "held %lu", &pages);
	return pages * PAGE;
}

static void memory(char **words)
{
	(void)words;
	say("{\"total\": %lu, \"available\": %lu, \"free\": %lu, \"cached\": %lu, \"flexmem\": %lu, \"stall\": %.2f}",
	    meminfo("MemTotal"), meminfo("MemAvailable"), meminfo("MemFree"), meminfo("Cached"), granted(),
	    stall());
}

static void driver(char **words)
{
	static const char *const files[] = { "state", "counters" };
	char path[64], text[SAID];

	say("{");
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", words[0], files[i]);
		if (read_whole(path, text, sizeof(text)) < 0)
			return fail_errno();
		say_members(text);
	}
	say("}");
}

static void read_file(char **words)
{
	char text[SAID];

	if (!words[1] || read_whole(words[1], text, sizeof(text)) < 0)
		return words[1] ? fail_errno() : fail("read what?");
	say("{\"text\": ");
	say_text(text);
	say("}");
}

/* Puts words back into one text, as they were but for their spaces. */
static void join(char **words, char *text, size_t room)
{
	size_t length = 0;

	text[0] = 0;
	for (; *words && length < room; words++)
		length += snprintf(text + length, room - length, "%s%s", length ? " " : "", *words);
}

static void write_file(char **words)
{
	char text[LINE];

	if (!words[1])
		return fail("write where?");
	join(words + 2, text, sizeof(text));
	if (write_whole(words[1], text))
		return fail_errno();
	say("{}");
}

static void load(char **words)
{
	char file[64], parameters[LINE];

	if (!words[1])
		return fail("load what?");
	snprintf(file, sizeof(file), "%s.ko", words[1]);
	join(words + 2, parameters, sizeof(parameters));
	if (load_module(file, parameters))
		return fail_errno();
	say("{}");
}

static void unload(char **words)
{
	char detach[64];

	if (!words[1])
		return fail("unload what?");
	snprintf(detach, sizeof(detach), "/sys/kernel/debug/%s/detach", words[1]);
	if (write_whole(detach, "1") && errno != ENOENT)
		return fail_errno();
	if (unload_module(words[1])) {
		fail_errno();
		write_whole(detach, "0"); /* it stays, so it serves */
		return;
	}
	say("{}");
}

static void attack(char **words)
{
	char text[LINE];

	join(words + 1, text, sizeof(text));
	tell("/dev/flexattack", text);
}

static void power_off(char **words)
{
	(void)words;
	sync();
	reboot(RB_POWER_OFF);
	fail_errno();
}

static const struct {
	const char *name;
	void (*answer)(char **words);
} questions[] = {
	{ "ping", ping },     { "meminfo", memory }, { "flexmem", driver }, { "flexnpu", driver },
	{ "read", read_file }, { "write", write_file }, { "load", load },   { "unload", unload },
	{ "start", start_job }, { "run", run_job },  { "job", ask_job },    { "stop", stop_job },
	{ "attack", attack }, { "poweroff", power_off },
};

static void reply(char *line)
{
	char *words[WORDS + 1] = { NULL };
	int count = 0;

	for (char *next, *word = strtok_r(line, " \r", &next); word && count < WORDS;
	     word = strtok_r(NULL, " \r", &next))
		words[count++] = word;
	for (size_t i = 0; words[0] && i < sizeof(questions) / sizeof(*questions); i++)
		if (!strcmp(words[0], questions[i].name)) {
			questions[i].answer(words);
			return;
		}
	fail("unknown question");
}

int agent_main(void)
{
	return serve("flex", reply);
}
