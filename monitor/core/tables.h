/*
 * What the normal world reaches: Stage-2 for its CPUs, a stage-1 tree for its devices (the SMMU of
 * QEMU 7.2 has no stage 2). Both map RAM one to one in 4 KiB pages, from level-3 tables that exist
 * from the start: to hide a page is to clear one word in each, to show it is to write them again.
 *
 * Callers hold the lock and flush: after tables_hide, arch_flush_stage2 and arch_flush_devices. Showing
 * needs no flush, since what is invalid is never cached.
 */
#ifndef MONITOR_TABLES_H
#define MONITOR_TABLES_H

#include "core/pages.h"

/* Map all RAM below hidden_base and the windows; everything else stays invalid. */
void tables_init(const struct layout *layout, const struct window *windows, u32 count);

void tables_hide(struct range range);
void tables_show(struct range range);

/* Whether the normal world, its CPUs or its devices, has a mapping of this page. */
bool tables_shown(u64 page);

#endif
