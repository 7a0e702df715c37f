/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has the machine's disk: passes commands, which come as lines over the virtio port "disk", to the driver, and
 * says what came of them (driver/flexmem/disk.c). It does nothing else, and nobody waits for it but who asked.
 */
#include "agent.h"
#include "guest.h"

static void pass_on(char *line)
{
	tell("/sys/kernel/debug/flexmem/disk", line);
}

int disk_main(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return serve("disk", pass_on);
}
