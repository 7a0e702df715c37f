/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "guest.h"

enum { JOBS = 20 }; /* a benchmark has fifteen beside those that a machine starts with */

static struct job {
	pid_t pid; /* 0: free */
	int said;  /* the end of a pipe */
} jobs[JOBS];

/* Returns which job it is, -1 after fail(). */
static int begin(char **words)
{
	int pipes[2], free = 0;

	while (free < JOBS && jobs[free].pid)
		free++;
	if (free == JOBS || !words[1] || pipe2(pipes, O_CLOEXEC)) {
		fail(free == JOBS ? "too many jobs" : "start what?");
		return -1;
	}
	words[0] = "guest";
	pid_t pid = fork();
	if (!pid) {
		setpgid(0, 0);
		write_whole("/proc/self/oom_score_adj", "0");
		dup2(pipes[1], STDOUT_FILENO);
		execv("/bin/guest", words);
		_exit(127);
	}
	close(pipes[1]);
	if (pid < 0) {
		close(pipes[0]);
		fail_errno();
		return -1;
	}
	jobs[free] = (struct job){ pid, pipes[0] };
	return free;
}

static void say_result(int fd)
{
	char said[SAID];
	size_t length = 0;
	ssize_t got;

	fcntl(fd, F_SETFL, O_NONBLOCK); /* a child that lives on may hold the other end */
	while (length < sizeof(said) - 1 && (got = read(fd, said + length, sizeof(said) - 1 - length)) > 0)
		length += got;
	while (length && said[length - 1] == '\n')
		length--;
	said[length] = 0;
	if (length && said[0] == '{' && said[length - 1] == '}' && !strchr(said, '\n'))
		say("%s", said);
	else
		say_text(said);
}

static void say_job(struct job *job, int options)
{
	int status;
	pid_t ended = waitpid(job->pid, &status, options);

	if (!ended) {
		say("{\"running\": true}");
		return;
	}
	say("{\"running\": false, \"status\": %d, \"signal\": %d, \"result\": ",
	    WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	say_result(job->said);
	say("}");
	close(job->said);
	job->pid = 0;
}

void start_job(char **words)
{
	int job = begin(words);

	if (job >= 0)
		say("{\"job\": %d}", job);
}

void run_job(char **words)
{
	int job = begin(words);

	if (job >= 0)
		say_job(&jobs[job], 0);
}

static struct job *find_job(char **words)
{
	unsigned long index = number(words[1], JOBS);

	if (index < JOBS && jobs[index].pid)
		return &jobs[index];
	fail("no such job");
	return NULL;
}

void ask_job(char **words)
{
	struct job *job = find_job(words);

	if (job)
		say_job(job, WNOHANG);
}

void stop_job(char **words)
{
	struct job *job = find_job(words);

	if (!job)
		return;
	kill(-job->pid, SIGKILL);
	waitpid(job->pid, NULL, 0);
	close(job->said);
	job->pid = 0;
	say("{}");
}
