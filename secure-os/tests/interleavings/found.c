/* The states that were found, and the steps between them. */
#define STATES_MAX (1U << 22)

static struct state *states;
static u32 *from, *steps, *buckets, count, here;
static u64 *edges, edge_count, edge_room;

static u32 hash(const struct state *state)
{
	const u8 *byte = (const u8 *)state;
	u32 value = 2166136261U, i;

	for (i = 0; i < sizeof(*state); i++)
		value = (value ^ byte[i]) * 16777619U;
	return value;
}

/* A number of its own for each state that was reached. */
static void reached(u32 step)
{
	struct state *new = &states[count];
	u32 at;

	save(new);
	for (at = hash(new) % (2 * STATES_MAX); buckets[at]; at = (at + 1) % (2 * STATES_MAX))
		if (memcmp(&states[buckets[at] - 1], new, sizeof(*new)) == 0)
			break;
	if (!buckets[at]) {
		from[count] = here;
		steps[count] = step;
		buckets[at] = ++count;
		if (count == STATES_MAX)
			host_fail("more states than expected");
	}
	if (edge_count == edge_room) {
		edge_room = edge_room ? 2 * edge_room : 1 << 20;
		edges = realloc(edges, edge_room * sizeof(*edges));
		if (!edges)
			host_fail("no memory for so many steps");
	}
	edges[edge_count++] = (u64)here << 32 | (buckets[at] - 1);
}

/* States from which all messages can still be answered, found backwards; the first one that is none of them, or `count`. */
static u32 first_stuck(void)
{
	u8 *well = calloc(count, 1);
	bool more = true;
	u64 i;
	u32 stuck;

	for (i = 0; i < count; i++)
		well[i] = states[i].answered == messages;
	while (more) {
		more = false;
		for (i = edge_count; i-- > 0;)
			if (well[(u32)edges[i]] && !well[edges[i] >> 32]) {
				well[edges[i] >> 32] = 1;
				more = true;
			}
	}
	for (stuck = 0; stuck < count && well[stuck]; stuck++)
		;
	free(well);
	return stuck;
}
