/* SPDX-License-Identifier: Apache-2.0 */
/* The agent: port.c hears questions, agent.c answers, answer.c says what comes of it, jobs.c runs programs. */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>

enum { LINE = 4096, SAID = 8192 };

/* port.c: says {"ready": true} over the port, then has each line that comes replied to, by what reply() says. */
int serve(const char *port, void (*reply)(char *line)); /* returns when the host is gone: an exit status */
void tell(const char *file, const char *line); /* writes it to a module's file, and says what that says then */

/* answer.c: one answer at a time, a line of JSON. What does not fit in it is left out; answer_fits() says so. */
void begin_answer(void);
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
void say_text(const char *text); /* as a JSON string */
void say_members(char *lines);   /* "name value" each, as members of an object; mutates them */
void fail(const char *why);      /* what was said is forgotten */
void fail_errno(void);
bool answer_fits(void);
int send_answer(int fd); /* -1 with errno */

/* jobs.c: answers to questions about jobs; words[0] is the question itself */
void start_job(char **words);
void run_job(char **words);
void ask_job(char **words);
void stop_job(char **words);

#endif
