#include "tests/world.h"

#include <stdlib.h>
#include <string.h>

#include "arch/fake_host/fake_host.h"
#include "core/monitor.h"
#include "tests/laws.h"
#include "tests/places.h"

#define RAM_BASE 0x40000000ULL
#define LIE 0x80000000U
#define PIECES_MAX (24 + 2 * MODEL_PAGES_MAX)

/* The core's own variables, put together by the linker (core_state.lds). */
extern u8 __start_core_state[], __stop_core_state[];

struct model world;

static struct piece {
	u8 *at;
	u64 bytes;
} pieces[PIECES_MAX];
static u32 piece_count;

static u8 *before; /* the pieces before a call */
static u8 *pristine; /* the monitor's memory after boot, outside of the pieces */

/* ---- the normal and the secure world between two calls ---------------------------------------------------- */

static void fill(u32 page, u64 word)
{
	words_of(page)[0] = words_of(page)[WORDS_OF_A_PAGE - 1] = word;
}

/* Whoever has a page uses it: the secure world writes secrets, the normal world whatever it likes. */
static void use_pages(void)
{
	u32 page;

	for (page = 0; page < world.pages; page++)
		if (world.state[page] == FLEX_STATE_SECURE)
			fill(page, SECRET);
		else if (world.state[page] == FLEX_STATE_NORMAL)
			fill(page, JUNK);
	if (world.npu == FLEX_NPU_STATE_NORMAL || world.npu == FLEX_NPU_STATE_SECURE)
		registers()[0] = registers()[REGISTERS_WORDS - 2] = world.npu == FLEX_NPU_STATE_SECURE ? SECRET : JUNK;
	if (world.npu == FLEX_NPU_STATE_SECURE && !world.driving)
		*sandbox_word(4) = *sandbox_word(5) = SECRET;
	host_look();
}

static bool same_as_before(void)
{
	const u8 *old = before;
	u32 i;

	for (i = 0; i < piece_count; old += pieces[i++].bytes)
		if (memcmp(old, pieces[i].at, pieces[i].bytes) != 0)
			return false;
	return true;
}

/* ---- steps --------------------------------------------------------------------------------------------------- */

/* After a RELAX that EL3 granted comes, at the next call, a monitor made anew. */
static void switch_on_again(void)
{
	host.npu = (struct host_npu){ 0 };
	monitor_rebuild();
	*field(FLEX_AT_SLEEPING) = 1;
	model_reset(&world, SMALL_NPUS);
	memset(host.reached[HOST_CPUS], 0, host.ram_bytes / FLEX_PAGE_BYTES);
	memset(host.reached[HOST_DEVICES], 0, host.ram_bytes / FLEX_PAGE_BYTES);
	memset(host.reached[HOST_NPU], 0, host.ram_bytes / FLEX_PAGE_BYTES);
}

static void call(const u64 arguments[3], struct model_lies lies, int relax)
{
	u64 x[5] = { arguments[0], arguments[1], arguments[2], SECRET, SECRET };
	u64 rings = host.rings, relaxed = host.relaxed;
	struct model_answer expected;
	u8 code[FLEX_NPU_CODE_BYTES_MAX];

	host.npu_deaf = lies.npu_deaf;
	host.stop = lies.stop;
	host.result = lies.result;
	expected = model_call(&world, x, lies, relax);
	laws_expect(&expected);
	world_save(before);
	host.relax_status = relax;
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT && expected.x[0] == FLEX_STATUS_OK)
		memcpy(code, ram(arguments[1]), arguments[2]);
	monitor_call(x);
	laws_of_answer(x, rings);
	if (x[0] != FLEX_STATUS_OK && !same_as_before())
		host_fail("a refused call changed something");
	if (x[0] != FLEX_STATUS_OK)
		return;
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_TAKE || arguments[0] == FLEX_SMC_BASE + FLEX_CALL_RETURN)
		laws_of_pages_back(arguments);
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT)
		laws_of_code(code, arguments[2]);
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_RELAX) {
		switch_on_again();
		/* Something left over from before would show. */
		call((u64[]){ FLEX_SMC_BASE + FLEX_CALL_POLL, 0, 0 }, lies, relax);
	} else if (host.relaxed != relaxed)
		host_fail("protection was switched off by another call");
}

static void call_lying(const u64 arguments[3], u32 offset, struct model_lies lies)
{
	u32 truth = *field(offset);

	*field(offset) += LIE;
	call(arguments, lies, FLEX_STATUS_BUSY);
	*field(offset) = truth;
}

static void fault(u64 ipa)
{
	u64 *faults = (u64 *)(void *)(ram(monitor_layout()->mailbox) + FLEX_AT_FAULTS), counted = *faults;
	bool retry = model_retries(&world, ipa);

	laws_expect(&(struct model_answer){ { 0 }, { 0 } });
	if ((monitor_fault(ipa) == MONITOR_RETRY) != retry)
		host_fail("an access to %#llx is not judged right", (unsigned long long)ipa);
	if (*faults != counted + !retry)
		host_fail("a stopped access is not counted");
}

static void command(const u64 x[4])
{
	if (world.commands.count == FLEX_MAILBOX_SLOTS)
		return;
	*slot(0, *field(FLEX_AT_COMMAND_HEAD)) = (struct message){ x[0], x[1], x[2], x[3] };
	++*field(FLEX_AT_COMMAND_HEAD);
	world.commands.at[world.commands.count++] = (struct message){ x[0], x[1], x[2], x[3] };
}

static void read_event(void)
{
	if (world.unread == 0)
		return;
	++*field(FLEX_AT_EVENT_TAIL);
	world.unread--;
}

void world_step(const struct step *step)
{
	const struct model_lies none = { 0 }, head = { .command_head = true }, tail = { .event_tail = true };
	const struct model_lies deaf = { .npu_deaf = true }, interrupted = { .stop = ARCH_INTERRUPTED };
	const struct model_lies faulted = { .stop = ARCH_FAULTED }, failed = { .result = 1 };

	switch (step->kind) {
	case STEP_CALL:
		call(step->x, none, FLEX_STATUS_OK);
		break;
	case STEP_RELAX_FAILS:
		call((u64[]){ FLEX_SMC_BASE + FLEX_CALL_RELAX, 0, 0 }, none, FLEX_STATUS_BUSY);
		break;
	case STEP_CALL_LYING_HEAD:
		call_lying(step->x, FLEX_AT_COMMAND_HEAD, head);
		break;
	case STEP_CALL_LYING_TAIL:
		call_lying(step->x, FLEX_AT_EVENT_TAIL, tail);
		break;
	case STEP_CALL_DEAF:
		call(step->x, deaf, FLEX_STATUS_OK);
		break;
	case STEP_CALL_INTERRUPTED:
		call(step->x, interrupted, FLEX_STATUS_OK);
		break;
	case STEP_CALL_FAULTED:
		call(step->x, faulted, FLEX_STATUS_OK);
		break;
	case STEP_CALL_FAILED:
		call(step->x, failed, FLEX_STATUS_OK);
		break;
	case STEP_FAULT:
		fault(step->x[0]);
		break;
	case STEP_COMMAND:
		command(step->x);
		break;
	case STEP_READ:
		read_event();
		break;
	}
	laws_between_steps();
	use_pages();
}

static bool all_are(u32 page, u64 word)
{
	return words_of(page)[0] == word && words_of(page)[WORDS_OF_A_PAGE - 1] == word;
}

void world_end(void)
{
	struct model was = world;
	u32 page;

	laws_expect(&(struct model_answer){ { 0 }, { 0 } });
	monitor_end();
	if (!host.held)
		host_fail("something can be handed over after the end");
	arch_unlock();
	model_end(&world);
	laws_between_steps();
	for (page = 0; page < world.pages; page++)
		if (was.state[page] == FLEX_STATE_SECURE || was.state[page] == FLEX_STATE_RECALLING) {
			if (!all_are(page, 0))
				host_fail("page %u, in state %d, is as it was after the end", page, (int)was.state[page]);
		} else if (was.state[page] == FLEX_STATE_NORMAL && !all_are(page, JUNK)) {
			host_fail("page %u was the OS's, and was overwritten at the end", page);
		}
}

/* ---- saving and loading ------------------------------------------------------------------------------------------ */

static void add_piece(void *at, u64 bytes)
{
	pieces[piece_count++] = (struct piece){ at, bytes };
}

u64 world_bytes(void)
{
	u64 bytes = 0;
	u32 i;

	for (i = 0; i < piece_count; i++)
		bytes += pieces[i].bytes;
	return bytes;
}

void world_save(u8 *to)
{
	u32 i;

	for (i = 0; i < piece_count; to += pieces[i++].bytes)
		memcpy(to, pieces[i].at, pieces[i].bytes);
}

void world_load(const u8 *from)
{
	u32 i;

	for (i = 0; i < piece_count; from += pieces[i++].bytes)
		memcpy(pieces[i].at, from, pieces[i].bytes);
}

static void list_pieces(void)
{
	const struct layout *layout = monitor_layout();
	u32 page;

	piece_count = 0;
	add_piece(&world, sizeof(world));
	add_piece(__start_core_state, (u64)(__stop_core_state - __start_core_state));
	add_piece(ram(layout->states), world.pages + 1);
	add_piece(ram(layout->stage2.level3), (world.pages + 1) * sizeof(u64));
	add_piece(ram(layout->devices.level3), (world.pages + 1) * sizeof(u64));
	add_piece(ram(layout->secure.level3), (world.pages + 1) * sizeof(u64));
	add_piece(registers_leaves(), REGISTERS_PAGES * sizeof(u64));
	add_piece(registers(), sizeof(u64));
	add_piece(registers() + REGISTERS_WORDS - 2, sizeof(u64));
	for (page = 0; page < 2 * SANDBOX_PAGES; page++)
		add_piece(sandbox_word(page), sizeof(u64));
	add_piece(&host.npu, sizeof(host.npu));
	add_piece(ram(layout->mailbox), FLEX_AT_NPU_STATE + sizeof(u32));
	add_piece(slot(0, 0), 2 * FLEX_MAILBOX_SLOTS * sizeof(struct message));
	add_piece(host.reached[HOST_CPUS], world.pages + 1);
	add_piece(host.reached[HOST_DEVICES], world.pages + 1);
	add_piece(host.reached[HOST_NPU], world.pages + 1);
	for (page = 0; page < world.pages; page++)
		add_piece(words_of(page), sizeof(u64)), add_piece(words_of(page) + WORDS_OF_A_PAGE - 1, sizeof(u64));
}

/* What a step neither depends on nor changes must stay as it was after boot, to the byte. */
static void without_pieces(u8 *copy_of_hidden)
{
	u8 *hidden = ram(monitor_layout()->hidden_base);
	u32 i;

	memcpy(copy_of_hidden, hidden, FLEX_HIDDEN_BYTES);
	for (i = 0; i < piece_count; i++)
		if (pieces[i].at >= hidden && pieces[i].at < hidden + FLEX_HIDDEN_BYTES)
			memset(copy_of_hidden + (pieces[i].at - hidden), 0, pieces[i].bytes);
}

void world_check_rest(void)
{
	u8 *now = malloc(FLEX_HIDDEN_BYTES);

	if (!now)
		host_fail("no memory");
	without_pieces(now);
	if (memcmp(now, pristine, FLEX_HIDDEN_BYTES) != 0)
		host_fail("the monitor wrote where nothing changes");
	free(now);
}

void world_reset(void)
{
	switch_on_again();
	use_pages();
}

void world_make(void)
{
	struct board board;

	host_make(RAM_BASE, FLEX_HIDDEN_BYTES + SMALL_PAGES * (u64)FLEX_PAGE_BYTES);
	board = host_board(SMALL_NPUS);
	world = (struct model){ .base = RAM_BASE, .end = RAM_BASE + host.ram_bytes, .pages = SMALL_PAGES,
				.notice_slots = SMALL_NOTICES, .event_slots = FLEX_MAILBOX_SLOTS, .steps = SMALL_STEPS,
				.turns = SMALL_TURNS };
	if (!monitor_init(&board, NULL, 0))
		host_fail("the core refuses the small machine");
	list_pieces();
	host.watched_count = SMALL_PAGES + 2;
	host.watcher = laws_at_moment;
	world_reset();
	before = realloc(before, world_bytes());
	pristine = realloc(pristine, FLEX_HIDDEN_BYTES);
	if (!before || !pristine)
		host_fail("no memory");
	without_pieces(pristine);
}
