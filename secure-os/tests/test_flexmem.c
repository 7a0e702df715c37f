/* Flex-Mem: which pages are mapped, and what may be asked of the monitor. */
#include "tests/unit.h"

#include <string.h>

#define SOME 300 /* the page that the tests use */

static u64 chunks(u64 pages)
{
	s64 va = call(FLEX_SECURE_RESERVE, pages * PAGE, 0, 0, 0);

	CHECK(va > 0);
	return (u64)va;
}

static s64 map(u64 va, u64 index, u64 count)
{
	return call(FLEX_SECURE_MAP, va, page(index), count, 0);
}

static s64 command(u64 kind, u64 index, u64 count)
{
	return call(FLEX_SECURE_COMMAND, kind, page(index) * PAGE, count, 1);
}

static u32 *word(u32 offset)
{
	return (u32 *)(void *)(host.mailbox + offset);
}

static u64 *slot(u32 ring, u32 number)
{
	return (u64 *)(void *)(host.mailbox + FLEX_MAILBOX_HEADER_BYTES +
			       (ring * FLEX_MAILBOX_SLOTS + number % FLEX_MAILBOX_SLOTS) * (u64)FLEX_MAILBOX_SLOT_BYTES);
}

/* The monitor takes all commands out. */
static void monitor_obeys(void)
{
	*word(FLEX_AT_COMMAND_TAIL) = *word(FLEX_AT_COMMAND_HEAD);
}

static void event(u64 kind, u64 a)
{
	u64 *to = slot(1, *word(FLEX_AT_EVENT_HEAD));

	to[0] = kind;
	to[1] = a;
	++*word(FLEX_AT_EVENT_HEAD);
}

TEST(secure_pages_are_mapped_to_be_written_and_never_run)
{
	u64 va, number = 5;

	boot();
	va = chunks(2);
	CHECK(!user_write(va, &number, 8));
	set_state(SOME, 2, FLEX_STATE_SECURE);
	CHECK_EQUAL(map(va, SOME, 2), 0);
	CHECK(user_write(va + PAGE, &number, 8));
	CHECK_EQUAL(*(u64 *)(void *)(host.ram + (SOME + 1) * PAGE), 5);
	CHECK_EQUAL(host_reach(page(SOME) * PAGE), 3);
	CHECK_EQUAL(call(FLEX_SECURE_UNMAP, va, 2, 0, 0), 0);
	CHECK_EQUAL(host_reach(page(SOME) * PAGE), 0);
	CHECK(!user_write(va, &number, 8));
}

TEST(pages_in_any_other_state_are_refused_and_none_is_mapped)
{
	static const enum flex_state states[] = { FLEX_STATE_NORMAL, FLEX_STATE_GRANTED, FLEX_STATE_RECALLING, FLEX_STATE_MONITOR };
	u32 i, at;
	u64 va;

	boot();
	va = chunks(3);
	for (i = 0; i < 4; i++)
		for (at = 0; at < 3; at++) {
			set_state(SOME, 3, FLEX_STATE_SECURE);
			set_state(SOME + at, 1, states[i]);
			CHECK_EQUAL(map(va, SOME, 3), ERROR_PERM);
			CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(SOME), 3, 0, 0), ERROR_PERM);
			CHECK_EQUAL(tables_page(va), 0);
		}
}

TEST(a_page_serves_one_purpose_at_a_time)
{
	u64 va, ring[2];

	boot();
	va = chunks(8);
	set_state(SOME, 8, FLEX_STATE_SECURE);
	CHECK_EQUAL(map(va, SOME, 2), 0);
	CHECK_EQUAL(map(va + 2 * PAGE, SOME + 1, 1), ERROR_PERM);
	CHECK_EQUAL(map(va, SOME + 2, 1), ERROR_INVAL); /* something is there */
	CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(SOME + 1), 1, 0, 0), ERROR_PERM);
	CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(SOME + 2), 1, 0, 0), 0);
	CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(SOME + 2), 1, 0, 0), ERROR_PERM);
	CHECK_EQUAL(map(va + 2 * PAGE, SOME + 2, 1), ERROR_PERM);
	host.ring_page = page(SOME + 1); /* the OS names a page that is in use */
	host.ring_pages = 1;
	lend(1);
	CHECK_EQUAL(call(FLEX_SECURE_RING, DATA, DATA + 8, 0, 0), ERROR_NOENT);
	host.ring_page = page(SOME + 4);
	host.ring_pages = 2;
	lend(1);
	CHECK_EQUAL(call(FLEX_SECURE_RING, DATA, DATA + 8, 0, 0), 0);
	CHECK(user_read(ring, DATA, sizeof(ring)) && ring[0] == RING_AT && ring[1] == 2 * PAGE);
	CHECK_EQUAL(map(va + 2 * PAGE, SOME + 4, 1), ERROR_PERM); /* it would be in the clear */
	CHECK_EQUAL(command(FLEX_COMMAND_COMMIT, SOME + 5, 1), ERROR_BUSY);
	host.ring_page = page(SOME + 6);
	host.ring_pages = 2;
	lend(1);
	CHECK_EQUAL(call(FLEX_SECURE_RING, DATA, DATA + 8, 0, 0), 0); /* the first one stays */
	CHECK_EQUAL(tables_reach(RING_AT, true), page(SOME + 4) * PAGE);
}

TEST(rings_that_cannot_be_are_none)
{
	static const u64 lies[][2] = {
		{ 0, 1 }, { 300, RING_PAGES_MAX + 1 }, { HOST_PAGES - 1, 1 }, { HOST_PAGES - FLEX_HIDDEN_BYTES / PAGE, 1 }, { 300, 0 },
		{ ~0ULL, 2 }, { HOST_PAGES - FLEX_HIDDEN_BYTES / PAGE - 1, 2 },
	};
	u32 i;

	boot();
	for (i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		host.ring_page = i == 0 ? lies[i][0] : page(lies[i][0]);
		host.ring_pages = lies[i][1];
		lend(1);
		CHECK_EQUAL(call(FLEX_SECURE_RING, DATA, DATA + 8, 0, 0), ERROR_NOENT);
		CHECK_EQUAL(tables_page(RING_AT), 0);
	}
}

TEST(addresses_and_pages_that_cannot_be_are_refused)
{
	u64 va, i;

	boot();
	va = chunks(600);
	set_state(0, HOST_PAGES, FLEX_STATE_SECURE);
	const u64 bad[][3] = {
		{ va + 1, page(0), 1 }, { va, page(0), 0 }, { va, page(0), 513 }, { va, page(0), ~0ULL }, { va + 599 * PAGE, page(0), 2 },
		{ DATA, page(0), 1 }, { 0, page(0), 1 }, { ~0ULL << 12, page(0), 2 }, { va, 0, 1 }, { va, ~0ULL, 2 }, { va, page(0) - 1, 2 },
		{ va, page(HOST_PAGES) - 1, 1 }, { va, page(HOST_PAGES - FLEX_HIDDEN_BYTES / PAGE), 1 }, { va, HOST_SECURE / PAGE, 1 },
		{ va, page(0) | 1ULL << 52, 1 },
	};
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_EQUAL(call(FLEX_SECURE_MAP, bad[i][0], bad[i][1], bad[i][2], 0), ERROR_INVAL);
	CHECK_EQUAL(map(va, 0, 512), 0);
	CHECK_EQUAL(call(FLEX_SECURE_UNMAP, DATA, 1, 0, 0), ERROR_INVAL);
	CHECK_EQUAL(call(FLEX_SECURE_UNMAP, va + 1, 1, 0, 0), ERROR_INVAL);
	CHECK_EQUAL(call(FLEX_SECURE_UNMAP, va, ~0ULL >> 12, 0, 0), ERROR_INVAL);
	CHECK_EQUAL(call(FLEX_SECURE_RESERVE, 0, 0, 0, 0), ERROR_INVAL);
	CHECK_EQUAL(call(FLEX_SECURE_RESERVE, ~0ULL, 0, 0, 0), ERROR_INVAL);
	CHECK_EQUAL(call(LINUX_MUNMAP, va, 600 * PAGE, 0, 0), ERROR_INVAL); /* chunks are there */
	CHECK_EQUAL(call(LINUX_MPROTECT, va, PAGE, 1, 0), ERROR_INVAL);
	CHECK_EQUAL(call(LINUX_MUNMAP, va + 512 * PAGE, 88 * PAGE, 0, 0), 0);
}

TEST(a_page_that_is_mapped_cannot_be_recalled_nor_the_world_left)
{
	u64 va;

	boot();
	va = chunks(1);
	set_state(SOME, 3, FLEX_STATE_SECURE);
	CHECK_EQUAL(map(va, SOME + 1, 1), 0);
	CHECK_EQUAL(command(FLEX_COMMAND_RECALL, SOME, 3), ERROR_BUSY);
	CHECK_EQUAL(command(FLEX_COMMAND_RECALL, SOME + 1, 1), ERROR_BUSY);
	CHECK_EQUAL(command(FLEX_COMMAND_GONE, 0, 0), ERROR_BUSY);
	CHECK_EQUAL(*word(FLEX_AT_COMMAND_HEAD), 0);
	CHECK_EQUAL(call(FLEX_SECURE_UNMAP, va, 1, 0, 0), 0);
	CHECK_EQUAL(command(FLEX_COMMAND_RECALL, SOME, 3), 0);
	CHECK(slot(0, 0)[0] == FLEX_COMMAND_RECALL && slot(0, 0)[1] == page(SOME) * PAGE && slot(0, 0)[2] == 3 && slot(0, 0)[3] == 1);
	CHECK_EQUAL(host.doorbells, 1);
}

TEST(nothing_is_mapped_while_a_recall_is_under_way)
{
	u64 va;

	boot();
	va = chunks(2);
	set_state(SOME, 2, FLEX_STATE_SECURE);
	CHECK_EQUAL(command(FLEX_COMMAND_RECALL, SOME, 1), 0);
	CHECK_EQUAL(map(va, SOME, 1), ERROR_AGAIN); /* the monitor's table says SECURE, and will not for long */
	CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(SOME), 1, 0, 0), ERROR_AGAIN);
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 0, 1), 0);
	*word(FLEX_AT_COMMAND_TAIL) = 0xfffffff0; /* nonsense */
	CHECK_EQUAL(map(va, SOME + 1, 1), ERROR_AGAIN);
	*word(FLEX_AT_COMMAND_TAIL) = 1; /* the RECALL, not yet the WANT */
	set_state(SOME, 1, FLEX_STATE_RECALLING);
	CHECK_EQUAL(map(va, SOME, 1), ERROR_PERM);
	CHECK_EQUAL(map(va, SOME + 1, 1), 0);
}

/* The monitor begins a GONE, and recalls what is SECURE in the POLLs that follow. It reads the next command afterwards. */
TEST(nothing_is_mapped_after_a_gone_until_the_command_behind_it_was_read)
{
	u64 va;

	boot();
	va = chunks(1);
	set_state(SOME, 1, FLEX_STATE_SECURE);
	CHECK_EQUAL(command(FLEX_COMMAND_GONE, 0, 0), 0);
	monitor_obeys();
	CHECK_EQUAL(map(va, SOME, 1), ERROR_AGAIN);
	CHECK_EQUAL(command(FLEX_COMMAND_ATTACH, 0, 0), 0);
	CHECK_EQUAL(map(va, SOME, 1), ERROR_AGAIN);
	monitor_obeys();
	CHECK_EQUAL(map(va, SOME, 1), 0);
}

static void switched_off(void)
{
	host.protection.state = FLEX_SECURE_OFF;
	host.protection.switches++;
	host.on_protection = NULL;
}

static void switched_off_and_on(void)
{
	static u32 asked;

	if (++asked % 2 == 1)
		return; /* after the first answer … */
	host.protection.switches += 2; /* … and before the second one */
}

TEST(while_protection_is_off_nothing_in_memory_is_believed)
{
	u64 va;

	boot();
	va = chunks(1);
	set_state(SOME, 1, FLEX_STATE_SECURE); /* written by the OS */
	host.on_protection = switched_off;
	CHECK_EQUAL(map(va, SOME, 1), ERROR_PERM);
	event(FLEX_EVENT_GRANTED, 1);
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, DATA, 0, 0, 0), 0);
	CHECK_EQUAL(command(FLEX_COMMAND_ATTACH, 0, 0), ERROR_AGAIN);
	CHECK_EQUAL(host.doorbells, 1); /* so that the driver switches it on */
	host.protection.state = FLEX_SECURE_BROKEN;
	CHECK_EQUAL(command(FLEX_COMMAND_ATTACH, 0, 0), ERROR_PERM);
}

TEST(what_was_read_while_protection_was_switched_is_not_believed)
{
	u64 va;

	boot();
	va = chunks(1);
	set_state(SOME, 1, FLEX_STATE_SECURE);
	host.on_protection = switched_off_and_on;
	CHECK_EQUAL(map(va, SOME, 1), ERROR_PERM);
	CHECK_EQUAL(tables_page(va), 0);
}

TEST(the_rings_begin_anew_when_protection_has_come_on)
{
	u64 told[4];
	struct flex_secure_protection protection;

	boot();
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 7, 1), 0);
	event(FLEX_EVENT_ANSWER, 1);
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, DATA, 0, 0, 0), 1);
	memset(host.mailbox, 0, FLEX_MAILBOX_HEADER_BYTES);
	host.protection.switches += 2;
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 9, 1), 0);
	CHECK_EQUAL(slot(0, 0)[1], page(9) * PAGE);
	event(FLEX_EVENT_ATTACHED, 77);
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, DATA, 0, 0, 0), 1);
	CHECK(user_read(told, DATA, sizeof(told)) && told[0] == FLEX_EVENT_ATTACHED && told[1] == 77);
	CHECK_EQUAL(call(FLEX_SECURE_PROTECTION, DATA, 0, 0, 0), FLEX_SECURE_ON);
	CHECK(user_read(&protection, DATA, sizeof(protection)) && protection.switches == 3);
}

TEST(what_was_put_while_protection_was_switched_lies_in_the_new_rings_and_the_next_command_behind_it)
{
	boot();
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 7, 1), 0);
	memset(host.mailbox, 0, FLEX_MAILBOX_HEADER_BYTES);
	host.protection.switches += 2;
	*word(FLEX_AT_COMMAND_HEAD) = 3; /* as mailbox_put, that asked before the switch, leaves it */
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 9, 1), 0);
	CHECK_EQUAL(slot(0, 3)[1], page(9) * PAGE);
	CHECK_EQUAL(*word(FLEX_AT_COMMAND_HEAD), 4);
}

TEST(counters_of_the_mailbox_that_cannot_be_are_no_events_and_no_room)
{
	boot();
	*word(FLEX_AT_EVENT_HEAD) = FLEX_MAILBOX_SLOTS + 1;
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, DATA, 0, 0, 0), 0);
	*word(FLEX_AT_COMMAND_TAIL) = 1;
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 0, 1), ERROR_AGAIN);
	*word(FLEX_AT_COMMAND_TAIL) = 0;
	for (u32 i = 0; i < FLEX_MAILBOX_SLOTS; i++)
		CHECK_EQUAL(command(FLEX_COMMAND_WANT, i, 1), 0);
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 0, 1), ERROR_AGAIN);
	monitor_obeys();
	CHECK_EQUAL(command(FLEX_COMMAND_WANT, 0, 1), 0);
}

TEST(an_event_is_not_lost_for_want_of_a_place_for_it)
{
	boot();
	event(FLEX_EVENT_PRESSURE, 5);
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, TEXT, 0, 0, 0), ERROR_FAULT);
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, DATA_END - 8, 0, 0, 0), ERROR_FAULT);
	CHECK_EQUAL(call(FLEX_SECURE_EVENT, DATA, 0, 0, 0), 1);
}

TEST(commands_of_the_npu_and_unknown_ones_are_refused)
{
	u64 kind;

	boot();
	for (kind = FLEX_COMMAND_NPU_WANT; kind < 40; kind++)
		CHECK_EQUAL(command(kind, SOME, 1), ERROR_INVAL);
	CHECK_EQUAL(command(0, SOME, 1), ERROR_INVAL);
	CHECK_EQUAL(call(FLEX_SECURE_COMMAND, FLEX_COMMAND_COMMIT, page(SOME) * PAGE + 1, 1, 0), ERROR_INVAL);
	CHECK_EQUAL(call(FLEX_SECURE_COMMAND, FLEX_COMMAND_COMMIT, HOST_SECURE, 1, 0), ERROR_INVAL);
}

TEST(given_pages_make_the_heap_larger_and_come_back_overwritten)
{
	u64 first = 0, before;
	s64 va;

	boot();
	CHECK_EQUAL(call(LINUX_MMAP, 0, 100 << 20, 3, 0x22), ERROR_NOMEM);
	set_state(0x1000, 0x8000, FLEX_STATE_SECURE);
	memset(host.ram + 0x1000 * PAGE, 0x77, 0x8000 * PAGE);
	before = pages_left(PAGES_PRIVATE);
	for (u64 at = 0; at < 0x8000; at += 512)
		CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(0x1000 + at), 512, 0, 0), 0);
	CHECK_EQUAL(pages_left(PAGES_PRIVATE), before + 0x8000);
	va = call(LINUX_MMAP, 0, 100 << 20, 3, 0x22);
	CHECK(va > 0);
	for (u64 at = 0; at < 100 << 20; at += PAGE)
		CHECK_EQUAL(*(u64 *)arch_at(tables_reach((u64)va + at, true)), 0);
	CHECK_EQUAL(command(FLEX_COMMAND_RECALL, 0x1000, 1), ERROR_BUSY);
	CHECK_EQUAL(call(LINUX_MUNMAP, (u64)va, 100 << 20, 0, 0), 0);
	CHECK_EQUAL(call(FLEX_SECURE_TAKE, 512, DATA, 0, 0), 512);
	CHECK(user_read(&first, DATA, sizeof(first)));
	CHECK_EQUAL(call(FLEX_SECURE_COMMAND, FLEX_COMMAND_RECALL, first * PAGE, 512, 0), 0);
	for (before = 512; before < 0x8000; before += (u64)call(FLEX_SECURE_TAKE, ~0ULL, DATA, 0, 0))
		;
	CHECK_EQUAL(call(FLEX_SECURE_TAKE, 512, DATA, 0, 0), 0);
	CHECK_EQUAL(command(FLEX_COMMAND_GONE, 0, 0), 0);
}

TEST(who_ends_leaves_nothing_behind_and_its_pages_to_the_os)
{
	static const char secret[] = "the key of the model";
	u64 va, own, at, i;

	boot();
	va = chunks(1);
	own = memory(PAGE);
	set_state(SOME, 2, FLEX_STATE_SECURE);
	CHECK_EQUAL(command(FLEX_COMMAND_ATTACH, 0, 0), 0);
	CHECK_EQUAL(map(va, SOME, 1), 0);
	CHECK_EQUAL(call(FLEX_SECURE_GIVE, page(SOME + 1), 1, 0, 0), 0);
	CHECK(user_write(va, secret, sizeof(secret)) && user_write(own, secret, sizeof(secret)));
	host.registers[0].vectors[3] = 0x5ec2e7;
	CHECK(!call_on(0, LINUX_EXIT_GROUP, (u64[6]){ 3 }));
	CHECK_EQUAL(nexts[0].yield, YIELD_ENDED);
	CHECK_EQUAL(nexts[0].argument, ENDING_EXIT | 3 << 8);
	for (i = 0; i < HOST_SECURE_PAGES * PAGE; i++)
		CHECK_EQUAL(host.secure[i], 0);
	for (at = 0; at < 2 * PAGE; at++)
		CHECK_EQUAL(host.ram[SOME * PAGE + at], 0);
	CHECK_EQUAL(host_reach(page(SOME) * PAGE), 0);
	CHECK_EQUAL(slot(0, 1)[0], FLEX_COMMAND_GONE);
	CHECK(!lend(1) && nexts[1].yield == YIELD_ENDED);
	CHECK(!lend(0));
}
