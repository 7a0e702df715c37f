/* The secure PL011: the normal world has no address that leads to it. */

#include "el3/el3.h"

#define DATA (PLAT_SECURE_UART + 0x00)
#define FLAGS (PLAT_SECURE_UART + 0x18)
#define CONTROL (PLAT_SECURE_UART + 0x30)
#define INTERRUPTS (PLAT_SECURE_UART + 0x38)

#define FLAG_EMPTY (1 << 4) /* nothing received */
#define FLAG_FULL (1 << 5) /* no room to send */
#define CONTROL_ON 0x301 /* UART, sender, receiver */
#define INTERRUPT_RECEIVED (1 << 4)

static u32 sending;

void uart_init(void)
{
	set_register32(CONTROL, CONTROL_ON);
	set_register32(INTERRUPTS, INTERRUPT_RECEIVED);
}

void uart_put(u8 byte)
{
	while (__atomic_exchange_n(&sending, 1, __ATOMIC_ACQUIRE))
		;
	while (register32(FLAGS) & FLAG_FULL)
		;
	set_register32(DATA, byte);
	__atomic_store_n(&sending, 0, __ATOMIC_RELEASE);
}

int uart_get(void)
{
	return register32(FLAGS) & FLAG_EMPTY ? -1 : (int)(register32(DATA) & 0xff);
}
