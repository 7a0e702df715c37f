/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest.h"

static const struct {
	const char *name;
	int (*main)(int argc, char **argv);
} programs[] = {
	{ "hog", hog_main },	       { "churn", churn_main }, { "memory", memory_main },
	{ "syscalls", syscalls_main }, { "btree", btree_main }, { "touch", touch_main },
	{ "npu", npu_main },	       { "disk", disk_main },	{ "trace", trace_main },
	{ "application", application_main },
};

int main(int argc, char **argv)
{
	if (getpid() == 1)
		return init_main();
	if (argc > 1 && !strcmp(argv[1], "agent"))
		return agent_main();
	for (size_t i = 0; argc > 1 && i < sizeof(programs) / sizeof(*programs); i++)
		if (!strcmp(argv[1], programs[i].name))
			return programs[i].main(argc - 1, argv + 1);
	fprintf(stderr, "no such program\n");
	return 127;
}
