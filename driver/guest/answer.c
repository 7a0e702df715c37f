/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

static char answer[1 << 16];
static size_t answered;

void begin_answer(void)
{
	answered = 0;
}

void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	int length = vsnprintf(answer + answered, sizeof(answer) - answered, format, arguments);
	va_end(arguments);
	answered += length;
	if (answered > sizeof(answer))
		answered = sizeof(answer);
}

bool answer_fits(void)
{
	return answered < sizeof(answer) - 1;
}

void say_text(const char *text)
{
	say("\"");
	for (; *text; text++) {
		unsigned char c = *text;
		if (c == '"' || c == '\\')
			say("\\%c", c);
		else
			say(c < 0x20 || c > 0x7e ? "\\u%04x" : "%c", c);
	}
	say("\"");
}

/* A value that is no number is a text. */
void say_members(char *lines)
{
	char *next;

	for (char *name = strtok_r(lines, "\n", &next); name; name = strtok_r(NULL, "\n", &next)) {
		char *value = strchr(name, ' ');
		char *end;

		if (!value)
			continue;
		*value++ = 0;
		strtoll(value, &end, 10);
		if (answer[answered - 1] != '{')
			say(", ");
		say_text(name);
		say(": ");
		if (end != value && !*end)
			say("%s", value);
		else
			say_text(value);
	}
}

void fail(const char *why)
{
	begin_answer();
	say("{\"error\": ");
	say_text(why);
	say("}");
}

void fail_errno(void)
{
	fail(strerror(errno));
}

int send_answer(int fd)
{
	size_t sent = 0;

	say("\n");
	while (sent < answered) {
		ssize_t put = write(fd, answer + sent, answered - sent);
		if (put < 0)
			return -1;
		sent += put;
	}
	return 0;
}
