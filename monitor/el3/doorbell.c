/* The secure world rings: the OS is told by an ordinary interrupt of its own. */

#include "el3/el3.h"

void doorbell_answer(void)
{
	int byte;

	while ((byte = uart_get()) >= 0) {
		if (byte == FLEX_BYTE_RING)
			gic_pend(FLEX_DOORBELL_INTID);
		else if (byte == FLEX_BYTE_QUERY)
			uart_put(modes_protection() == PROTECTION_ON ? FLEX_BYTE_ON : FLEX_BYTE_OFF);
	}
}
