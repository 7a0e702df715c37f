/* SPDX-License-Identifier: Apache-2.0 */
/* The first program: mounts, loads modules, and starts the agent again whenever it ends. */
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

static const struct {
	const char *type, *where;
} mounts[] = {
	{ "proc", "/proc" },   { "sysfs", "/sys" },		  { "devtmpfs", "/dev" },
	{ "tmpfs", "/tmp" },   { "debugfs", "/sys/kernel/debug" },
};

/*
 * kswapd begins to reclaim, and so to ask the secure world, when free memory falls below 3 % of RAM
 * instead of a fraction of one: the answer takes milliseconds, in which a program allocates megabytes.
 */
static const char *const sysctls[][2] = {
	{ "/proc/sys/vm/watermark_scale_factor", "300" },
	{ "/proc/sys/kernel/hung_task_timeout_secs", "0" },
};

/* A device of the tree is named by its address and its node. */
static int has_npu(void)
{
	glob_t found = { 0 };
	int has = !glob("/sys/bus/platform/devices/*.npu", 0, NULL, &found);

	globfree(&found);
	return has;
}

static void load_modules(void)
{
	char names[1024];

	read_whole("/modules/order", names, sizeof(names));
	for (char *name = strtok(names, "\n"); name; name = strtok(NULL, "\n"))
		if (load_module(name, ""))
			fprintf(stderr, "init: %s: %m\n", name);
	if (load_module("flexmem.ko", ""))
		fprintf(stderr, "init: flexmem.ko: %m\n");
	/* Only where there is one: flexmem cannot be unloaded while another module stands on it. */
	if (has_npu() && load_module("flexnpu.ko", ""))
		fprintf(stderr, "init: flexnpu.ko: %m\n");
}

int init_main(void)
{
	for (size_t i = 0; i < sizeof(mounts) / sizeof(*mounts); i++)
		if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, NULL))
			fprintf(stderr, "init: %s: %m\n", mounts[i].where);
	for (size_t i = 0; i < sizeof(sysctls) / sizeof(*sysctls); i++)
		write_whole(sysctls[i][0], sysctls[i][1]);
	load_modules();
	for (;;) {
		pid_t agent = fork();
		if (!agent) {
			execl("/bin/guest", "guest", "agent", NULL);
			_exit(127);
		}
		while (wait(NULL) != agent) /* orphans of the agent's jobs end here, too */
			;
		sleep(1); /* it has nobody to talk to, or a bug */
	}
}
