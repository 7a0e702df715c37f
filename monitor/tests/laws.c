#include "tests/laws.h"

#include <string.h>

#include "core/monitor.h"
#include "core/npu.h"
#include "core/pages.h"
#include "core/secure.h"
#include "tests/places.h"
#include "tests/world.h"

/* The leaves of the interface between the core and the MMUs; written down once more on purpose. */
#define STAGE2_LEAF 0x7ffULL /* valid page, write-back memory, read and write, inner shareable, accessed */
#define DEVICE_LEAF 0x743ULL /* valid page, attribute 0, any privilege, inner shareable, accessed */
#define REGISTERS_LEAF 0x00400000000004c7ULL /* valid page, registers, read and write, never executed */

static u32 events_before; /* head of the events' ring when a call began */
static struct model_answer expected; /* of the call under way */

void laws_expect(const struct model_answer *answer)
{
	expected = *answer;
	events_before = *field(FLEX_AT_EVENT_HEAD);
}

static bool registers_hold(u64 word)
{
	return registers()[0] == word || registers()[REGISTERS_WORDS - 2] == word;
}

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
void laws_at_moment(enum host_moment moment)
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
void laws_of_answer(const u64 x[5], u64 rings)
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

/* Law 3. */
void laws_of_pages_back(const u64 x[3])
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
void laws_of_code(const u8 *code, u64 bytes)
{
	static const u8 zeros[FLEX_NPU_CODE_BYTES_MAX];
	const u8 *copy = ram(monitor_layout()->code);
	struct digest digest = sha256(code, bytes);

	if (memcmp(field(FLEX_AT_NPU_DRIVER), &digest, sizeof(digest)) != 0)
		host_fail("the digest is not that of what drives the NPU");
	if (memcmp(copy, code, bytes) != 0 || memcmp(copy + bytes, zeros, sizeof(zeros) - bytes) != 0)
		host_fail("what drives the NPU is not what the OS named");
}

void laws_between_steps(void)
{
	check_leaves();
	check_model();
	check_npu_model();
}
