#include "core/elf.h"

#include "arch/arch.h"
#include "core/areas.h"
#include "core/random.h"
#include "core/user.h"

#define MAGIC 0x464c457f
#define CLASS_64_LITTLE 0x0102 /* class 2, data 1 */
#define TYPE_EXECUTABLE 2
#define MACHINE_AARCH64 183
#define LOAD 1
#define INTERPRETER 3
#define RUN 1U
#define WRITE 2U

/* What of the two structs is used. */
struct header {
	u32 magic;
	u16 class_and_order;
	u8 rest[10];
	u16 type;
	u16 machine;
	u32 version;
	u64 entry;
	u64 programs;
	u64 sections;
	u32 flags;
	u16 bytes;
	u16 program_bytes;
	u16 program_count;
};

struct program {
	u32 type;
	u32 flags;
	u64 offset;
	u64 va;
	u64 pa;
	u64 file_bytes;
	u64 memory_bytes;
	u64 align;
};

/* What the C library is told. */
enum auxiliary {
	AUX_END,
	AUX_PHDR = 3,
	AUX_PHENT = 4,
	AUX_PHNUM = 5,
	AUX_PAGESZ = 6,
	AUX_ENTRY = 9,
	AUX_HWCAP = 16,
	AUX_SECURE = 23,
	AUX_RANDOM = 25,
};

/* fp, asimd, aes, pmull, sha1, sha2, crc32, atomics, fphp, asimdhp, asimddp: what a Cortex-A55 and later ones have. */
#define HWCAP (1ULL << 0 | 1ULL << 1 | 0xfcULL << 1 | 1ULL << 9 | 1ULL << 10 | 1ULL << 20)

static u64 down(u64 address)
{
	return address / PAGE * PAGE;
}

static u64 up(u64 address)
{
	return down(address + PAGE - 1);
}

/* Whether a segment lies in the file and in the image's addresses. */
static bool is_sane(const struct program *program, u64 bytes)
{
	return program->offset <= bytes && program->file_bytes <= bytes - program->offset &&
	       program->file_bytes <= program->memory_bytes && program->va >= IMAGE_FIRST && program->va < IMAGE_END &&
	       program->memory_bytes <= IMAGE_END - program->va && program->memory_bytes > 0;
}

/* Whether its pages can be mapped where they lie. */
static bool lies_well(const struct program *program, u64 pa)
{
	return !(program->flags & WRITE) && program->file_bytes == program->memory_bytes &&
	       (pa + program->offset) % PAGE == program->va % PAGE;
}

static enum loaded map_segment(const struct program *program, u64 pa)
{
	u64 start = down(program->va), end = up(program->va + program->memory_bytes), from = down(pa + program->offset), at;
	enum use use = program->flags & RUN ? USE_RUN : USE_READ;

	if (areas_add(start, end - start, AREA_IMAGE, use) != 0)
		return LOADED_BAD;
	for (at = start; at < end; at += PAGE)
		tables_map(at, from + (at - start), use);
	return LOADED;
}

static enum loaded copy_segment(const struct program *program, u64 pa)
{
	u64 start = down(program->va), end = up(program->va + program->memory_bytes);

	if (program->flags & RUN) /* what is run lies in flash, and is never written */
		return LOADED_BAD;
	if (areas_room(start, end, end - start) != start)
		return LOADED_BAD;
	if (areas_private(start, end - start, USE_WRITE) != 0)
		return LOADED_LARGE;
	if (!user_write(program->va, (const u8 *)arch_at(pa) + program->offset, program->file_bytes))
		arch_panic("a segment has no memory");
	if (!(program->flags & WRITE))
		areas_protect(start, end - start, USE_READ);
	return LOADED;
}

static void push(u64 *sp, const void *from, u64 bytes)
{
	*sp -= bytes;
	if (!user_write(*sp, from, bytes))
		arch_panic("the stack has no memory");
}

/* argc, argv, the environment, and what the C library is told. */
static void fill_stack(const struct header *header, u64 programs, struct started *started)
{
	static const char name[16] = "application";
	u64 sp = STACK_END, named, random, words[24], n = 0;
	u8 bytes[16] = { 0 };

	random_fill(bytes, sizeof(bytes)); /* without a seed: zeros, and getrandom says so */
	push(&sp, name, sizeof(name));
	named = sp;
	push(&sp, bytes, sizeof(bytes));
	random = sp;
	const u64 told[][2] = {
		{ AUX_PHDR, programs }, { AUX_PHENT, sizeof(struct program) }, { AUX_PHNUM, header->program_count },
		{ AUX_PAGESZ, PAGE }, { AUX_ENTRY, header->entry }, { AUX_HWCAP, HWCAP },
		{ AUX_SECURE, 0 }, { AUX_RANDOM, random }, { AUX_END, 0 },
	};
	words[n++] = 1;
	words[n++] = named;
	words[n++] = 0;
	words[n++] = 0;
	for (u32 i = 0; i < sizeof(told) / sizeof(told[0]); i++) {
		words[n++] = told[i][0];
		words[n++] = told[i][1];
	}
	push(&sp, words, n * sizeof(words[0])); /* a whole number of 16 bytes */
	started->sp = sp;
	started->pc = header->entry;
}

static enum loaded load_segments(const struct program *programs, u32 count, u64 pa, u64 bytes, struct started *started)
{
	enum loaded result = LOADED_BAD;
	u32 i;

	for (i = 0; i < count; i++) {
		const struct program *program = &programs[i];

		if (program->type == INTERPRETER)
			return LOADED_BAD;
		if (program->type != LOAD)
			continue;
		if (!is_sane(program, bytes))
			return LOADED_BAD;
		result = lies_well(program, pa) ? map_segment(program, pa) : copy_segment(program, pa);
		if (result != LOADED)
			return result;
		if (up(program->va + program->memory_bytes) > started->end)
			started->end = up(program->va + program->memory_bytes);
	}
	return result;
}

/* Where the program headers are mapped; 0: nowhere. */
static u64 programs_at(const struct header *header, const struct program *programs)
{
	u32 i;

	for (i = 0; i < header->program_count; i++)
		if (programs[i].type == LOAD && header->programs >= programs[i].offset &&
		    header->programs - programs[i].offset < programs[i].file_bytes)
			return programs[i].va + (header->programs - programs[i].offset);
	return 0;
}

enum loaded elf_load(u64 pa, u64 bytes, struct started *started)
{
	const struct header *header = arch_at(pa);
	const struct program *programs;
	enum loaded result;

	*started = (struct started){ 0, 0, 0 };
	if (bytes < sizeof(*header) || header->magic != MAGIC)
		return LOADED_NONE;
	if (header->class_and_order != CLASS_64_LITTLE || header->type != TYPE_EXECUTABLE || header->machine != MACHINE_AARCH64 ||
	    header->program_bytes != sizeof(*programs) || header->program_count == 0 ||
	    header->program_count > PROGRAM_HEADERS_MAX || header->programs % 8 != 0 || header->programs > bytes ||
	    header->program_count * sizeof(*programs) > bytes - header->programs)
		return LOADED_BAD;
	programs = (const struct program *)((const u8 *)header + header->programs);
	result = load_segments(programs, header->program_count, pa, bytes, started);
	if (result != LOADED)
		return result;
	if (tables_reach(header->entry, false) == 0)
		return LOADED_BAD;
	if (areas_private(STACK_END - STACK_BYTES, STACK_BYTES, USE_WRITE) != 0)
		return LOADED_LARGE;
	fill_stack(header, programs_at(header, programs), started);
	return LOADED;
}
