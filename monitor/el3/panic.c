/* The end: something happened that cannot be, or that nobody could go on after. */

#include "core/limits.h"
#include "el3/el3.h"

#define DATA PLAT_CONSOLE
#define FLAGS (PLAT_CONSOLE + 0x18)
#define FLAG_FULL (1 << 5)

static void say(char letter)
{
	while (register32(FLAGS) & FLAG_FULL)
		;
	set_register32(DATA, (u8)letter);
}

static void say_text(const char *text)
{
	u32 i;

	for (i = 0; i < PANIC_LETTERS_MAX && text[i]; i++)
		say(text[i]);
}

static void say_number(const char *before, u64 number)
{
	int shift;

	say_text(before);
	for (shift = 60; shift >= 0; shift -= 4)
		say("0123456789abcdef"[number >> shift & 0xf]);
}

_Noreturn void panic(const char *why, u64 at, u64 syndrome)
{
	say_text("\r\nmonitor: ");
	say_text(why);
	say_number(", at ", at);
	say_number(", syndrome ", syndrome);
	say_text("\r\n");
	power_off();
}
