#include "core/flex_calls.h"

#include "core/errors.h"
#include "core/flexmem.h"
#include "core/tables.h"
#include "core/threads.h"
#include "core/user.h"
#include "flex_secure.h"

static struct said last_said;
static const u8 *secret; /* until it was told */
static bool news; /* a core was lent since somebody waited for news */

void flex_calls_init(const u8 *of_application)
{
	secret = of_application;
	last_said = (struct said){ 0, 0 };
	news = false;
}

void flex_calls_hear(struct said said)
{
	last_said = said;
	news = threads_tell() == 0;
}

static s64 call_event(u64 va)
{
	struct message event;
	s64 result;

	if (va % sizeof(u64) != 0 || tables_reach(va, true) == 0 || tables_reach(va + sizeof(event) - 1, true) == 0)
		return ERROR_FAULT; /* before the event is taken */
	result = flexmem_event(&event);
	if (result == 1)
		user_write(va, &event, sizeof(event));
	return result;
}

static s64 call_wait(u32 cpu, u64 ns)
{
	u64 now = arch_now();

	if (news || mailbox_waits())
		news = false;
	else
		threads_wait(cpu, WAIT_NEWS, ns > FOR_EVER - now ? FOR_EVER : now + ns, 0);
	return 0;
}

static s64 call_ring(u64 to_address, u64 to_bytes)
{
	u64 va, bytes;
	s64 result = flexmem_ring(last_said.ring_page, last_said.ring_pages, &va, &bytes);

	if (result == 0 && !(user_write(to_address, &va, sizeof(va)) && user_write(to_bytes, &bytes, sizeof(bytes))))
		return ERROR_FAULT;
	return result;
}

static s64 call_protection(u64 va)
{
	struct flex_secure_protection told;
	u64 state;

	state = arch_measure(told.digest);
	told.switches = arch_protection().switches;
	return user_write(va, &told, sizeof(told)) ? (s64)state : ERROR_FAULT;
}

static s64 call_take(u64 count, u64 va)
{
	u64 page;
	s64 result;

	if (tables_reach(va, true) == 0 || va % sizeof(u64) != 0)
		return ERROR_FAULT;
	result = flexmem_take(count, &page);
	user_write(va, &page, sizeof(page));
	return result;
}

/* Whoever asks first is the application before it has heard from the normal world. Nobody hears it again. */
static s64 call_secret(u64 va)
{
	u8 any = 0;
	u32 i;

	for (i = 0; secret && i < SECRET_BYTES; i++)
		any |= secret[i];
	if (any == 0)
		return ERROR_NOENT;
	if (!user_write(va, secret, SECRET_BYTES))
		return ERROR_FAULT;
	secret = NULL;
	return 0;
}

s64 flex_calls_serve(u32 cpu, const u64 *x, u64 number)
{
	switch (number) {
	case FLEX_SECURE_RESERVE:
		return flexmem_reserve(x[0]);
	case FLEX_SECURE_MAP:
		return flexmem_map(x[0], x[1], x[2]);
	case FLEX_SECURE_UNMAP:
		return flexmem_unmap(x[0], x[1]);
	case FLEX_SECURE_COMMAND:
		return flexmem_command((struct message){ x[0], x[1], x[2], x[3] });
	case FLEX_SECURE_EVENT:
		return call_event(x[0]);
	case FLEX_SECURE_WAIT:
		return call_wait(cpu, x[0]);
	case FLEX_SECURE_RING:
		return call_ring(x[0], x[1]);
	case FLEX_SECURE_PROTECTION:
		return call_protection(x[0]);
	case FLEX_SECURE_GIVE:
		return flexmem_give(x[0], x[1]);
	case FLEX_SECURE_TAKE:
		return call_take(x[0], x[1]);
	case FLEX_SECURE_SECRET:
		return call_secret(x[0]);
	default:
		return ERROR_NOSYS;
	}
}
