#include "core/user.h"

#include "arch/arch.h"
#include "core/tables.h"

/* Bytes from `va` to the end of its page, or `bytes`. */
static u64 piece(u64 va, u64 bytes)
{
	u64 rest = PAGE - va % PAGE;

	return rest < bytes ? rest : bytes;
}

static void copy(u8 *to, const u8 *from, u64 bytes)
{
	while (bytes--)
		*to++ = *from++;
}

bool user_read(void *to, u64 va, u64 bytes)
{
	u8 *at = to;
	u64 some, pa;

	if (va >= ADDRESSES_END || bytes > ADDRESSES_END - va)
		return false;
	for (; bytes > 0; va += some, at += some, bytes -= some) {
		some = piece(va, bytes);
		pa = tables_reach(va, false);
		if (pa == 0)
			return false;
		copy(at, arch_at(pa), some);
	}
	return true;
}

bool user_write(u64 va, const void *from, u64 bytes)
{
	const u8 *at = from;
	u64 some, pa;

	if (va >= ADDRESSES_END || bytes > ADDRESSES_END - va)
		return false;
	for (; bytes > 0; va += some, at += some, bytes -= some) {
		some = piece(va, bytes);
		pa = tables_reach(va, true);
		if (pa == 0)
			return false;
		copy(arch_at(pa), at, some);
	}
	return true;
}
