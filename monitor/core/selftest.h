/* The ownership table and the tables of the MMUs, tried out at boot before anybody relies on them. */
#ifndef MONITOR_SELFTEST_H
#define MONITOR_SELFTEST_H

#include "core/layout.h"

/* Walk one page along every legal move and try every illegal one; panics when one is judged wrong. */
void selftest_run(const struct layout *layout);

#endif
