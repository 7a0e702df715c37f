/*
 * EL2's protection of the machine: its registers on every CPU, and switching it on and off.
 *
 * Switched off, EL2's memory is the OS's to write. So before EL2 runs again, all CPUs that are on stand
 * here, no device reaches hidden memory, and the image must have the hash that it had. Then it starts as at reset: from
 * the copy in flash, making its tables anew, since all pages are NORMAL whenever protection goes off.
 */

#include "el3/el3.h"
#include "el3/measured.h"
#include "el3/world.h"

#define SCR 0x435 /* below: non-secure, 64 bits; FIQs come here */
#define SCR_FIQ 0x4
#define SCR_HVC 0x100
#define SCTLR_EL2 0x30cd1835 /* translation and caches on; what can be written is never run */
#define TCR_EL2 0x8080351f /* 8 GiB of addresses, 4 KiB pages, cached walks */
#define VTCR_EL2 0x80003560 /* 4 GiB of addresses from level 1, 4 KiB pages, cached walks */
#define MAIR_EL2 0xff00 /* 0: device, 1: normal, write-back */
#define CNTHCTL_EL2 3
#define MDCR_NOT_HERE (1ULL << 17) /* the OS counts no events of EL2 */

/* EL2's own map. */
#define MAP_TABLE 3ULL
#define MAP_PAGE 2ULL /* else a block */
#define MAP_READ_ONLY (1ULL << 7)
#define MAP_NEVER_RUN (1ULL << 54)
#define MAP_REGISTERS (MAP_NEVER_RUN | 1ULL << 10 | 1ULL)
#define MAP_RAM (MAP_REGISTERS | 3ULL << 8 | 1ULL << 2)

extern const struct board el3_board;
extern const u8 el2_image[], el2_image_end[];
extern const u64 el2_vectors_offset, el2_constants_offset, el2_variables_offset;

static struct layout layout;
static struct digest frozen;
static struct frame afterwards; /* where to go once EL2 has built everything */
static enum protection protection;
static u64 switches;

static u32 lock;
static u32 gathering;
static u32 present; /* CPUs that have come */
static u32 within; /* of them, those that were in EL2 */

enum protection modes_protection(void)
{
	return __atomic_load_n(&protection, __ATOMIC_ACQUIRE);
}

u64 modes_switches(void)
{
	return switches;
}

/* All other CPUs stand still. */
static void set_protection(enum protection now)
{
	switches++;
	__atomic_store_n(&protection, now, __ATOMIC_RELEASE);
}

/* ---- one at a time, and all together ---- */

void modes_join(const struct frame *frame)
{
	bool in_el2 = (frame->spsr & (SPSR_AARCH32 | SPSR_MODE)) == SPSR_EL2H;
	u64 awake;

	if (!__atomic_load_n(&gathering, __ATOMIC_ACQUIRE))
		return;
	if (in_el2)
		__atomic_fetch_add(&within, 1, __ATOMIC_RELAXED);
	awake = gic_mute();
	__atomic_fetch_add(&present, 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(&gathering, __ATOMIC_ACQUIRE))
		__asm__ volatile("wfi"); /* an emulator's cores have better to do than to spin */
	gic_unmute(awake);
	if (!in_el2) /* else nothing has changed, and EL2 goes on with the stack that it has */
		modes_apply();
	__atomic_fetch_sub(&present, 1, __ATOMIC_RELEASE);
}

void modes_lock(const struct frame *frame)
{
	while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
		if (frame)
			modes_join(frame);
}

void modes_unlock(void)
{
	__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

/* Send GATHER_INTID to all other CPUs that are on; returns how many. */
static u32 call_others(void)
{
	u32 cpu, others = 0;

	for (cpu = 0; cpu < PLAT_CPUS; cpu++) {
		if (cpu == this_cpu() || !power_is_on(cpu))
			continue;
		others++;
		gic_gather(cpu);
	}
	return others;
}

/* Have all other CPUs that are on stand still at EL3. */
static void gather(void)
{
	u32 others;

	within = 0;
	__atomic_store_n(&gathering, 1, __ATOMIC_RELEASE);
	others = call_others();
	while (__atomic_load_n(&present, __ATOMIC_ACQUIRE) != others)
		__asm__ volatile("yield");
}

static void release(void)
{
	__atomic_store_n(&gathering, 0, __ATOMIC_RELEASE);
	call_others(); /* it wakes them; they find nobody gathering when they take it */
	while (__atomic_load_n(&present, __ATOMIC_ACQUIRE) != 0)
		__asm__ volatile("yield");
}

/* ---- this CPU ---- */

void modes_confine(void)
{
	write_register("scr_el3", SCR | (modes_protection() == PROTECTION_ON ? SCR_HVC : 0));
	write_register("cptr_el3", 0);
	write_register("mdcr_el3", 0);
	barrier();
}

/* The end of this CPU's stack, from the beginning of hidden memory. */
static u64 stack_of_el2(void)
{
	return PLAT_EL2_STACKS + (this_cpu() + 1ULL) * PLAT_EL2_STACK_BYTES;
}

void modes_apply(void)
{
	bool on = modes_protection() == PROTECTION_ON;

	modes_confine(); /* non-secure: these registers and translations are the normal world's */
	write_register("s3_4_c12_c9_5", 0xf); /* ICC_SRE_EL2 */
	write_register("hcr_el2", HCR_64_BITS | (on ? HCR_TRAP_SMC | HCR_TRAP_MAKERS | HCR_STAGE2 : 0));
	write_register("vtcr_el2", VTCR_EL2);
	write_register("vttbr_el2", layout.stage2.level1);
	write_register("vbar_el2", PLAT_EL2_BASE + el2_vectors_offset);
	write_register("ttbr0_el2", layout.hidden_base + PLAT_EL2_LEVEL1);
	write_register("tcr_el2", TCR_EL2);
	write_register("mair_el2", MAIR_EL2);
	write_register("sctlr_el2", SCTLR_EL2);
	write_register("sp_el2", PLAT_EL2_BASE + stack_of_el2());
	write_register("cptr_el2", CPTR_EL2);
	write_register("hstr_el2", 0);
	write_register("mdcr_el2", MDCR_NOT_HERE | (read_register("pmcr_el0") >> 11 & 0x1f));
	write_register("actlr_el3", 0);
	write_register("actlr_el2", 0);
	write_register("s3_4_c12_c11_0", 0); /* ICH_HCR_EL2: no virtual interrupts */
	write_register("cnthctl_el2", CNTHCTL_EL2);
	write_register("cntvoff_el2", 0);
	write_register("vpidr_el2", read_register("midr_el1"));
	write_register("vmpidr_el2", read_register("mpidr_el1"));
	__asm__ volatile("tlbi alle1\n\ttlbi alle2\n\tic iallu\n\tdsb sy\n\tisb" ::: "memory");
	world_confine();
}

/* ---- starting EL2 ---- */

/* How EL2 may use the page of its image's block that is so far from its beginning. */
static u64 use_of(u64 offset)
{
	if (offset < el2_constants_offset)
		return (MAP_RAM & ~MAP_NEVER_RUN) | MAP_READ_ONLY;
	return offset < el2_variables_offset ? MAP_RAM | MAP_READ_ONLY : MAP_RAM;
}

/* Memory where it is, never run but for EL2's code; and the image's block once more, where it is linked for. */
static void map_el2(void)
{
	u64 *level1 = (u64 *)(layout.hidden_base + PLAT_EL2_LEVEL1);
	u64 *linked = (u64 *)(layout.hidden_base + PLAT_EL2_LEVEL2);
	u64 *flat = (u64 *)(layout.hidden_base + PLAT_EL2_LEVEL2_FLAT);
	u64 *image = (u64 *)(layout.hidden_base + PLAT_EL2_LEVEL3);
	u64 gib = layout.hidden_base / GIB, i;

	for (i = 0; i < ENTRIES; i++) {
		level1[i] = i < 4 ? i * GIB | (i * GIB < layout.ram_base ? MAP_REGISTERS : MAP_RAM) : 0;
		flat[i] = (gib * GIB + i * BLOCK_BYTES) | MAP_RAM;
		linked[i] = 0;
		image[i] = (layout.hidden_base + i * FLEX_PAGE_BYTES) | MAP_PAGE | use_of(i * FLEX_PAGE_BYTES);
	}
	level1[gib] = (u64)flat | MAP_TABLE;
	flat[layout.hidden_base % GIB / BLOCK_BYTES] = (u64)image | MAP_TABLE;
	level1[PLAT_EL2_BASE / GIB] = (u64)linked | MAP_TABLE;
	linked[0] = (u64)image | MAP_TABLE;
}

static void copy_image(void)
{
	const u64 *from = (const u64 *)el2_image;
	u64 *to = (u64 *)layout.hidden_base;

	for (; from < (const u64 *)el2_image_end; from++, to++) {
		*to = *from;
		__asm__ volatile("dc cvau, %0" ::"r"(to) : "memory"); /* for who fetches it as code */
	}
	*(struct board *)(layout.hidden_base + PLAT_EL2_BOARD) = el3_board;
}

/* Continue this CPU in EL2's `init`; modes_booted hears of its end. */
static void start_el2(struct frame *frame)
{
	copy_image();
	map_el2();
	set_protection(PROTECTION_ON);
	barrier();
	modes_apply();
	/* While EL2 runs for us we hold the lock: no doorbell comes that would wait for it. */
	write_register("scr_el3", (SCR | SCR_HVC) & ~SCR_FIQ);
	barrier();
	frame->x[0] = PLAT_EL2_BASE + PLAT_EL2_BOARD;
	frame->elr = PLAT_EL2_BASE;
	frame->spsr = SPSR_MASKED | SPSR_EL2H;
}

void modes_boot(struct frame *frame)
{
	if (!layout_make(&layout, &el3_board) || el3_board.cpus == 0 || el3_board.cpus > PLAT_CPUS)
		panic("no such board", el3_board.ram_bytes, el3_board.cpus);
	scrub_ram(&layout);
	if (!devices_confine(&layout))
		panic("a device writes already", layout.hidden_base, 0);
	if (!devices_reset_npu(&layout))
		panic("the NPU does not answer", layout.control, 0);
	modes_lock(NULL);
	__atomic_store_n(&gathering, 1, __ATOMIC_RELEASE);
	power_enter(&afterwards, PLAT_KERNEL, PLAT_DEVICE_TREE);
	start_el2(frame);
}

void modes_booted(struct frame *frame, u64 result)
{
	if (result != 0)
		panic("EL2 cannot start", layout.hidden_base, result);
	*frame = afterwards;
	modes_apply();
	doorbell_tell(PROTECTION_ON);
	release();
	modes_unlock();
}

/* ---- off, and on again ---- */

static struct digest hash_image(void)
{
	return sha256((const void *)layout.hidden_base, (u64)(el2_image_end - el2_image));
}

static bool same(const struct digest *a, const struct digest *b)
{
	u32 i, differ = 0;

	for (i = 0; i < sizeof(a->bytes); i++)
		differ |= a->bytes[i] ^ b->bytes[i];
	return differ == 0;
}

/* The variables behind code and constants change. */
enum flex_measured modes_measure(struct digest *image)
{
	enum protection now = modes_protection();
	bool whole = measured_is_whole((const u64 *)el2_image, (const u64 *)layout.hidden_base, el2_variables_offset);

	*image = sha256(el2_image, (u64)(el2_image_end - el2_image));
	if (now == PROTECTION_OFF)
		return FLEX_MEASURED_OFF;
	return now == PROTECTION_ON && whole ? FLEX_MEASURED_ON : FLEX_MEASURED_TAMPERED;
}

/* What EL2's vectors saved of the OS when it called lies at the top of this CPU's stack. The call itself is done. */
void modes_leave_el2(struct frame *frame)
{
	*frame = *((const struct frame *)(layout.hidden_base + stack_of_el2()) - 1);
	write_register("sp_el2", PLAT_EL2_BASE + stack_of_el2());
}

/*
 * EL2 never hears of a success: it would have to run on while anybody can write to it. What it had
 * begun, its lock included, is gone when it starts anew.
 */
void modes_switch_off(struct frame *frame)
{
	bool alone;

	modes_lock(frame);
	gather();
	alone = within == 0; /* one that is within EL2 would go on there, in memory that anyone can write */
	if (alone) {
		frozen = hash_image();
		doorbell_tell(PROTECTION_OFF);
		set_protection(PROTECTION_OFF);
		modes_leave_el2(frame);
		frame->x[0] = FLEX_STATUS_OK;
		modes_apply();
	} else {
		frame->x[0] = (u64)FLEX_STATUS_BUSY;
	}
	release();
	modes_unlock();
}

/* First of all devices are kept out: the OS may have told one to alter the image once it was checked. */
static bool image_is_whole(void)
{
	struct digest now;

	if (!devices_confine(&layout))
		return false;
	now = hash_image();
	return same(&now, &frozen);
}

void modes_switch_on(struct frame *frame)
{
	modes_lock(frame);
	if (modes_protection() != PROTECTION_OFF) { /* another CPU was first */
		frame->elr -= 4;
		modes_unlock();
		return;
	}
	gather();
	if (!image_is_whole()) {
		set_protection(PROTECTION_BROKEN);
		frame->x[0] = (u64)FLEX_STATUS_TAMPERED;
		release();
		modes_unlock();
		return;
	}
	afterwards = *frame;
	afterwards.elr -= 4; /* the call is made again, and EL2 serves it */
	start_el2(frame);
}

_Noreturn void modes_panic(const struct frame *frame)
{
	u64 offset = frame->x[1] - PLAT_EL2_BASE;

	panic(offset < IMAGE_BYTES ? (const char *)layout.hidden_base + offset : "EL2",
	      read_register("elr_el2"), read_register("esr_el2"));
}
