/* What EL3 says of EL2. Made by abi/generate.py from abi/flex.toml: do not edit. */
#ifndef FLEX_MEASURED_H
#define FLEX_MEASURED_H

enum flex_measured {
	FLEX_MEASURED_ASK = 109, /* what is EL2? Answered with ON, OFF or TAMPERED, and 64 bytes NIBBLE to NIBBLE + 15 */
	FLEX_MEASURED_NIBBLE = 128, /* plus four bits of the SHA-256 of the image that EL2 is started from */
	FLEX_MEASURED_ON = 144, /* protection is on, and EL2's code and constants are the image's */
	FLEX_MEASURED_OFF = 145, /* protection is off: whoever can write to memory can alter EL2 */
	FLEX_MEASURED_TAMPERED = 146, /* EL2 was altered */
};

#endif
