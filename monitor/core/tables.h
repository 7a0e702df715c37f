/*
 * What the normal world reaches: Stage-2 for its CPUs, a stage-1 tree for its devices (the SMMU of
 * QEMU 7.2 has no stage 2); and what an NPU of the secure world reaches: another stage-1 tree, which has
 * the SECURE pages and no others. All map RAM one to one in 4 KiB pages, from level-3 tables that exist
 * from the start: to hide a page is to clear one word, to show it is to write it again.
 *
 * Callers hold the lock and flush: after tables_hide, arch_flush_stage2 and arch_flush_devices. Showing
 * needs no flush, since what is invalid is never cached. After tables_close comes npu_forget.
 */
#ifndef MONITOR_TABLES_H
#define MONITOR_TABLES_H

#include "core/pages.h"

/* Map all RAM below hidden_base and the windows; everything else stays invalid. */
void tables_init(const struct layout *layout, const struct window *windows, u32 count);

void tables_hide(struct range range);
void tables_show(struct range range);

/* The NPU's registers, for the OS's CPUs; hiding needs arch_flush_stage2. */
void tables_show_registers(void);
void tables_hide_registers(void);

/* The secure world's NPU reaches these pages, or does not. */
void tables_open(struct range range);
void tables_close(struct range range);

/* Whether it does reach this page. */
bool tables_is_open(u64 page);

/* Whether the normal world, its CPUs or its devices, has a mapping of this page. */
bool tables_shown(u64 page);

#endif
