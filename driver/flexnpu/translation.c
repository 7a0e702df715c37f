// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The NPU's own translation: a directory of 1024 tables of 1024 pages each, 32-bit addresses on both
 * sides (the format of Rockchip's IOMMU). Each job has one of its own and reaches its own matrices,
 * nothing else. Whatever comes out of it passes the monitor's table as well: this one keeps programs
 * apart, that one keeps the secure world's memory out of reach.
 *
 * Here all memory is coherent for the NPU. On a board where it is not, pinning and unpinning are where
 * caches are cleaned and invalidated.
 */
#include <linux/mm.h>
#include <linux/slab.h>

#include "flexnpu.h"

enum { ENTRIES = 1024, TABLE_SHIFT = 22 };

#define VALID (1u << 0)
#define READABLE (1u << 1)
#define WRITABLE (1u << 2)

static u32 *new_table(void)
{
	return (u32 *)__get_free_page(GFP_KERNEL | GFP_DMA32 | __GFP_ZERO);
}

static u32 *table_of(u32 entry)
{
	return phys_to_virt(entry & PAGE_MASK);
}

int flexnpu_space_init(struct flexnpu_space *space)
{
	space->directory = new_table();
	return space->directory ? 0 : -ENOMEM;
}

void flexnpu_space_exit(struct flexnpu_space *space)
{
	if (!space->directory)
		return;
	for (int i = 0; i < ENTRIES; i++)
		if (space->directory[i])
			free_page((unsigned long)table_of(space->directory[i]));
	free_page((unsigned long)space->directory);
}

int flexnpu_space_map(struct flexnpu_space *space, u32 iova, phys_addr_t page, bool writable)
{
	u32 *entry = &space->directory[iova >> TABLE_SHIFT];

	if (upper_32_bits(page))
		return -ERANGE;
	if (!*entry) {
		u32 *table = new_table();

		if (!table)
			return -ENOMEM;
		*entry = virt_to_phys(table) | VALID;
	}
	table_of(*entry)[iova >> PAGE_SHIFT & (ENTRIES - 1)] =
		page | VALID | READABLE | (writable ? WRITABLE : 0);
	return 0;
}

/* Takes the pages, or none of them. */
static int pin(struct flexnpu_buffer *buffer, u64 address, unsigned long count, bool written)
{
	unsigned int flags = FOLL_LONGTERM | (written ? FOLL_WRITE : 0);
	int got;

	buffer->pages = kvmalloc_array(count, sizeof(*buffer->pages), GFP_KERNEL);
	if (!buffer->pages)
		return -ENOMEM;
	got = pin_user_pages_fast(address & PAGE_MASK, count, flags, buffer->pages);
	buffer->count = max(got, 0);
	return got == count ? 0 : -EFAULT;
}

int flexnpu_buffer_pin(struct flexnpu *npu, struct flexnpu_buffer *buffer, struct flexnpu_space *space,
		       u32 iova, u64 address, u64 bytes, bool written)
{
	unsigned long count = PFN_UP(offset_in_page(address) + bytes);
	int error;

	buffer->written = written;
	if (atomic_long_add_return(count, &npu->pinned) > totalram_pages() / 4)
		error = -ENOMEM;
	else
		error = pin(buffer, address, count, written);
	atomic_long_sub(count - buffer->count, &npu->pinned);
	for (unsigned long i = 0; !error && i < count; i++)
		error = flexnpu_space_map(space, iova + i * PAGE_SIZE, page_to_phys(buffer->pages[i]),
					  written);
	return error; /* what was pinned is unpinned with the job */
}

void flexnpu_buffer_unpin(struct flexnpu *npu, struct flexnpu_buffer *buffer)
{
	unpin_user_pages_dirty_lock(buffer->pages, buffer->count, buffer->written);
	atomic_long_sub(buffer->count, &npu->pinned);
	kvfree(buffer->pages);
}
