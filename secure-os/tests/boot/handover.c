/* Memory of the OS, under the real monitor: asked for, granted, committed, mapped, used and given back; and two cores compute. */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "flex.h"
#include "flex_secure.h"

#define PAGE 4096
#define WANTED 600 /* pages: more than one call names */
#define PATIENCE 100000000L /* nanoseconds of one wait */
#define TRIES 300

#define CHECK(condition)                                                         \
	do {                                                                     \
		if (!(condition)) {                                              \
			printf("handover: line %d: %s, %d\n", __LINE__, #condition, errno); \
			exit(40);                                                \
		}                                                                \
	} while (0)

struct event {
	uint64_t kind, a, b, c;
};

static struct {
	uint64_t page, pages;
} granted[WANTED];
static uint64_t grants, total;

static void command(uint64_t kind, uint64_t a, uint64_t b, uint64_t c)
{
	int tries;

	for (tries = 0; tries < TRIES; tries++) {
		if (syscall(FLEX_SECURE_COMMAND, kind, a, b, c) == 0)
			return;
		CHECK(errno == EAGAIN);
		syscall(FLEX_SECURE_WAIT, PATIENCE / 10);
	}
	CHECK(!"a command is taken");
}

/* Wait for an event of a kind; grants that come meanwhile are kept. */
static struct event event(uint64_t kind)
{
	struct event event;
	int tries;

	for (tries = 0; tries < TRIES; tries++) {
		while (syscall(FLEX_SECURE_EVENT, &event) == 1) {
			if (event.kind == FLEX_EVENT_GRANTED && grants < WANTED) {
				granted[grants].page = event.a / PAGE;
				granted[grants++].pages = event.b;
				total += event.b;
			}
			if (event.kind == kind)
				return event;
		}
		syscall(FLEX_SECURE_WAIT, PATIENCE);
	}
	CHECK(!"an event comes");
	return event;
}

static void use(uint64_t page, uint64_t pages, uint64_t serial)
{
	unsigned char *range = (unsigned char *)syscall(FLEX_SECURE_RESERVE, pages * PAGE);
	uint64_t i;

	CHECK(range != (unsigned char *)-1);
	CHECK(syscall(FLEX_SECURE_MAP, range, page, pages) == -1); /* it is GRANTED only */
	command(FLEX_COMMAND_COMMIT, page * PAGE, pages, serial);
	CHECK(event(FLEX_EVENT_DONE).b == FLEX_STATUS_OK);
	CHECK(syscall(FLEX_SECURE_MAP, range, page, pages) == 0);
	for (i = 0; i < pages * PAGE; i++)
		range[i] = (unsigned char)(i * 7 + serial);
	for (i = 0; i < pages * PAGE; i++)
		CHECK(range[i] == (unsigned char)(i * 7 + serial));
	CHECK(syscall(FLEX_SECURE_UNMAP, range, pages) == 0);
	command(FLEX_COMMAND_RECALL, page * PAGE, pages, serial);
	CHECK(event(FLEX_EVENT_DONE).b == FLEX_STATUS_OK);
}

static void *compute(void *sum)
{
	double value = 1;
	int i;

	for (i = 0; i < 3000000; i++)
		value = value * 1.0000001 + 1e-9;
	*(double *)sum = value;
	return NULL;
}

/* One message each way, if the OS has a ring. */
static void talk(void)
{
	volatile uint64_t *words;
	uint64_t address, bytes;

	if (syscall(FLEX_SECURE_RING, &address, &bytes) != 0)
		return;
	words = (volatile uint64_t *)address;
	while (words[0] == 0)
		syscall(FLEX_SECURE_WAIT, ~0UL);
	words[1] = 2 * words[0];
}

int main(void)
{
	pthread_t other;
	double sums[2];
	uint64_t i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	CHECK(pthread_create(&other, NULL, compute, &sums[0]) == 0);
	compute(&sums[1]);
	CHECK(pthread_join(other, NULL) == 0 && sums[0] == sums[1]);
	puts("handover: two cores computed the same");
	command(FLEX_COMMAND_ATTACH, 1, 0, 0);
	event(FLEX_EVENT_ATTACHED);
	command(FLEX_COMMAND_WANT, 7, WANTED, 1);
	event(FLEX_EVENT_ANSWER);
	CHECK(total > 0);
	for (i = 0; i < grants; i++)
		use(granted[i].page, granted[i].pages, 100 + i);
	printf("handover: %llu pages were used and given back\n", (unsigned long long)total);
	command(FLEX_COMMAND_GONE, 1, 0, 0);
	talk();
	return 0;
}
