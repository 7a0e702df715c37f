/*
 * Every state of the small machine, and from each of them every step, and the end of the machine: what a model
 * checker would do, with the core's own compiled code as the transition relation. World by world the laws of world.h
 * are checked, so a run that ends without a failure is a proof for the small machine.
 *
 * Why the small machine speaks for large ones. The core treats each page by itself: the only loops over pages
 * compare or set one entry per round, with nothing carried from one round to the next but the counts, whose
 * sums are checked. A fault in a loop therefore shows with its first page, its last page, one page between
 * them, or the page after it: three or four pages and the monitor's first page beside them hold every such
 * case. What depends on a page's *number* (which leaf, which address, which page of the table) does not
 * depend on a state, and is checked for each page of the smallest and the largest machine in test_layout.c and
 * test_tables.c. Rings and queues enter by three facts: empty, room, full; one or two slots have them all, and
 * the wrap of their counters is in test_mailbox.c.
 *
 * States are told apart by what the core's further behaviour depends on. Left out are the texts of notices and
 * events already queued (nothing is decided by them; that they come out as they went in is compared on each
 * path that leads there first) and how often counters went round. A core that remembered more than that could
 * hide it behind a state seen before: long walks without such merging are what fuzz.c adds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/fake_host/fake_host.h"
#include "core/monitor.h"
#include "tests/world.h"

#define STEPS_MAX 1024

struct key {
	u8 state[MODEL_PAGES_MAX];
	u8 attached;
	u8 leaving;
	u8 unread;
	u8 notices;
	u8 npu;
	u8 npu_resetting;
	u8 npu_wanted;
	u8 driving;
	u8 turn;
	struct message commands[FLEX_MAILBOX_SLOTS];
};

/* How a state was reached first. */
struct visit {
	u32 from;
	u32 step;
};

static struct step steps[STEPS_MAX];
static u32 step_count;

static u8 *snapshots; /* one after the other: key, then world */
static struct visit *visits;
static u32 *buckets; /* open addressing; 0 is empty, else number + 1 */
static u32 found, room, bucket_count;
static u64 record_bytes;

static u32 here; /* the state, and the step from it, that is being tried */
static u32 trying;
static u64 tried;

/* ---- every step -------------------------------------------------------------------------------------------- */

static void add(enum step_kind kind, u64 a, u64 b, u64 c, u64 d)
{
	if (step_count == STEPS_MAX)
		host_fail("more steps than expected");
	steps[step_count++] = (struct step){ kind, { a, b, c, d } };
}

static u64 address(u32 page)
{
	return world.base + page * (u64)FLEX_PAGE_BYTES;
}

/* Arguments that name no pages. */
static const struct bad {
	u64 offset; /* from the start of RAM */
	u64 pages;
} bad_ranges[] = {
	{ 0, 0 },
	{ 1, 1 },
	{ 0x800, 1 },
	{ 0, FLEX_CALL_PAGES_MAX + 1 },
	{ 0, 1ULL << 52 },
	{ 0, (1ULL << 52) + 1 },
	{ 0, ~0ULL },
	{ -0x1000ULL, 1 },
	{ -0x1000ULL, 2 },
	{ 1ULL << 32, 1 },
	{ -0x40000000ULL, 1 },
	{ -0x40001000ULL, 2 },
};

static void add_range_calls(u64 function)
{
	u64 last = world.end - FLEX_PAGE_BYTES;
	u32 page, pages, i;

	for (page = 0; page <= world.pages; page++)
		for (pages = 1; page + pages <= world.pages + 1; pages++)
			add(STEP_CALL, function, address(page), pages, 0);
	add(STEP_CALL, function, world.base, FLEX_CALL_PAGES_MAX, 0);
	add(STEP_CALL, function, last, 1, 0);
	add(STEP_CALL, function, last, 2, 0);
	add(STEP_CALL, function, world.end, 1, 0);
	for (i = 0; i < sizeof(bad_ranges) / sizeof(bad_ranges[0]); i++)
		add(STEP_CALL, function, world.base + bad_ranges[i].offset, bad_ranges[i].pages, 0);
	add(STEP_CALL_LYING_TAIL, function, address(0), 1, 0);
	add(STEP_CALL_LYING_HEAD, function, address(0), 1, 0);
}

static void add_calls(void)
{
	static const u64 strange[] = { 0, 0x84000000, FLEX_SMC_BASE - 1, FLEX_SMC_BASE + FLEX_CALL_NPU_STATE + 1, ~0ULL };
	u32 i;

	for (i = 0; i <= FLEX_CALL_NPU_STATE; i++)
		if (i == FLEX_CALL_GRANT || i == FLEX_CALL_RETURN || i == FLEX_CALL_TAKE) {
			add_range_calls(FLEX_SMC_BASE + i);
		} else if (i != FLEX_CALL_STATE) {
			add(STEP_CALL, FLEX_SMC_BASE + i, 7, 9, 0);
			add(STEP_CALL_LYING_TAIL, FLEX_SMC_BASE + i, 7, 9, 0);
			add(STEP_CALL_LYING_HEAD, FLEX_SMC_BASE + i, 7, 9, 0);
		}
	for (i = 0; i <= world.pages; i++)
		add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_STATE, address(i), 0, 0);
	add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_STATE, world.end, 0, 0);
	add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_STATE, world.base + 8, 0, 0);
	for (i = 0; i < sizeof(strange) / sizeof(strange[0]); i++)
		add(STEP_CALL, strange[i], world.base, 1, 0);
	add(STEP_RELAX_FAILS, 0, 0, 0, 0);
}

static void add_npu(void)
{
	static const u64 sizes[] = { 0, 1, 9, FLEX_PAGE_BYTES, FLEX_PAGE_BYTES + 1, FLEX_NPU_CODE_BYTES_MAX,
				     FLEX_NPU_CODE_BYTES_MAX + 1, ~0ULL };
	u32 kind, page, i;

	for (page = 0; page <= world.pages; page++)
		for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
			add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT, address(page), sizes[i], 0);
	add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT, world.end, 1, 0);
	add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT, world.end - FLEX_PAGE_BYTES, FLEX_NPU_CODE_BYTES_MAX, 0);
	add(STEP_CALL, FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT, world.base + 8, 1, 0);
	for (kind = STEP_CALL_DEAF; kind <= STEP_CALL_FAILED; kind++)
		add((enum step_kind)kind, FLEX_SMC_BASE + FLEX_CALL_POLL, 7, 9, 0);
	add(STEP_CALL_DEAF, FLEX_SMC_BASE + FLEX_CALL_NPU_GRANT, address(0), 9, 0);
	for (kind = FLEX_COMMAND_NPU_WANT; kind <= FLEX_COMMAND_NPU_RELEASE; kind++)
		add(STEP_COMMAND, kind, 5, 6, 7);
	add(STEP_FAULT, monitor_layout()->window + 8, 0, 0, 0);
}

static void add_faults(void)
{
	u32 page;

	for (page = 0; page <= world.pages; page++)
		add(STEP_FAULT, address(page) + page * 8, 0, 0, 0);
	add(STEP_FAULT, world.end, 0, 0, 0);
	add(STEP_FAULT, 0x09050000, 0, 0, 0);
}

static void add_commands(void)
{
	u32 kind, page, pages;

	for (kind = FLEX_COMMAND_COMMIT; kind <= FLEX_COMMAND_REFUSE; kind++) {
		for (page = 0; page <= world.pages; page++)
			for (pages = 1; page + pages <= world.pages; pages++)
				add(STEP_COMMAND, kind, address(page), pages, 5);
		add(STEP_COMMAND, kind, address(world.pages - 1), 2, 5);
		add(STEP_COMMAND, kind, world.base + 1, 1, 5);
		add(STEP_COMMAND, kind, world.end, 1, 5);
	}
	add(STEP_COMMAND, FLEX_COMMAND_ATTACH, 1, 0, 0);
	add(STEP_COMMAND, FLEX_COMMAND_GONE, 1, 0, 0);
	add(STEP_COMMAND, FLEX_COMMAND_WANT, 3, 9, 1);
	add(STEP_COMMAND, 0, world.base, 1, 5);
	add(STEP_COMMAND, FLEX_COMMAND_COMMIT | 1ULL << 32, world.base, 1, 5);
	add(STEP_COMMAND, FLEX_COMMAND_NPU_RELEASE + 1, world.base + 1, 1, 5);
	add(STEP_READ, 0, 0, 0, 0);
}

/* ---- every state --------------------------------------------------------------------------------------------- */

static struct key key_now(void)
{
	struct key key;

	memset(&key, 0, sizeof(key));
	memcpy(key.state, world.state, world.pages);
	key.attached = world.attached;
	key.leaving = world.leaving;
	key.unread = (u8)world.unread;
	key.notices = (u8)world.notices.count;
	key.npu = world.npu;
	key.npu_resetting = world.npu_resetting;
	key.npu_wanted = world.npu_wanted;
	key.driving = world.driving;
	key.turn = (u8)world.turn;
	memcpy(key.commands, world.commands.at, world.commands.count * sizeof(struct message));
	return key;
}

static u32 bucket_of(const struct key *key)
{
	const u8 *bytes = (const u8 *)key;
	u64 hash = 0xcbf29ce484222325ULL;
	u32 i;

	for (i = 0; i < sizeof(*key); i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3ULL;
	return (u32)((hash ^ hash >> 32) & (bucket_count - 1));
}

static u8 *record(u32 number)
{
	return snapshots + number * record_bytes;
}

static void *grown(void *old, u64 bytes)
{
	void *new = realloc(old, bytes);

	if (!new)
		host_fail("no memory for %llu bytes", (unsigned long long)bytes);
	return new;
}

static void grow(void)
{
	u32 i, at;

	room = room ? room * 2 : 1024;
	bucket_count = room * 4;
	snapshots = grown(snapshots, room * record_bytes);
	visits = grown(visits, room * sizeof(*visits));
	buckets = grown(buckets, bucket_count * sizeof(*buckets));
	memset(buckets, 0, bucket_count * sizeof(*buckets));
	for (i = 0; i < found; i++) {
		for (at = bucket_of((struct key *)(void *)record(i)); buckets[at]; at = (at + 1) & (bucket_count - 1))
			;
		buckets[at] = i + 1;
	}
}

/* Remember today's state if it is new. */
static void note(void)
{
	struct key key = key_now();
	u32 at;

	if (found == room)
		grow();
	for (at = bucket_of(&key); buckets[at]; at = (at + 1) & (bucket_count - 1))
		if (memcmp(record(buckets[at] - 1), &key, sizeof(key)) == 0)
			return;
	buckets[at] = found + 1;
	memcpy(record(found), &key, sizeof(key));
	world_save(record(found) + sizeof(key));
	visits[found++] = (struct visit){ here, trying };
}

/* ---- the way to a failure -------------------------------------------------------------------------------------- */

static void print_step(const struct step *step)
{
	static const char *const names[] = { "call", "fault", "command", "read an event", "relax, refused by EL3",
					     "call, lying about commands", "call, lying about events",
					     "call, and no reset is done", "call, and what drives the NPU is interrupted",
					     "call, and it faults", "call, and it fails" };

	fprintf(stderr, "  %s %#llx %#llx %#llx %#llx\n", names[step->kind], (unsigned long long)step->x[0],
		(unsigned long long)step->x[1], (unsigned long long)step->x[2], (unsigned long long)step->x[3]);
}

static void print_way(void)
{
	u32 way[256], length = 0, at;

	for (at = here; at != 0 && length < 256; at = visits[at].from)
		way[length++] = visits[at].step;
	fprintf(stderr, "after these steps from boot:\n");
	while (length > 0)
		print_step(&steps[way[--length]]);
	if (trying < step_count)
		print_step(&steps[trying]);
	else
		fprintf(stderr, "  the machine ends\n");
}

int main(void)
{
	world_make();
	add_calls();
	add_faults();
	add_commands();
	add_npu();
	record_bytes = sizeof(struct key) + world_bytes();
	note();
	host.witness = print_way;
	for (here = 0; here < found; here++) {
		for (trying = 0; trying < step_count; trying++, tried++) {
			world_load(record(here) + sizeof(struct key));
			world_step(&steps[trying]);
			note();
		}
		world_load(record(here) + sizeof(struct key));
		world_end();
		world_check_rest();
	}
	printf("%u pages, %d ring slots, %d notices, %d NPU: %u states, %llu steps, every law holds in each\n", SMALL_PAGES,
	       FLEX_MAILBOX_SLOTS, SMALL_NOTICES, SMALL_NPUS, found, (unsigned long long)tried);
	return 0;
}
