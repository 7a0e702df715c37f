#include "core/notices.h"

#include "arch/arch.h"
#include "core/limits.h"

static struct message queue[NOTICES_MAX];
static u32 head;
static u32 tail;

void notices_init(void)
{
	head = tail = 0;
}

bool notices_full(void)
{
	return head - tail == NOTICES_MAX;
}

void notices_put(u64 kind, u64 a, u64 b, u64 c)
{
	if (notices_full())
		arch_panic("too many notices");
	queue[head++ % NOTICES_MAX] = (struct message){ kind, a, b, c };
}

struct message notices_take(void)
{
	if (head == tail)
		return (struct message){ FLEX_NOTICE_NONE, 0, 0, 0 };
	return queue[tail++ % NOTICES_MAX];
}
