/*
 * What the OS sees of the control frame that the interrupt controller has for each CPU: enough to know the
 * CPU by, and no message interrupts (LPIs). Their tables lie wherever the frame says, and the controller
 * reads and writes them past Stage-2 and past the SMMU.
 */
#ifndef MONITOR_REDISTRIBUTOR_H
#define MONITOR_REDISTRIBUTOR_H

#include "core/types.h"

#define REDISTRIBUTOR_WAKER 0x0014

/*
 * The bits that the OS sees of the register at `offset` when it reads `bytes`; others read as zero. With 0 it need
 * not be read at all. Nothing that the OS writes arrives.
 */
u64 redistributor_shown(u64 offset, u64 bytes);

#endif
