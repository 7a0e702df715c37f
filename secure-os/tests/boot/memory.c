/* Memory: what is not there is refused, what is given is the heap's, chunks come and go, and code cannot be made. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "flex.h"
#include "flex_secure.h"

#define PAGE 4096
#define FIRST (0x40000000 / PAGE + 0x1000) /* as shim.S has it */
#define PAGES 0x8000

#define CHECK(condition)                                         \
	do {                                                     \
		if (!(condition)) {                              \
			printf("line %d: %s\n", __LINE__, #condition); \
			exit(20);                                \
		}                                                \
	} while (0)

static void chunks(void)
{
	char *range = (char *)syscall(FLEX_SECURE_RESERVE, 4 * PAGE);

	CHECK(range != (char *)-1);
	CHECK(syscall(FLEX_SECURE_MAP, range, FIRST - 1, 2) == -1); /* one is not SECURE */
	CHECK(syscall(FLEX_SECURE_MAP, range, FIRST, 4) == 0);
	CHECK(syscall(FLEX_SECURE_GIVE, FIRST, 1) == -1);
	memset(range, 0x5a, 4 * PAGE);
	CHECK(syscall(FLEX_SECURE_COMMAND, FLEX_COMMAND_RECALL, (uint64_t)FIRST * PAGE, 1, 1) == -1);
	CHECK(syscall(FLEX_SECURE_UNMAP, range, 4) == 0);
	CHECK(syscall(FLEX_SECURE_MAP, range + PAGE, FIRST, 1) == 0);
	CHECK(range[PAGE] == 0x5a);
	CHECK(syscall(FLEX_SECURE_UNMAP, range + PAGE, 1) == 0);
	CHECK(munmap(range, 4 * PAGE) == 0);
}

static void heap(void)
{
	uint64_t first;
	long page, i;
	char *large;

	CHECK(malloc(100 << 20) == NULL);
	for (page = 0; page < PAGES; page += 512)
		CHECK(syscall(FLEX_SECURE_GIVE, FIRST + page, 512) == 0);
	large = malloc(100 << 20);
	CHECK(large != NULL);
	for (i = 0; i < 100 << 20; i += PAGE)
		CHECK(large[i + 64] == 0);
	memset(large, 1, 100 << 20);
	free(large);
	CHECK(syscall(FLEX_SECURE_TAKE, 512, &first) > 0);
	CHECK(first >= FIRST && first < FIRST + PAGES);
}

int main(void)
{
	unsigned char a[16], b[16];
	uint64_t ring[2];
	struct flex_secure_protection protection;

	CHECK(getrandom(a, 16, 0) == 16 && getrandom(b, 16, 0) == 16 && memcmp(a, b, 16) != 0);
	CHECK(mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
	CHECK(syscall(FLEX_SECURE_PROTECTION, &protection) == FLEX_SECURE_ON);
	chunks();
	heap();
	CHECK(syscall(FLEX_SECURE_WAIT, 1000) == 0);
	CHECK(syscall(FLEX_SECURE_RING, &ring[0], &ring[1]) == 0 && ring[1] == PAGE);
	memset((void *)ring[0], 1, PAGE);
	puts("memory: well");
	return 0;
}
