/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

int load_module(const char *name, const char *parameters)
{
	char path[128];

	snprintf(path, sizeof(path), "/modules/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	int failed = syscall(SYS_finit_module, fd, parameters, 0);
	int error = errno;
	close(fd);
	errno = error;
	return failed;
}

int unload_module(const char *name)
{
	return syscall(SYS_delete_module, name, O_NONBLOCK);
}
