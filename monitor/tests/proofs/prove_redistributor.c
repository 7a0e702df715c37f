/* Any access of the OS to the control frame of a redistributor. */
#include "tests/proofs/parts.h"

#include "core/redistributor.h"

int main(void)
{
	u64 offset = nondet_u64(), bytes = nondet_u64(), shown = redistributor_shown(offset, bytes);

	prove(shown == 0 || bytes == 4 || (bytes == 8 && offset == 0x0008), "only whole registers are seen");
	prove(bytes != 4 || shown <= 0xffffffff, "and no more than was asked for");
	prove(shown == 0 || offset <= 0x0014 || offset >= 0xffd0, "no table is named, and nothing about LPIs is seen");
	prove(offset != 0x0000 || (shown & 1) == 0, "they are off");
	prove(offset != 0x0008 || (shown & 0x0f) == 0, "and there are none");
	prove(shown == 0 || (offset % 4 == 0 && offset < 0x10000), "nothing beyond the frame is read");
	possible(shown != 0 && offset == 0x0008 && bytes == 8);
	possible(shown == 0 && offset == 0x0078 && bytes == 8);
	return 0;
}
