/* Where things are on QEMU's `virt` machine, for S-EL1. What it shares with EL3 is said in monitor/el3/secure_os.h. */
#ifndef SECURE_OS_PLAT_H
#define SECURE_OS_PLAT_H

#define OS_CONSTANTS 0x00600000 /* on blocks of their own, which are never run */
#define OS_APPLICATION 0x00800000
#define OS_APPLICATION_END 0x02000000

#define OS_STACK_BYTES 0x2000

/* The kernel's addresses: secure memory and flash, as they lie, from here on; and what it maps one page at a time. */
#define OS_ADDRESSES 0xffffff8000000000
#define OS_WINDOWS 0xffffff8100000000

#endif
