/* QEMU's `virt` machine with secure=on, gic-version=3, highmem=off, iommu=smmuv3: where things are. */
#ifndef PLAT_H
#define PLAT_H

#define PLAT_CPUS 8

#define PLAT_FLASH 0x00000000 /* secure; we run from it */
#define PLAT_SECURE_RAM 0x0e000000
#define PLAT_SECURE_RAM_BYTES 0x01000000

#define PLAT_GICD 0x08000000
#define PLAT_GICR 0x080a0000
#define PLAT_GICR_STRIDE 0x20000
#define PLAT_CONSOLE 0x09000000 /* the normal world's UART: for our last words */
#define PLAT_SECURE_UART 0x09040000
#define PLAT_SECURE_UART_INTID 40
#define PLAT_SMMU 0x09050000
#define PLAT_SECURE_GPIO 0x090b0000 /* pin 0: power off, pin 1: reset */

#define PLAT_KERNEL 0x40200000
#define PLAT_DEVICE_TREE 0x44000000
#define PLAT_INITRD 0x48000000

/*
 * EL2's addresses: the first 4 GiB are physical memory, one to one; the hidden part of RAM, wherever it
 * is, appears again from here on, so that the image is linked for one place.
 */
#define PLAT_EL2_BASE 0x100000000

/* Within the image's first MiB. */
#define PLAT_EL2_BOARD 0xdf000
#define PLAT_EL2_STACKS 0xe0000
#define PLAT_EL2_STACK_BYTES 0x2000
#define PLAT_STREAM_TABLE 0xf0000
#define PLAT_CONTEXT_DESCRIPTOR 0xf4000
#define PLAT_COMMAND_QUEUE 0xf5000
#define PLAT_EL2_LEVEL1 0xf6000
#define PLAT_EL2_LEVEL2 0xf7000
#define PLAT_DEVICE_TABLES 0xf8000 /* five pages: the devices' until EL2 has its own */
#define PLAT_EL2_LEVEL2_FLAT 0xfd000 /* of the GiB that the image lies in */
#define PLAT_EL2_LEVEL3 0xfe000 /* of the image's block, under both of its addresses */

/* What EL2 asks of EL3, besides PSCI: SMC functions of the silicon's provider. */
#define PLAT_SMC_BOOTED 0xc2000000 /* (init's result) */
#define PLAT_SMC_RING 0xc2000001
#define PLAT_SMC_RELAX 0xc2000002
#define PLAT_SMC_PANIC 0xc2000003
#define PLAT_SMC_RUN 0xc2000004 /* for the OS, which is answered by EL3 */
#define PLAT_SMC_END 0xc2000005 /* no CPU is lent any more */

/* What the secure OS asks of EL3: el3/secure_os.h says what it does. */
#define PLAT_SMC_YIELD 0xc2000010
#define PLAT_SMC_DOORBELL 0xc2000011
#define PLAT_SMC_PROTECTION 0xc2000012
#define PLAT_SMC_SWITCHES 0xc2000013

#endif
