/*
 * The secure world rings: the OS is told by an ordinary interrupt of its own. And it is told of what changes.
 *
 * The UART takes bytes only for as long as somebody reads them, and nothing must wait here for a secure world
 * that does not. So it is told of the next change only, after it asked: it has room for what it asks for.
 */

#include "el3/el3.h"
#include "el3/measured.h"

static bool asked;

static u8 word_for(enum protection protection)
{
	return protection == PROTECTION_ON ? FLEX_BYTE_ON : FLEX_BYTE_OFF;
}

void doorbell_tell(enum protection protection)
{
	if (asked)
		uart_put(word_for(protection));
	asked = false;
}

static void say_what_el2_is(void)
{
	struct digest image;
	enum flex_measured measured = modes_measure(&image);

	measured_say(measured, &image, uart_put);
}

void doorbell_answer(void)
{
	int byte;

	while ((byte = uart_get()) >= 0) {
		if (byte == FLEX_BYTE_RING) {
			gic_pend(FLEX_DOORBELL_INTID);
		} else if (byte == FLEX_BYTE_QUERY) {
			uart_put(word_for(modes_protection()));
			asked = true; /* whoever changes it waits for this CPU first */
		} else if (byte == FLEX_MEASURED_ASK) {
			say_what_el2_is();
		}
	}
}
