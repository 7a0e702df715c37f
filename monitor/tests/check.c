/* unit            run every test
 * unit --list     name them
 * unit NAME       run those whose names begin so
 */
#include "tests/check.h"

#include <stdio.h>
#include <string.h>

static struct test *tests;
static const struct test *running;

void check_register(struct test *test)
{
	struct test **last = &tests;

	while (*last)
		last = &(*last)->next;
	*last = test;
}

void check_witness(void)
{
	fprintf(stderr, "in %s\n", running->name);
}

int check_run(int count, char **arguments)
{
	const char *wanted = count > 1 ? arguments[1] : "";
	bool list = strcmp(wanted, "--list") == 0;
	u32 ran = 0;

	for (running = tests; running; running = running->next)
		if (list) {
			puts(running->name);
		} else if (strncmp(running->name, wanted, strlen(wanted)) == 0) {
			running->run();
			ran++;
		}
	if (!list)
		printf("%u tests passed\n", ran);
	return 0;
}
