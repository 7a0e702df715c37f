#include "core/npu.h"
#include "core/tables.h"
#include "tests/unit.h"

#include <stdlib.h>
#include <string.h>

#define WATCHED 1200 /* pages: more than two calls can change */

extern u8 __start_core_state[], __stop_core_state[];

u64 answer[4];

static u8 *remembered;

/* Whoever is not the OS's is out of its reach, at each moment. */
static void watch(enum host_moment moment)
{
	u64 page;

	for (page = host.watched_first; page < host.watched_first + host.watched_count; page++)
		if (pages_state(page) != FLEX_STATE_NORMAL &&
		    (host.reached[HOST_CPUS][page] || host.reached[HOST_DEVICES][page]))
			host_fail("page %llu can be reached in state %d (moment %d)", (unsigned long long)page,
				  (int)pages_state(page), (int)moment);
		else if (host_npu_trespasses(page))
			host_fail("page %llu, in state %d, is reached by the NPU (moment %d)", (unsigned long long)page,
				  (int)pages_state(page), (int)moment);
}

static void boot_board(u64 ram_bytes, u64 npus)
{
	static const struct window windows[] = {
		{ 0x08000000, 0x200000 },
		{ 0x09000000, 0x1000 },
		{ 0x09010000, 0x1000 },
	};
	struct board board;

	host_make(RAM_BASE, ram_bytes);
	board = host_board(npus);
	CHECK(monitor_init(&board, windows, 3));
	host.watched_first = page_number(WATCHED);
	host.watched_count = WATCHED + 4;
	host.watcher = watch;
	*field(FLEX_AT_SLEEPING) = 1;
}

void boot(u64 ram_bytes)
{
	boot_board(ram_bytes, 1);
}

void boot_without_npu(void)
{
	boot_board(RAM_SMALL, 0);
}

int os(u64 call, u64 a, u64 b)
{
	u64 x[MONITOR_REGISTERS] = { FLEX_SMC_BASE + call, a, b, 0, 0 };

	monitor_call(x);
	memcpy(answer, x + 1, sizeof(answer));
	return (int)x[0];
}

u64 page_at(u64 before)
{
	return monitor_layout()->hidden_base - before * FLEX_PAGE_BYTES;
}

u64 page_number(u64 before)
{
	return (page_at(before) - RAM_BASE) / FLEX_PAGE_BYTES;
}

void *hidden(u64 pa)
{
	return host.ram + (pa - host.ram_base);
}

u64 *words_at(u64 pa)
{
	return hidden(pa);
}

u32 *field(u32 offset)
{
	return hidden(monitor_layout()->mailbox + offset);
}

static struct message *slot(u32 ring, u32 count)
{
	struct message *slots = hidden(monitor_layout()->mailbox + FLEX_MAILBOX_HEADER_BYTES);

	return &slots[ring * FLEX_MAILBOX_SLOTS + count % FLEX_MAILBOX_SLOTS];
}

void command(u64 kind, u64 a, u64 b, u64 c)
{
	u32 *head = field(FLEX_AT_COMMAND_HEAD);

	CHECK(*head - *field(FLEX_AT_COMMAND_TAIL) < FLEX_MAILBOX_SLOTS);
	*slot(0, *head) = (struct message){ kind, a, b, c };
	++*head;
}

struct message event(void)
{
	u32 *tail = field(FLEX_AT_EVENT_TAIL);

	if (*tail == *field(FLEX_AT_EVENT_HEAD))
		return (struct message){ 0, 0, 0, 0 };
	return *slot(1, (*tail)++);
}

struct message notice(void)
{
	CHECK_EQUAL(os(FLEX_CALL_POLL, 0, 0), FLEX_STATUS_OK);
	return (struct message){ answer[0], answer[1], answer[2], answer[3] };
}

int obeyed(u64 kind, u64 a, u64 b)
{
	struct message done;

	while (event().kind)
		;
	command(kind, a, b, 77);
	notice();
	done = event();
	CHECK_EQUAL(done.kind, FLEX_EVENT_DONE);
	CHECK_EQUAL(done.a, 77);
	return (int)done.b;
}

void attach(void)
{
	command(FLEX_COMMAND_ATTACH, 1, 0, 0);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_ATTACHED);
	CHECK_EQUAL(event().kind, FLEX_EVENT_ATTACHED);
}

void secure_pages(u64 ipa, u64 pages)
{
	CHECK_EQUAL(os(FLEX_CALL_GRANT, ipa, pages), FLEX_STATUS_OK);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_COMMIT, ipa, pages), FLEX_STATUS_OK);
}

void recalling_pages(u64 ipa, u64 pages)
{
	secure_pages(ipa, pages);
	CHECK_EQUAL(obeyed(FLEX_COMMAND_RECALL, ipa, pages), FLEX_STATUS_OK);
}

/* ---- the NPU --------------------------------------------------------------------------------------------- */

void want_npu(void)
{
	struct message told;

	command(FLEX_COMMAND_NPU_WANT, NPU_SERIAL, 0, 0);
	told = notice();
	CHECK(told.kind == FLEX_NOTICE_NPU_WANTED && told.a == NPU_SERIAL);
}

void enter_npu(void)
{
	want_npu();
	CHECK_EQUAL(os(FLEX_CALL_NPU_GRANT, page_at(NPU_CODE), 100), FLEX_STATUS_OK);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_ENTERING);
}

void secure_npu(void)
{
	struct message told;

	enter_npu();
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_NPU_GRANTED && told.a == NPU_SERIAL);
	CHECK_EQUAL(npu_state(), FLEX_NPU_STATE_SECURE);
}

void boot_and_attach(void)
{
	boot(RAM_SMALL);
	attach();
}

void denied(u64 kind, u64 a, u64 b, u64 c, u64 serial)
{
	enum flex_npu_state before = npu_state();
	struct message told;

	while (event().kind)
		;
	command(kind, a, b, c);
	CHECK_EQUAL(notice().kind, FLEX_NOTICE_NONE);
	told = event();
	CHECK(told.kind == FLEX_EVENT_DONE && told.a == serial && (int)told.b == FLEX_STATUS_DENIED);
	CHECK_EQUAL(npu_state(), before);
}

/* ---- what a refused call leaves alone ------------------------------------------------------------------ */

static u64 state_bytes(void)
{
	return (u64)(__stop_core_state - __start_core_state);
}

void remember(void)
{
	remembered = realloc(remembered, FLEX_HIDDEN_BYTES + state_bytes());
	CHECK(remembered != NULL);
	memcpy(remembered, hidden(monitor_layout()->hidden_base), FLEX_HIDDEN_BYTES);
	memcpy(remembered + FLEX_HIDDEN_BYTES, __start_core_state, state_bytes());
}

void check_unchanged(void)
{
	CHECK(memcmp(remembered, hidden(monitor_layout()->hidden_base), FLEX_HIDDEN_BYTES) == 0);
	CHECK(memcmp(remembered + FLEX_HIDDEN_BYTES, __start_core_state, state_bytes()) == 0);
}

bool reached(u64 before)
{
	host_look();
	return host.reached[HOST_CPUS][page_number(before)] || host.reached[HOST_DEVICES][page_number(before)];
}

bool opened(u64 before)
{
	return tables_is_open(page_number(before));
}

void check_states(u64 before, u64 pages, enum flex_state state)
{
	u64 i;

	for (i = 0; i < pages; i++)
		CHECK_EQUAL(pages_state(page_number(before) + i), state);
}

void refused(u64 call, u64 a, u64 b, int status)
{
	host_look();
	remember();
	CHECK_EQUAL(os(call, a, b), status);
	check_unchanged();
	CHECK(answer[0] == 0 && answer[1] == 0 && answer[2] == 0 && answer[3] == 0);
}

int main(int count, char **arguments)
{
	host.witness = check_witness;
	return check_run(count, arguments);
}
