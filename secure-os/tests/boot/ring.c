/* Messages with the OS, through memory that is the OS's: a number comes, its double goes, until a 0 comes. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "flex_secure.h"

int main(void)
{
	volatile uint64_t *words;
	uint64_t address, bytes, last = 0, now;

	while (syscall(FLEX_SECURE_RING, &address, &bytes) != 0) {
		if (errno != ENOENT)
			return 50;
		syscall(FLEX_SECURE_WAIT, ~0UL);
	}
	words = (volatile uint64_t *)address;
	for (;;) {
		now = words[0];
		if (now == 0)
			return (int)(bytes / 4096);
		if (now != last)
			words[1] = 2 * now;
		last = now;
		syscall(FLEX_SECURE_WAIT, ~0UL);
	}
}
