/* The application's file: what it may be, and what becomes of it. */
#include "tests/unit.h"

#include <stdlib.h>
#include <string.h>

/* Start the machine with the file as it is; whether the application runs. */
static bool starts(void)
{
	struct machine machine = host_machine();

	host.root = kernel_init(&machine);
	return lend(0);
}

static void prepare(void)
{
	host_make();
	file_make();
}

static bool refused(enum ending why)
{
	return !starts() && nexts[0].yield == YIELD_ENDED && (nexts[0].argument & 0xff) == why;
}

static void set(u32 offset, u64 value, u32 bytes)
{
	memcpy(file_header() + offset, &value, bytes);
}

TEST(code_is_run_where_it_lies_and_data_are_copied)
{
	u8 data[DATA_BYTES];

	boot();
	CHECK_EQUAL(frames[0].pc, TEXT + 0x200);
	CHECK_EQUAL(tables_reach(TEXT, false), HOST_APPLICATION);
	CHECK_EQUAL(tables_reach(TEXT, true), 0);
	CHECK(user_read(data, DATA, sizeof(data)));
	CHECK(memcmp(data, host.flash + 0x1000, DATA_BYTES - 1) == 0);
	CHECK_EQUAL(data[DATA_BYTES - 1], 0); /* not of the file any more */
	CHECK_EQUAL(host_reach(tables_reach(DATA, true)), 3);
	CHECK(tables_reach(DATA + DATA_BYTES, true) != 0);
}

TEST(the_stack_says_what_the_c_library_wants_to_know)
{
	u64 words[22], i, random[2] = { 0 };
	u32 found = 0;
	char name[12];

	boot();
	CHECK_EQUAL(frames[0].sp % 16, 0);
	CHECK(user_read(words, frames[0].sp, sizeof(words)));
	CHECK_EQUAL(words[0], 1);
	CHECK(user_read(name, words[1], sizeof(name)) && strcmp(name, "application") == 0);
	CHECK(words[2] == 0 && words[3] == 0);
	for (i = 4; i < 22 && words[i] != 0; i += 2) {
		found++;
		if (words[i] == 3)
			CHECK_EQUAL(words[i + 1], TEXT + 64);
		if (words[i] == 9)
			CHECK_EQUAL(words[i + 1], TEXT + 0x200);
		if (words[i] == 16)
			CHECK_EQUAL(words[i + 1], 0x1007fb);
		if (words[i] == 25)
			CHECK(user_read(random, words[i + 1], sizeof(random)));
	}
	CHECK_EQUAL(found, 8);
	CHECK(random[0] != 0 && random[1] != 0 && random[0] != random[1]);
}

TEST(without_a_file_the_machine_goes_on_without_an_application)
{
	host_make();
	CHECK(refused(ENDING_NONE));
	CHECK_EQUAL(host.doorbells, 0);
	CHECK_EQUAL(*(u32 *)(void *)(host.mailbox + FLEX_AT_COMMAND_HEAD), 0);
}

TEST(files_of_another_kind_are_refused)
{
	static const struct { u32 offset; u64 value; u32 bytes; } lies[] = {
		{ 4, 1, 1 }, { 5, 2, 1 }, { 16, 3, 2 }, { 18, 62, 2 }, /* 32 bits, big-endian, to be relocated, of another CPU */
		{ 54, 55, 2 }, { 56, 0, 2 }, { 56, 17, 2 }, { 56, 0xffff, 2 },
		{ 32, 65, 8 }, { 32, ~0ULL << 3, 8 }, { 32, APPLICATION_BYTES_MAX - 8, 8 }, { 32, APPLICATION_BYTES_MAX + 8, 8 },
		{ 24, 0, 8 }, { 24, TEXT - PAGE, 8 }, { 24, ~0ULL, 8 },
	};
	u32 i;

	for (i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		prepare();
		set(lies[i].offset, lies[i].value, lies[i].bytes);
		CHECK(refused(ENDING_BAD));
	}
}

TEST(segments_that_cannot_be_are_refused)
{
	static const struct segment lies[] = {
		{ 1, 7, 0x1000, DATA, 0, 0x1000, 0x1000, 0 }, /* written and run */
		{ 1, 6, APPLICATION_BYTES_MAX, DATA, 0, 1, 1, 0 }, /* behind the file */
		{ 1, 6, ~0ULL, DATA, 0, 0x1000, 0x1000, 0 },
		{ 1, 6, 0x1000, DATA, 0, ~0ULL, ~0ULL, 0 },
		{ 1, 6, 0x1000, DATA, 0, 0x1000, 0xfff, 0 }, /* less memory than file */
		{ 1, 6, 0x1000, DATA, 0, 0, 0, 0 },
		{ 1, 6, 0x1000, 0, 0, 0x1000, 0x1000, 0 }, /* at addresses that are not for it */
		{ 1, 6, 0x1000, IMAGE_FIRST - 1, 0, 0x1000, 0x1000, 0 },
		{ 1, 6, 0x1000, IMAGE_END - 1, 0, 0x1000, 0x1000, 0 },
		{ 1, 6, 0x1000, ~0ULL, 0, 0x1000, 0x1000, 0 },
		{ 1, 6, 0x1000, STACK_END - PAGE, 0, 0x1000, 0x1000, 0 },
		{ 1, 6, 0x1000, TEXT + 0x800, 0, 0x1000, 0x1000, 0 }, /* over another one */
		{ 1, 4, 0x1000, TEXT, 0, 0x1000, 0x1000, 0 },
		{ 1, 5, 0x1001, DATA, 0, 0x1000, 0x1000, 0 }, /* run, and not where it lies */
		{ 3, 4, 0x1000, DATA, 0, 0x1000, 0x1000, 0 }, /* to be started by another program */
	};
	u32 i;

	for (i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		prepare();
		*file_segment(1) = lies[i];
		CHECK(refused(ENDING_BAD));
	}
}

TEST(data_that_no_memory_is_there_for_are_refused)
{
	prepare();
	file_segment(1)->memory_bytes = HOST_SECURE_PAGES * PAGE;
	CHECK(refused(ENDING_LARGE));
	prepare();
	file_segment(1)->memory_bytes = IMAGE_END - DATA;
	CHECK(refused(ENDING_LARGE));
}

TEST(constants_that_do_not_lie_on_pages_are_copied_and_stay_constant)
{
	u8 byte = 0;

	prepare();
	*file_segment(1) = (struct segment){ 1, 4, 0x1001, DATA, DATA, 100, 100, 0 };
	CHECK(starts());
	CHECK(user_read(&byte, DATA, 1) && byte == host.flash[0x1001]);
	CHECK(!user_write(DATA, &byte, 1));
}

TEST(no_file_however_broken_stops_the_machine)
{
	u32 i, j, at;

	srandom(1);
	for (i = 0; i < 120; i++) {
		prepare();
		for (j = 0; j < 1 + (u32)random() % 4; j++) {
			at = (u32)random() % (64 + 2 * 56);
			if (at >= 6)
				file_header()[at] = (u8)random();
		}
		if (starts())
			CHECK(tables_reach(frames[0].pc, false) != 0);
		else
			CHECK_EQUAL(nexts[0].yield, YIELD_ENDED);
	}
}
