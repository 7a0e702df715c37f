/*
 * How the tests of the portable cores are written and run, the monitor's and the secure OS's. A file's tests register
 * themselves; the fake host of each core says what failed (host_fail).
 */
#ifndef CHECK_H
#define CHECK_H

#include "core/types.h"

_Noreturn void host_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

struct test {
	const char *name;
	void (*run)(void);
	struct test *next;
};

void check_register(struct test *test);

/* Run what the command line names, all of it without a name; or with --list, print the names. The process's status. */
int check_run(int count, char **arguments);

/* Tell which test failed: the fake hosts' witness. */
void check_witness(void);

/* TEST(a_name_that_is_a_sentence) { ... } */
#define TEST(what) \
	static void test_##what(void); \
	__attribute__((constructor)) static void register_##what(void) \
	{ \
		static struct test test = { #what, test_##what, NULL }; \
		check_register(&test); \
	} \
	static void test_##what(void)

#define CHECK(condition) \
	do { \
		if (!(condition)) \
			host_fail("%s:%d: %s", __FILE__, __LINE__, #condition); \
	} while (0)

#define CHECK_EQUAL(actual, wanted) \
	do { \
		long long actual_ = (long long)(actual), wanted_ = (long long)(wanted); \
		if (actual_ != wanted_) \
			host_fail("%s:%d: %s is %lld (%#llx), not %lld (%#llx)", __FILE__, __LINE__, #actual, actual_, \
				  (unsigned long long)actual_, wanted_, (unsigned long long)wanted_); \
	} while (0)

#endif
