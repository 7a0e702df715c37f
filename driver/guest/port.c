/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio port whose other end is on the host: a question is a line, and so is its answer. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "guest.h"

/* Ports are numbered as they come; only sysfs tells which is whose. */
static int open_port(const char *wanted)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int fd = -1;

	while (ports && fd < 0 && (entry = readdir(ports))) {
		char path[512], name[16];

		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		if (read_whole(path, name, sizeof(name)) < 0)
			continue;
		name[strcspn(name, "\n")] = 0;
		if (strcmp(name, wanted))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (ports)
		closedir(ports);
	return fd;
}

int serve(const char *name, void (*reply)(char *line))
{
	char line[LINE];
	int port = -1;

	write_whole("/proc/self/oom_score_adj", "-1000");
	for (int tries = 0; port < 0 && tries < 500; tries++) { /* the port comes a while after its driver */
		port = open_port(name);
		if (port < 0)
			usleep(10000);
	}
	if (port < 0)
		return 1;
	begin_answer();
	say("{\"ready\": true}");
	while (!send_answer(port)) {
		size_t length = 0;
		char c = 0;

		while (c != '\n') {
			if (read(port, &c, 1) != 1)
				return 1; /* the host hung up */
			if (length < sizeof(line) - 1 && c != '\n')
				line[length++] = c;
		}
		line[length] = 0;
		begin_answer();
		reply(line);
		if (!answer_fits())
			fail("the answer is too long");
	}
	return 1;
}

void tell(const char *file, const char *line)
{
	char result[SAID];
	int fd = open(file, O_RDWR | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return fail_errno();
	if (write(fd, line, strlen(line)) < 0 || (got = read(fd, result, sizeof(result) - 1)) < 0) {
		fail_errno();
	} else {
		result[got] = 0;
		say("{");
		say_members(result);
		say("}");
	}
	close(fd);
}
