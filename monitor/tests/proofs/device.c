#include "tests/proofs/device.h"

#include "arch/arch.h"
#include "tests/proofs/machine.h"

#define REGISTER_WORDS (FLEX_NPU_WINDOW_BYTES / sizeof(u64))
#define PAGE_WORDS (FLEX_PAGE_BYTES / sizeof(u64))
#define FIRST_WORD (FLEX_NPU_WINDOW_KEPT / sizeof(u64)) /* those before say which device it is */

static struct device {
	u64 root;
	bool resetting; /* asked for, not done */
	bool works_for_os;
	bool works_for_secure;
	bool reached; /* it remembers a way to the watched page */
	bool registers_known; /* a CPU of the normal world remembers a way to the watched page of its registers */
	bool stack_used; /* since it was scrubbed */
	bool code_used;
	u64 copied; /* bytes of code that were copied in this step */
	enum flex_npu_state last; /* its state at the moment before */
} device;

static u64 registers[REGISTER_WORDS];
static u8 sandbox[FLEX_NPU_CODE_BYTES_MAX];
static u64 watched_leaf; /* the number of a page of them */

static bool between(void)
{
	return npu_state() == FLEX_NPU_STATE_ENTERING || npu_state() == FLEX_NPU_STATE_LEAVING;
}

static u64 root_of_state(void)
{
	if (npu_state() == FLEX_NPU_STATE_NORMAL)
		return DEVICES_TREE;
	return npu_state() == FLEX_NPU_STATE_SECURE ? SECURE_TREE : 0;
}

/* Words at the edges of pages stand for all: the rest is zeroed in the same loop. */
static void use_registers(void)
{
	registers[FIRST_WORD] = nondet_u64();
	registers[PAGE_WORDS - 1] = nondet_u64();
	registers[PAGE_WORDS] = nondet_u64();
	registers[REGISTER_WORDS - 1] = nondet_u64();
}

static bool registers_empty(void)
{
	return registers[FIRST_WORD] == 0 && registers[PAGE_WORDS - 1] == 0 && registers[PAGE_WORDS] == 0 &&
	       registers[REGISTER_WORDS - 1] == 0;
}

void device_any(void)
{
	u8 page_state = pages_state(small.watched);
	bool normal = npu_state() == FLEX_NPU_STATE_NORMAL, secure = npu_state() == FLEX_NPU_STATE_SECURE;

	watched_leaf = small.window + nondet_u8() % (FLEX_NPU_WINDOW_BYTES / FLEX_PAGE_BYTES);
	device.root = root_of_state();
	device.resetting = between() && nondet_bool();
	device.works_for_os = normal || device.resetting;
	device.works_for_secure = secure || device.resetting;
	device.reached = (normal && page_state == FLEX_STATE_NORMAL) || (secure && page_state == FLEX_STATE_SECURE);
	device.registers_known = normal;
	device.stack_used = device.code_used = !normal;
	device.copied = 0;
	device.last = npu_state();
	use_registers();
}

bool device_holds(void)
{
	u8 page_state = pages_state(small.watched);
	bool normal = npu_state() == FLEX_NPU_STATE_NORMAL, secure = npu_state() == FLEX_NPU_STATE_SECURE;

	if (!small.npus)
		return true;
	/* Each line allows no more than device_any supposes. */
	return device.root == root_of_state() && (between() || !device.resetting) && (normal || !device.registers_known) &&
	       (!device.works_for_os || normal || device.resetting) &&
	       (!device.works_for_secure || secure || device.resetting) &&
	       (!device.reached || (normal && page_state == FLEX_STATE_NORMAL) ||
		(secure && page_state == FLEX_STATE_SECURE)) &&
	       (!normal || (!device.stack_used && !device.code_used));
}

static void look_up(void)
{
	struct view now;

	tables_view(&now);
	if (device.root == DEVICES_TREE)
		device.reached |= now.devices != 0;
	if (device.root == SECURE_TREE)
		device.reached |= now.secure != 0;
}

void device_moment(void)
{
	u8 page_state = pages_state(small.watched);
	bool secure = npu_state() == FLEX_NPU_STATE_SECURE;

	if (!small.npus)
		return;
	if (npu_state() != device.last && (secure || npu_state() == FLEX_NPU_STATE_NORMAL))
		prove(registers_empty(), "whoever gets the NPU finds its registers empty");
	device.last = npu_state();
	device.registers_known |= small.stage2[watched_leaf] != 0;
	prove(!device.registers_known || npu_state() == FLEX_NPU_STATE_NORMAL,
	      "the OS reaches the NPU only while it is NORMAL");
	device.works_for_os |= device.registers_known;
	device.works_for_secure |= secure;
	if (device.works_for_os || device.works_for_secure) {
		look_up();
		use_registers();
	}
	prove(!device.reached || !device.works_for_os || page_state == FLEX_STATE_NORMAL,
	      "what the NPU reaches for the OS is NORMAL");
	prove(!device.reached || !device.works_for_secure || page_state == FLEX_STATE_SECURE,
	      "what the NPU reaches for the secure world is SECURE");
}

void device_flush_stage2(void)
{
	device.registers_known = false;
}

bool device_scrubs(u64 pa, u64 pages)
{
	u64 code_pages = FLEX_NPU_CODE_BYTES_MAX / FLEX_PAGE_BYTES, stack = SANDBOX + FLEX_NPU_CODE_BYTES_MAX;

	if (pa == SANDBOX && pages == code_pages + 1)
		device.code_used = device.stack_used = false;
	else if (pa == stack && pages == 1)
		device.stack_used = false;
	else
		return false;
	return true;
}

/* ---- what arch/arch.h asks for ------------------------------------------------------------------- */

void *arch_at(u64 pa)
{
	prove(small.npus && (pa == SANDBOX || pa == small.base + small.window * FLEX_PAGE_BYTES),
	      "memory is looked up at the start; but for the NPU's registers and what drives it");
	return pa == SANDBOX ? (void *)sandbox : (void *)registers;
}

void arch_npu_root(u64 level1)
{
	prove(small.npus, "what is not there is not told anything");
	prove(level1 == 0 || level1 == DEVICES_TREE || level1 == SECURE_TREE, "its accesses pass one of our trees");
	prove(level1 == 0 || (!device.resetting && !device.works_for_os && !device.works_for_secure),
	      "it reaches something again only after a reset");
	device.root = level1;
	machine_moment();
	device.reached = false;
}

void arch_npu_flush(void)
{
	machine_moment();
	device.reached = false;
}

static void reset(void)
{
	machine_moment();
	if (!device.resetting || nondet_bool())
		return;
	device.resetting = device.works_for_os = device.works_for_secure = device.reached = false;
}

void arch_npu_reset(void)
{
	prove(small.npus, "what is not there is not told anything");
	device.resetting = true;
	reset();
}

bool arch_npu_is_reset(void)
{
	reset();
	return !device.resetting;
}

void arch_copy_code(u64 to, u64 from, u64 bytes)
{
	u64 watched = small.base + small.watched * FLEX_PAGE_BYTES;

	machine_moment();
	prove(to == SANDBOX && bytes >= 1 && bytes <= FLEX_NPU_CODE_BYTES_MAX, "what drives it fits into the sandbox");
	prove(from >= small.base && from + bytes <= small.base + small.pages * FLEX_PAGE_BYTES, "it comes from RAM");
	prove(watched + FLEX_PAGE_BYTES <= from || watched >= from + bytes ||
		      pages_state(small.watched) == FLEX_STATE_NORMAL,
	      "what drives it is copied from NORMAL pages");
	device.copied = bytes;
	device.code_used = true;
}

/* In place of core/sha256.c: whatever the digest is, it is that of the copy. */
struct digest sha256(const void *data, u64 length)
{
	struct digest digest;

	prove(data == sandbox && length == device.copied && length > 0, "what is hashed is the copy, all of it");
	return digest;
}

void arch_sandbox_begin(const u64 arguments[ARCH_ARGUMENTS])
{
	prove(npu_state() == FLEX_NPU_STATE_SECURE, "the NPU is driven only while it is SECURE");
	prove(!device.stack_used, "what drives it begins with an empty stack");
	prove(arguments[0] == small.base + small.window * FLEX_PAGE_BYTES,
	      "what drives it is told where the registers are");
}

enum arch_stop arch_sandbox_run(u64 *result)
{
	struct view now;

	machine_moment();
	npu_view(&now);
	prove(now.driving && now.npu == FLEX_NPU_STATE_SECURE, "the NPU is driven only while it is SECURE");
	device.stack_used = true;
	machine.driven++;
	*result = nondet_u64();
	return nondet_bool() ? ARCH_RETURNED : nondet_bool() ? ARCH_INTERRUPTED : ARCH_FAULTED;
}
