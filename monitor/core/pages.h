/*
 * Who owns each page of RAM: the ownership table. States change here and nowhere else, along the
 * transitions of abi/flex.toml; one that is not in it does not exist.
 *
 * Callers hold the lock.
 */
#ifndef MONITOR_PAGES_H
#define MONITOR_PAGES_H

#include "core/layout.h"

/* `count` pages from page number `first` of RAM on; never beyond RAM, and a caller's is never empty. */
struct range {
	u64 first;
	u64 count;
};

/* All pages NORMAL, but those from hidden_base on, which are the monitor's. */
void pages_init(const struct layout *layout);

/* Make a range of a caller's arguments; false when they do not name 1 to FLEX_CALL_PAGES_MAX whole pages of RAM. */
bool pages_range(u64 ipa, u64 pages, struct range *range);

/* Whether `move` is legal for every page of the range. Changes nothing. */
bool pages_may(enum flex_move move, struct range range);

/* Make a legal move; an illegal one stops the machine. */
void pages_move(enum flex_move move, struct range range);

/* The next FLEX_CALL_PAGES_MAX pages from number `first` on, or as many as there are. */
struct range pages_from(u64 first);

/* Whether `move` is legal for the first page and the last, and each between them can make it or has made it. */
bool pages_may_sweep(enum flex_move move, struct range range);

/* Make `move` for every page of the range that it is legal for. */
void pages_sweep(enum flex_move move, struct range range);

enum flex_state pages_state(u64 page);

/* How many pages from `page` on, at most `most`, are in its state. */
u64 pages_alike(u64 page, u64 most);

/* How many pages are in `state`. */
u64 pages_count(enum flex_state state);

#endif
