/*
 * Long walks through a small machine, steered by libFuzzer: the bytes of an input are steps of both worlds, and
 * the laws of world.h are checked at each. Unlike exhaustive.c it merges no states, and takes any number for an
 * argument. No corpus is stored: `fuzz --seeds FOLDER` is a few walks that make sense.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/fake_host/fake_host.h"
#include "tests/world.h"

/* Next bytes of the input; zeros after its end. */
struct input {
	const u8 *at;
	size_t left;
};

static u8 byte(struct input *input)
{
	if (input->left == 0)
		return 0;
	input->left--;
	return *input->at++;
}

static u64 word(struct input *input)
{
	u64 value = 0;
	int i;

	for (i = 0; i < 8; i++)
		value = value << 8 | byte(input);
	return value;
}

/* Mostly a page that can change, sometimes anything. */
static u64 some_address(struct input *input)
{
	u8 choice = byte(input);

	if (choice == 0xff)
		return word(input);
	if (choice == 0xfe)
		return world.end - byte(input) * 0x800ULL;
	return world.base + choice % (SMALL_PAGES + 2) * (u64)FLEX_PAGE_BYTES;
}

static u64 some_count(struct input *input)
{
	u8 choice = byte(input);

	if (choice == 0xff)
		return word(input);
	if (choice == 0xfe)
		return FLEX_CALL_PAGES_MAX - 2 + byte(input) % 4;
	return choice % (SMALL_PAGES + 1);
}

static struct step some_call(struct input *input, enum step_kind kind)
{
	u8 number = byte(input);

	return (struct step){ kind, { number == 0xff ? word(input) : FLEX_SMC_BASE + number % (FLEX_CALL_NPU_STATE + 2),
				      some_address(input), some_count(input), 0 } };
}

static struct step some_command(struct input *input)
{
	u8 kind = byte(input);

	return (struct step){ STEP_COMMAND, { kind == 0xff ? word(input) : kind % (FLEX_COMMAND_NPU_RELEASE + 2),
					      some_address(input), some_count(input), byte(input) } };
}

static struct step some_step(struct input *input)
{
	u8 choice = byte(input) % 16;

	if (choice < 6)
		return some_call(input, STEP_CALL);
	if (choice < 11)
		return some_command(input);
	if (choice < 13)
		return (struct step){ STEP_READ, { 0 } };
	if (choice == 13)
		return some_call(input, STEP_CALL_LYING_HEAD + byte(input) % (STEP_CALL_FAILED + 1 - STEP_CALL_LYING_HEAD));
	if (choice == 14)
		return (struct step){ STEP_FAULT, { some_address(input) } };
	return (struct step){ STEP_RELAX_FAILS, { 0 } };
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
int LLVMFuzzerInitialize(int *count, char ***arguments);

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static u32 runs;
	struct input input = { data, size };
	struct step step;

	world_reset();
	while (input.left > 0) {
		step = some_step(&input);
		world_step(&step);
	}
	world_end();
	if (++runs % 64 == 0)
		world_check_rest();
	return 0;
}

/* ---- walks that make sense ---------------------------------------------------------------------------------- */

enum { CALL = 0, COMMAND = 6, READ = 11 };

#define POLL CALL, FLEX_CALL_POLL, 0, 0
#define ATTACH COMMAND, FLEX_COMMAND_ATTACH, 0, 0, 1, POLL, READ
#define GRANT(page, pages) CALL, FLEX_CALL_GRANT, page, pages, READ
#define COMMIT(page, pages) COMMAND, FLEX_COMMAND_COMMIT, page, pages, 2, POLL, READ
#define RECALL(page, pages) COMMAND, FLEX_COMMAND_RECALL, page, pages, 3, POLL, READ
#define TAKE(page, pages) CALL, FLEX_CALL_TAKE, page, pages, READ
#define GONE COMMAND, FLEX_COMMAND_GONE, 0, 0, 4, POLL

#define NPU_WANT COMMAND, FLEX_COMMAND_NPU_WANT, 0, 0, 5, POLL
#define NPU_GRANT(page, bytes) CALL, FLEX_CALL_NPU_GRANT, page, bytes, POLL, READ
#define NPU_DRIVE COMMAND, FLEX_COMMAND_NPU_DRIVE, 0, 0, 6, POLL, READ
#define NPU_RELEASE COMMAND, FLEX_COMMAND_NPU_RELEASE, 0, 0, 7, POLL, READ

static const u8 there_and_back[] = { ATTACH, GRANT(0, 3), COMMIT(0, 3), RECALL(0, 2), TAKE(0, 2), RECALL(2, 1), TAKE(2, 1) };
static const u8 death[] = { ATTACH, GRANT(0, 4), COMMIT(1, 2), GONE, TAKE(1, 2), CALL, FLEX_CALL_RETURN, 0, 1, ATTACH };
static const u8 on_demand[] = { ATTACH, GONE, CALL, FLEX_CALL_RELAX, 0, 0, ATTACH, GRANT(3, 1) };

static const u8 with_npu[] = { ATTACH, GRANT(0, 3), COMMIT(0, 3), NPU_WANT, NPU_GRANT(4, 8), NPU_DRIVE, RECALL(0, 2),
			       TAKE(0, 2), NPU_RELEASE, NPU_WANT, NPU_GRANT(4, 8), GONE };

static void write_seed(const char *folder, const char *name, const u8 *bytes, size_t count)
{
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "wb");
	if (!file || fwrite(bytes, 1, count, file) != count || fclose(file) != 0)
		host_fail("cannot write %s", path);
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
	world_make();
	if (*count != 3 || strcmp((*arguments)[1], "--seeds") != 0)
		return 0;
	write_seed((*arguments)[2], "there-and-back", there_and_back, sizeof(there_and_back));
	write_seed((*arguments)[2], "death", death, sizeof(death));
	write_seed((*arguments)[2], "on-demand", on_demand, sizeof(on_demand));
	write_seed((*arguments)[2], "with-npu", with_npu, sizeof(with_npu));
	exit(0);
}
