/*
 * Two CPUs of the OS and the secure world at once, on pages that they fight over. Nobody can say what a call will
 * answer then; that the laws hold at each moment is checked all the same (watch() in unit.c, under the lock), and
 * at the end everything is brought back and counted.
 */
#include "tests/unit.h"

#include <pthread.h>

#define ROUNDS 4000
#define PAGES 64 /* that they fight over */

static bool over;

static u32 next_random(u32 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* os() has one place for its results: this has its own. */
static u64 quick(u64 call, u64 a, u64 b, u64 *kind)
{
	u64 x[MONITOR_REGISTERS] = { FLEX_SMC_BASE + call, a, b, 0, 0 };

	monitor_call(x);
	*kind = x[1];
	return x[0];
}

static void *os_cpu(void *seed)
{
	static const u64 calls[] = { FLEX_CALL_GRANT, FLEX_CALL_GRANT, FLEX_CALL_TAKE, FLEX_CALL_TAKE, FLEX_CALL_RETURN,
				     FLEX_CALL_POLL, FLEX_CALL_POLL, FLEX_CALL_STATE, FLEX_CALL_RELAX, FLEX_CALL_NPU_GRANT,
				     FLEX_CALL_NPU_ASK };
	u32 random = *(u32 *)seed, i;
	u64 kind;

	for (i = 0; i < ROUNDS; i++) {
		u64 call = calls[next_random(&random) % (sizeof(calls) / sizeof(calls[0]))];
		u64 page = page_at(1 + next_random(&random) % PAGES);

		quick(call, page, 1 + next_random(&random) % 3, &kind);
		if (next_random(&random) % 8 == 0)
			monitor_fault(page);
	}
	return NULL;
}

/* The secure world has no lock of ours on a real machine; here it takes it, so that a thread sanitizer sees only us. */
static void *secure_core(void *seed)
{
	static const u64 commands[] = { FLEX_COMMAND_COMMIT, FLEX_COMMAND_RECALL, FLEX_COMMAND_COMMIT, FLEX_COMMAND_RECALL,
					FLEX_COMMAND_NPU_WANT, FLEX_COMMAND_NPU_DRIVE, FLEX_COMMAND_NPU_RELEASE };
	u32 random = *(u32 *)seed;
	bool stop;

	do {
		arch_lock();
		stop = over;
		while (event().kind)
			;
		if (*field(FLEX_AT_COMMAND_HEAD) - *field(FLEX_AT_COMMAND_TAIL) < 8)
			command(next_random(&random) % 50 == 0 ? FLEX_COMMAND_GONE :
				next_random(&random) % 10 == 0 ? FLEX_COMMAND_ATTACH :
								 commands[next_random(&random) % 7],
				page_at(1 + next_random(&random) % PAGES), 1 + next_random(&random) % 2, 1);
		arch_unlock();
	} while (!stop);
	return NULL;
}

static void bring_everything_back(void)
{
	u64 i, kind;

	while (event().kind)
		;
	do {
		quick(FLEX_CALL_POLL, 0, 0, &kind);
		while (event().kind)
			;
	} while (kind != FLEX_NOTICE_NONE);
	command(FLEX_COMMAND_GONE, 0, 0, 0);
	do
		quick(FLEX_CALL_POLL, 0, 0, &kind);
	while (kind != FLEX_NOTICE_NONE);
	for (i = 1; i <= PAGES + 2; i++) {
		quick(FLEX_CALL_TAKE, page_at(i), 1, &kind);
		quick(FLEX_CALL_RETURN, page_at(i), 1, &kind);
	}
}

TEST(two_cpus_and_the_secure_world_at_once_keep_the_laws)
{
	static u32 seeds[] = { 0x1234567, 0x89abcde, 0x5ca1ab1e };
	pthread_t threads[3];

	boot(RAM_SMALL);
	host.watched_first = page_number(PAGES + 4);
	host.watched_count = PAGES + 8;
	attach();
	over = false;
	pthread_create(&threads[0], NULL, os_cpu, &seeds[0]);
	pthread_create(&threads[1], NULL, os_cpu, &seeds[1]);
	pthread_create(&threads[2], NULL, secure_core, &seeds[2]);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	arch_lock();
	over = true;
	arch_unlock();
	pthread_join(threads[2], NULL);
	bring_everything_back();
	CHECK_EQUAL(pages_count(FLEX_STATE_NORMAL), (RAM_SMALL - FLEX_HIDDEN_BYTES) / FLEX_PAGE_BYTES);
	CHECK_EQUAL(os(FLEX_CALL_RELAX, 0, 0), FLEX_STATUS_OK);
}
