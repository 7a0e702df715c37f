/* SPDX-License-Identifier: Apache-2.0 */
/*
 * application: the file of the trusted application as a process of this system, which protects nothing. It is driven
 * through the ring that the driver has for the secure world, which must not run then.
 */
#include <unistd.h>

#include "guest.h"

int application_main(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	execl("/bin/trusted-app", "trusted-app", "/sys/kernel/debug/flexmem/ring", NULL);
	return 127;
}
