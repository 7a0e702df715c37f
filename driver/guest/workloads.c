/* SPDX-License-Identifier: Apache-2.0 */
/* Workloads of the normal world: what memory is contested by, and what is slowed down or not. */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

/*
 * hog PERCENT [SECONDS]: fills that much of RAM with anonymous memory, keeps it for a while, and
 * checks that it holds what was written. "wrong" counts pages that do not.
 */
int hog_main(int argc, char **argv)
{
	size_t size = meminfo("MemTotal") / 100 * number(argc > 1 ? argv[1] : NULL, 50) & -PAGE;
	unsigned long seconds = number(argc > 2 ? argv[2] : NULL, 0), wrong = 0;
	uint64_t *words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double began = now();

	if (words == MAP_FAILED)
		return 1;
	for (size_t i = 0; i < size / 8; i += 64)
		words[i] = mixed(i);
	double filled = now();
	for (unsigned long left = seconds; left; left = sleep(left))
		;
	for (size_t page = 0; page < size / 8; page += PAGE / 8) {
		int good = 1;
		for (size_t i = page; i < page + PAGE / 8; i++)
			good &= words[i] == (i % 64 ? 0 : mixed(i));
		wrong += !good;
	}
	printf("{\"bytes\": %zu, \"seconds\": %.3f, \"wrong\": %lu}\n", size, filled - began, wrong);
	return wrong != 0;
}

/* A disk of zeros that takes no memory: a file with nothing in it, behind a loop device. */
static int open_disk(size_t size)
{
	static const char backing[] = "/tmp/disk";
	int file = open(backing, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int disk = open("/dev/loop0", O_RDWR | O_CLOEXEC);

	if (file < 0 || disk < 0 || ftruncate(file, size))
		return -1;
	if (ioctl(disk, LOOP_SET_FD, file) && errno != EBUSY)
		return -1;
	ioctl(disk, LOOP_SET_CAPACITY, 0);
	close(file);
	return disk;
}

/* churn MIB SECONDS: reads a disk of that size over and over, so that the page cache fills all RAM. */
int churn_main(int argc, char **argv)
{
	size_t size = number(argc > 1 ? argv[1] : NULL, 4096) * MIB, bytes = 0;
	double end = now() + number(argc > 2 ? argv[2] : NULL, 5);
	static char block[256 << 10];
	int disk = open_disk(size);

	if (disk < 0)
		return 1;
	while (now() < end) {
		ssize_t got = pread(disk, block, sizeof(block), bytes % size);
		if (got <= 0)
			return 1;
		bytes += got;
	}
	printf("{\"bytes\": %zu}\n", bytes);
	return 0;
}

/* memory MIB SECONDS: reads in an order that no cache or prefetcher guesses; reads a second. */
int memory_main(int argc, char **argv)
{
	size_t count = number(argc > 1 ? argv[1] : NULL, 64) * MIB / 8;
	double seconds = number(argc > 2 ? argv[2] : NULL, 3), began = now(), took;
	uint64_t *words = malloc(count * 8), at = 0, reads = 0;

	if (!words || !count)
		return 1;
	for (size_t i = 0; i < count; i++)
		words[i] = mixed(i);
	began = now();
	do {
		for (int i = 0; i < 100000; i++)
			at = (words[at % count] + i) % count;
		reads += 100000;
	} while ((took = now() - began) < seconds);
	printf("{\"per_second\": %.0f, \"end\": %lu}\n", reads / took, at);
	return 0;
}

/* syscalls SECONDS: the cheapest call there is; calls a second. */
int syscalls_main(int argc, char **argv)
{
	double seconds = number(argc > 1 ? argv[1] : NULL, 3), began = now(), took;
	uint64_t calls = 0;

	do {
		for (int i = 0; i < 10000; i++)
			syscall(SYS_getppid);
		calls += 10000;
	} while ((took = now() - began) < seconds);
	printf("{\"per_second\": %.0f}\n", calls / took);
	return 0;
}
