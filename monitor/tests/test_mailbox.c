#include "tests/unit.h"

/* Made visible for the tests by host.mk: the monitor's own ends of the rings. */
extern u32 command_tail, event_head;

static u64 header(u32 offset)
{
	return *(u64 *)(void *)field(offset);
}

TEST(the_header_says_where_everything_is)
{
	boot(RAM_SMALL);
	CHECK_EQUAL(header(FLEX_AT_MAGIC), FLEX_MAILBOX_MAGIC);
	CHECK_EQUAL(header(FLEX_AT_VERSION), FLEX_ABI_VERSION);
	CHECK_EQUAL(header(FLEX_AT_RAM_BASE), RAM_BASE);
	CHECK_EQUAL(header(FLEX_AT_RAM_BYTES), RAM_SMALL);
	CHECK_EQUAL(RAM_BASE + header(FLEX_AT_STATES_OFFSET), monitor_layout()->states);
}

TEST(commands_come_in_order_and_once)
{
	struct message got;
	u64 i;

	boot(RAM_SMALL);
	for (i = 0; i < FLEX_MAILBOX_SLOTS; i++)
		command(i, i + 1, i + 2, i + 3);
	for (i = 0; i < FLEX_MAILBOX_SLOTS; i++) {
		CHECK(mailbox_command(&got));
		CHECK(got.kind == i && got.a == i + 1 && got.b == i + 2 && got.c == i + 3);
		CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), i); /* until it was carried out, it lies there */
		mailbox_carried_out();
	}
	CHECK(!mailbox_command(&got));
	CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), FLEX_MAILBOX_SLOTS);
}

/* While a RECALL is carried out, others look at the mailbox and the page states. */
static void whoever_sees_that_a_recall_is_gone_sees_what_it_did(enum host_moment moment)
{
	(void)moment;
	if (*field(FLEX_AT_COMMAND_TAIL) == *field(FLEX_AT_COMMAND_HEAD))
		CHECK_EQUAL(pages_state(page_number(8)), FLEX_STATE_RECALLING);
}

TEST(a_command_is_gone_only_when_it_was_carried_out)
{
	boot_and_attach();
	secure_pages(page_at(8), 4);
	secure_npu(); /* whose translations are flushed in the midst of it */
	command(FLEX_COMMAND_RECALL, page_at(8), 4, 7);
	host.watcher = whoever_sees_that_a_recall_is_gone_sees_what_it_did;
	os(FLEX_CALL_POLL, 0, 0);
	CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), *field(FLEX_AT_COMMAND_HEAD));
}

TEST(rings_go_on_where_their_counters_wrap)
{
	struct message got;
	u32 i, start = 0U - 3;

	boot(RAM_SMALL);
	command_tail = event_head = start;
	*field(FLEX_AT_COMMAND_HEAD) = *field(FLEX_AT_COMMAND_TAIL) = start;
	*field(FLEX_AT_EVENT_HEAD) = *field(FLEX_AT_EVENT_TAIL) = start;
	for (i = 0; i < 7; i++) {
		command(i, 0, 0, 0);
		mailbox_event(i + 1, i, i);
	}
	CHECK_EQUAL(mailbox_room(), FLEX_MAILBOX_SLOTS - 7);
	for (i = 0; i < 7; i++) {
		CHECK(mailbox_command(&got) && got.kind == i);
		CHECK_EQUAL(event().kind, i + 1);
	}
	CHECK(!mailbox_command(&got));
	CHECK_EQUAL(mailbox_room(), FLEX_MAILBOX_SLOTS);
	CHECK_EQUAL(*field(FLEX_AT_EVENT_HEAD), 4);
}

TEST(a_head_that_cannot_be_is_no_command)
{
	static const u32 lies[] = { FLEX_MAILBOX_SLOTS + 1, 0x80000000, 0xffffffff };
	struct message got;
	u32 i;

	boot(RAM_SMALL);
	for (i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		*field(FLEX_AT_COMMAND_HEAD) = lies[i];
		CHECK(!mailbox_command(&got));
	}
	CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), 0);
}

TEST(a_tail_that_cannot_be_is_no_room)
{
	static const u32 lies[] = { 1, 0x80000000, 0U - FLEX_MAILBOX_SLOTS - 1 };
	u32 i;

	boot(RAM_SMALL);
	for (i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		*field(FLEX_AT_EVENT_TAIL) = lies[i];
		CHECK_EQUAL(mailbox_room(), 0);
	}
	*field(FLEX_AT_EVENT_TAIL) = 0U - FLEX_MAILBOX_SLOTS;
	CHECK_EQUAL(mailbox_room(), 0);
	*field(FLEX_AT_EVENT_TAIL) = 1U - FLEX_MAILBOX_SLOTS;
	CHECK_EQUAL(mailbox_room(), 1);
}

TEST(the_counters_in_the_mailbox_are_not_read_back)
{
	struct message got;

	boot(RAM_SMALL);
	command(5, 0, 0, 0);
	*field(FLEX_AT_COMMAND_TAIL) = 12345;
	CHECK(mailbox_command(&got) && got.kind == 5);
	mailbox_carried_out();
	CHECK_EQUAL(*field(FLEX_AT_COMMAND_TAIL), 1);
	*field(FLEX_AT_EVENT_HEAD) = 12345;
	mailbox_event(9, 0, 0);
	CHECK_EQUAL(*field(FLEX_AT_EVENT_HEAD), 1);
}

TEST(the_bell_rings_once_for_events_and_only_for_a_sleeper)
{
	boot(RAM_SMALL);
	mailbox_ring();
	CHECK_EQUAL(host.rings, 0);
	mailbox_event(1, 0, 0);
	mailbox_event(2, 0, 0);
	mailbox_ring();
	mailbox_ring();
	CHECK_EQUAL(host.rings, 1);
	*field(FLEX_AT_SLEEPING) = 0;
	mailbox_event(3, 0, 0);
	mailbox_ring();
	CHECK_EQUAL(host.rings, 1);
}

TEST(no_bell_is_rung_while_one_may_be_unheard)
{
	u32 i;

	boot(RAM_SMALL);
	for (i = 1; i <= 5; i++) {
		mailbox_event(i, 0, 0);
		mailbox_ring();
		CHECK_EQUAL(host.rings, 1);
	}
	for (i = 1; i <= 4; i++)
		CHECK_EQUAL(event().kind, i);
	mailbox_event(6, 0, 0); /* the fifth is unread */
	mailbox_ring();
	CHECK_EQUAL(host.rings, 1);
	CHECK_EQUAL(event().kind, 5);
	CHECK_EQUAL(event().kind, 6);
	mailbox_event(7, 0, 0);
	mailbox_ring();
	CHECK_EQUAL(host.rings, 2);
}

TEST(a_new_start_empties_the_rings_and_keeps_the_count_of_faults)
{
	struct message got;

	u64 faults;

	boot(RAM_SMALL);
	faults = header(FLEX_AT_FAULTS);
	mailbox_fault();
	mailbox_fault();
	command(5, 0, 0, 0);
	mailbox_event(1, 0, 0);
	monitor_rebuild();
	CHECK(!mailbox_command(&got));
	CHECK_EQUAL(event().kind, 0);
	CHECK_EQUAL(header(FLEX_AT_FAULTS), faults + 2);
}
