#include "core/notices.h"

#include "arch/arch.h"

#define SLOTS 64

static struct message queue[SLOTS];
static u32 head;
static u32 tail;

void notices_init(void)
{
	head = tail = 0;
}

bool notices_full(void)
{
	return head - tail == SLOTS;
}

void notices_put(u64 kind, u64 a, u64 b, u64 c)
{
	if (notices_full())
		arch_panic("too many notices");
	queue[head++ % SLOTS] = (struct message){ kind, a, b, c };
}

struct message notices_take(void)
{
	if (head == tail)
		return (struct message){ FLEX_NOTICE_NONE, 0, 0, 0 };
	return queue[tail++ % SLOTS];
}
