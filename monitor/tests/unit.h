/* Tests of the core as it is, on a machine of full size. Each file's tests register themselves. */
#ifndef UNIT_H
#define UNIT_H

#include "arch/arch.h"
#include "arch/fake_host/fake_host.h"
#include "core/mailbox.h"
#include "core/monitor.h"
#include "core/pages.h"
#include "tests/check.h"

#define RAM_BASE 0x40000000ULL
#define RAM_SMALL 0x10000000ULL
#define RAM_LARGE 0xc0000000ULL

/* Pages of a small machine: all of them, and the monitor's own. */
#define ALL (RAM_SMALL / FLEX_PAGE_BYTES)
#define MONITORS (FLEX_HIDDEN_BYTES / FLEX_PAGE_BYTES)

/* The results of the last call: what x1.. held. */
extern u64 answer[4];

/* Boot a machine with this much RAM; the last pages below hidden_base are watched from then on. */
void boot(u64 ram_bytes);
void boot_without_npu(void);

/* Call as the OS; returns the status. */
int os(u64 call, u64 a, u64 b);

/* The page that lies `before` pages before hidden_base. */
u64 page_at(u64 before);
u64 page_number(u64 before);

/* The monitor's memory at a physical address, and a field of the mailbox. */
void *hidden(u64 pa);
u64 *words_at(u64 pa);
u32 *field(u32 offset);

/* The secure world writes a command, and reads an event (kind 0: there is none). */
void command(u64 kind, u64 a, u64 b, u64 c);
struct message event(void);

/* A command carried out at once: the status that its DONE tells; notices are left in the queue. */
int obeyed(u64 kind, u64 a, u64 b);

/* Commands and calls that lead to a known state. */
void attach(void);
void secure_pages(u64 ipa, u64 pages);
void recalling_pages(u64 ipa, u64 pages);

/* The next notice. */
struct message notice(void);

/* Copy everything that a refused call must leave as it was, and compare. */
void remember(void);
void check_unchanged(void);

/* A call that is refused, and changes nothing. */
void refused(u64 call, u64 a, u64 b, int status);

/* Whether CPUs or devices of the OS reach a page, and whether the NPU of the secure world would. */
bool reached(u64 before);
bool opened(u64 before);

/* So many pages are in `state`. */
void check_states(u64 before, u64 pages, enum flex_state state);

/* The NPU, asked for by the command NPU_SERIAL, on its way to the secure world, and there. */
#define NPU_CODE 40 /* pages before hidden_base: where the OS has what drives it */
#define NPU_SERIAL 31
void boot_and_attach(void);
void want_npu(void);
void enter_npu(void);
void secure_npu(void);

/* A command about the NPU that is answered DENIED, and leaves it where it is. */
void denied(u64 kind, u64 a, u64 b, u64 c, u64 serial);

#endif
