#include "tests/world.h"

#include <stdlib.h>
#include <string.h>

#include "arch/fake_host/fake_host.h"
#include "core/monitor.h"
#include "core/npu.h"
#include "core/pages.h"
#include "core/secure.h"

#define RAM_BASE 0x40000000ULL
#define SECRET 0x5ec7e75ec7e75ec7ULL
#define JUNK 0x0badcafe0badcafeULL
#define LIE 0x80000000U
#define PIECES_MAX (24 + 2 * MODEL_PAGES_MAX)
#define WORDS_OF_A_PAGE (FLEX_PAGE_BYTES / sizeof(u64))

/* The leaves of the interface between the core and the MMUs; written down once more on purpose. */
#define STAGE2_LEAF 0x7ffULL /* valid page, write-back memory, read and write, inner shareable, accessed */
#define DEVICE_LEAF 0x743ULL /* valid page, attribute 0, any privilege, inner shareable, accessed */
#define REGISTERS_LEAF 0x00400000000004c7ULL /* valid page, registers, read and write, never executed */
#define REGISTERS_PAGES (FLEX_NPU_WINDOW_BYTES / FLEX_PAGE_BYTES)
#define REGISTERS_WORDS (FLEX_NPU_WINDOW_BYTES / sizeof(u64))

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
static u32 events_before; /* head of the events' ring when a call began */
static struct model_answer expected; /* of the call under way */

static u8 *ram(u64 pa)
{
	return host.ram + (pa - host.ram_base);
}

static u32 *field(u32 offset)
{
	return (u32 *)(void *)(ram(monitor_layout()->mailbox) + offset);
}

static struct message *slot(u32 ring, u32 count)
{
	u8 *rings = ram(monitor_layout()->mailbox) + FLEX_MAILBOX_HEADER_BYTES;

	return (struct message *)(void *)rings + ring * FLEX_MAILBOX_SLOTS + count % FLEX_MAILBOX_SLOTS;
}

static u64 *words_of(u32 page)
{
	return (u64 *)(void *)(host.ram + page * (u64)FLEX_PAGE_BYTES);
}

/* Where registers begin that are not always the same. */
static u64 *registers(void)
{
	return (u64 *)(void *)ram(monitor_layout()->window) + 1;
}

static u64 *registers_leaves(void)
{
	u64 page = (monitor_layout()->window - monitor_layout()->ram_base) / FLEX_PAGE_BYTES;

	return (u64 *)(void *)ram(monitor_layout()->stage2.level3) + page;
}

/* The first and the last word of the code's and the stack's pages: all that is ever used of them. */
static u64 *sandbox_word(u32 number)
{
	u64 *words = (u64 *)(void *)ram(monitor_layout()->code + number / 2 * (u64)FLEX_PAGE_BYTES);

	return number % 2 ? words + WORDS_OF_A_PAGE - 1 : words;
}

static bool registers_hold(u64 word)
{
	return registers()[0] == word || registers()[REGISTERS_WORDS - 2] == word;
}

/* ---- the laws ------------------------------------------------------------------------------------------ */

static bool reached(u32 page)
{
	return host.reached[HOST_CPUS][page] || host.reached[HOST_DEVICES][page];
}

static bool holds_secret(u32 page)
{
	return words_of(page)[0] == SECRET || words_of(page)[WORDS_OF_A_PAGE - 1] == SECRET;
}

/* Law 7 for what the secure world can read already. */
static void check_told(void)
{
	u32 i, told = *field(FLEX_AT_EVENT_HEAD) - events_before;

	if (told > expected.events.count)
		host_fail("%u events, not %u", told, expected.events.count);
	for (i = 0; i < told; i++)
		if (memcmp(slot(1, events_before + i), &expected.events.at[i], sizeof(struct message)) != 0)
			host_fail("event %u: kind %llu, not %llu, or other arguments", i,
				  (unsigned long long)slot(1, events_before + i)->kind,
				  (unsigned long long)expected.events.at[i].kind);
}

/* Law 8. */
static void check_npu(enum host_moment moment)
{
	if (host.npu.registers_known && npu_state() != FLEX_NPU_STATE_NORMAL)
		host_fail("a CPU reaches the NPU's registers in state %d (moment %d)", (int)npu_state(), (int)moment);
	if (host.npu.registers_known && registers_hold(SECRET))
		host_fail("the NPU's registers can be reached and hold a secret (moment %d)", (int)moment);
	if (npu_state() == FLEX_NPU_STATE_SECURE && registers_hold(JUNK))
		host_fail("the secure world gets registers as the OS left them (moment %d)", (int)moment);
}

/* Laws 1, 2, 7 and 8 hold at each moment, also in the middle of a call. */
static void check_moment(enum host_moment moment)
{
	u32 page;

	for (page = 0; page < world.pages + 2; page++) {
		if (host_npu_trespasses(page))
			host_fail("page %u, in state %d, is reached by the NPU (moment %d)", page, (int)pages_state(page),
				  (int)moment);
		if (!reached(page))
			continue;
		if (pages_state(page) != FLEX_STATE_NORMAL)
			host_fail("page %u can be reached in state %d (moment %d)", page, (int)pages_state(page), (int)moment);
		if (holds_secret(page))
			host_fail("page %u can be reached and holds a secret (moment %d)", page, (int)moment);
	}
	check_npu(moment);
	if ((moment == HOST_FLUSHING_STAGE2 || moment == HOST_FLUSHING_DEVICES) &&
	    *field(FLEX_AT_EVENT_HEAD) != events_before)
		host_fail("the secure world was told before the flush");
	check_told();
}

/* Law 4, for the pages that can change. */
static void check_leaves(void)
{
	const u64 *stage2 = (u64 *)(void *)ram(monitor_layout()->stage2.level3);
	const u64 *devices = (u64 *)(void *)ram(monitor_layout()->devices.level3);
	const u64 *secure = (u64 *)(void *)ram(monitor_layout()->secure.level3);
	u64 at;
	u32 page;

	for (page = 0; page < REGISTERS_PAGES; page++) {
		at = monitor_layout()->window + page * (u64)FLEX_PAGE_BYTES;
		if (registers_leaves()[page] != (world.npu == FLEX_NPU_STATE_NORMAL ? at | REGISTERS_LEAF : 0))
			host_fail("page %u of the NPU's registers is mapped wrong", page);
	}
	for (page = 0; page < world.pages + 1; page++) {
		at = world.base + page * (u64)FLEX_PAGE_BYTES;
		if (secure[page] != (model_state(&world, at) == FLEX_STATE_SECURE ? at | DEVICE_LEAF : 0))
			host_fail("page %u: the NPU's tables say %#llx", page, (unsigned long long)secure[page]);
		if (model_state(&world, at) != FLEX_STATE_NORMAL)
			at = 0;
		if (stage2[page] != (at ? at | STAGE2_LEAF : 0) || devices[page] != (at ? at | DEVICE_LEAF : 0))
			host_fail("page %u: the tables say %#llx and %#llx", page, (unsigned long long)stage2[page],
				  (unsigned long long)devices[page]);
	}
}

static u64 root_expected(void)
{
	switch (world.npu) {
	case FLEX_NPU_STATE_NORMAL:
		return monitor_layout()->devices.level1;
	case FLEX_NPU_STATE_SECURE:
		return monitor_layout()->secure.level1;
	default:
		return 0;
	}
}

/* Laws 8 and 9, between two steps. */
static void check_npu_model(void)
{
	u32 i;

	if (npu_state() != world.npu || *field(FLEX_AT_NPU_STATE) != world.npu)
		host_fail("the NPU is in state %d, not %d", (int)npu_state(), (int)world.npu);
	if (host.npu.root != root_expected())
		host_fail("the NPU goes by the wrong tree in state %d", (int)world.npu);
	for (i = 0; i < 2 * SANDBOX_PAGES && world.npu <= FLEX_NPU_STATE_NORMAL; i++)
		if (*sandbox_word(i) != 0)
			host_fail("the sandbox was left as it was");
}

/* Law 5, and what else the model knows. */
static void check_model(void)
{
	u64 counted[FLEX_STATE_MONITOR + 1] = { 0 }, kept = 0;
	u32 page, state;

	for (page = 0; page < world.pages; page++)
		if (pages_state(page) != world.state[page])
			host_fail("page %u is in state %d, not %d", page, (int)pages_state(page), (int)world.state[page]);
		else
			counted[world.state[page]]++;
	counted[FLEX_STATE_MONITOR] = FLEX_HIDDEN_BYTES / FLEX_PAGE_BYTES;
	for (state = 0; state <= FLEX_STATE_MONITOR; state++) {
		if (counted[state] != pages_count((enum flex_state)state))
			host_fail("%llu pages are in state %u, %llu are counted", (unsigned long long)counted[state], state,
				  (unsigned long long)pages_count((enum flex_state)state));
		kept += pages_count((enum flex_state)state);
	}
	if (kept != host.ram_bytes / FLEX_PAGE_BYTES)
		host_fail("pages were lost");
	if (secure_attached() != world.attached)
		host_fail("attached: %d, not %d", (int)secure_attached(), (int)world.attached);
	if (*field(FLEX_AT_EVENT_HEAD) - *field(FLEX_AT_EVENT_TAIL) != world.unread)
		host_fail("%u events are unread, not %u", *field(FLEX_AT_EVENT_HEAD) - *field(FLEX_AT_EVENT_TAIL), world.unread);
	if (*field(FLEX_AT_COMMAND_HEAD) - *field(FLEX_AT_COMMAND_TAIL) != world.commands.count)
		host_fail("commands were lost or done twice");
}

/* Law 7, for the answer, the number of events and the bell. */
static void check_answer(const u64 x[5], u64 rings)
{
	u32 i, told = *field(FLEX_AT_EVENT_HEAD) - events_before;

	for (i = 0; i < 5; i++)
		if (x[i] != expected.x[i])
			host_fail("x%u is %#llx, not %#llx", i, (unsigned long long)x[i], (unsigned long long)expected.x[i]);
	if (told != expected.events.count)
		host_fail("%u events, not %u", told, expected.events.count);
	if (host.rings - rings != (told > 0 && told == world.unread))
		host_fail("%llu bells for %u events", (unsigned long long)(host.rings - rings), told);
}

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

/* Law 3. */
static void check_given_back(const u64 x[3])
{
	u32 first = (u32)((x[1] - world.base) / FLEX_PAGE_BYTES), page, word;

	for (page = first; page < first + x[2]; page++)
		if (x[0] == FLEX_SMC_BASE + FLEX_CALL_RETURN) {
			if (words_of(page)[0] != JUNK || words_of(page)[WORDS_OF_A_PAGE - 1] != JUNK)
				host_fail("page %u was returned, but not as it was", page);
		} else {
			for (word = 0; word < WORDS_OF_A_PAGE; word++)
				if (words_of(page)[word] != 0)
					host_fail("page %u was taken, but is not zeros", page);
		}
}

/* Law 9. `code` is what the OS had when it made the call. */
static void check_code(const u8 *code, u64 bytes)
{
	static const u8 zeros[FLEX_NPU_CODE_BYTES_MAX];
	const u8 *copy = ram(monitor_layout()->code);
	struct digest digest = sha256(code, bytes);

	if (memcmp(field(FLEX_AT_NPU_DRIVER), &digest, sizeof(digest)) != 0)
		host_fail("the digest is not that of what drives the NPU");
	if (memcmp(copy, code, bytes) != 0 || memcmp(copy + bytes, zeros, sizeof(zeros) - bytes) != 0)
		host_fail("what drives the NPU is not what the OS named");
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
	u8 code[FLEX_NPU_CODE_BYTES_MAX];

	host.npu_deaf = lies.npu_deaf;
	host.stop = lies.stop;
	host.result = lies.result;
	expected = model_call(&world, x, lies, relax);
	world_save(before);
	events_before = *field(FLEX_AT_EVENT_HEAD);
	host.relax_status = relax;
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT && expected.x[0] == FLEX_STATUS_OK)
		memcpy(code, ram(arguments[1]), arguments[2]);
	monitor_call(x);
	check_answer(x, rings);
	if (x[0] != FLEX_STATUS_OK && !same_as_before())
		host_fail("a refused call changed something");
	if (x[0] != FLEX_STATUS_OK)
		return;
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_TAKE || arguments[0] == FLEX_SMC_BASE + FLEX_CALL_RETURN)
		check_given_back(arguments);
	if (arguments[0] == FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT)
		check_code(code, arguments[2]);
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

	events_before = *field(FLEX_AT_EVENT_HEAD);
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
	check_leaves();
	check_model();
	check_npu_model();
	use_pages();
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
	host.watcher = check_moment;
	world_reset();
	before = realloc(before, world_bytes());
	pristine = realloc(pristine, FLEX_HIDDEN_BYTES);
	if (!before || !pristine)
		host_fail("no memory");
	without_pieces(pristine);
}
