/* SPDX-License-Identifier: Apache-2.0 */
/*
 * call FUNCTION: makes a secure monitor call with this function in x0, as a kernel may and a program may not. "signal"
 * says what stopped it, "value" what x0 was afterwards when nothing did.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>

#include "guest.h"

static sigjmp_buf stopped;

static void on_signal(int signal)
{
	siglongjmp(stopped, signal);
}

int call_main(int argc, char **argv)
{
	register unsigned long x0 __asm__("x0");
	unsigned long value = number(argc > 1 ? argv[1] : NULL, 0);

	signal(SIGILL, on_signal);
	int caught = sigsetjmp(stopped, 1);
	if (!caught) {
		x0 = value;
		__asm__ volatile("smc #0" : "+r"(x0)::"x1", "x2", "x3", "x4", "memory");
		value = x0;
	}
	printf("{\"signal\": %d, \"value\": %lu}\n", caught, value);
	return 0;
}
