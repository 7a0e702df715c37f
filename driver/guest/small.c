/* SPDX-License-Identifier: Apache-2.0 */
/* What every program needs: small files, numbers, the clock. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

long read_whole(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t got = 0;

	text[0] = 0;
	if (fd < 0)
		return -1;
	while (length + 1 < room && (got = read(fd, text + length, room - 1 - length)) > 0)
		length += got;
	int error = errno;
	close(fd);
	errno = error;
	text[length] = 0;
	return got < 0 ? -1 : (long)length;
}

int write_whole(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	ssize_t put = write(fd, text, strlen(text));
	int error = errno;
	close(fd);
	errno = error;
	return put < 0 ? -1 : 0;
}

uint64_t meminfo(const char *name)
{
	char text[8192];
	size_t length = strlen(name);

	if (read_whole("/proc/meminfo", text, sizeof(text)) < 0)
		return 0;
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (!strncmp(line, name, length) && line[length] == ':')
			return strtoull(line + length + 1, NULL, 10) * 1024;
	return 0;
}

unsigned long number(const char *word, unsigned long otherwise)
{
	return word ? strtoul(word, NULL, 0) : otherwise;
}

double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

uint64_t mixed(uint64_t value)
{
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9UL;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebUL;
	return value ^ (value >> 31);
}
