// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Ciphertext comes from a disk of this kernel's, by DMA, into pages that are this kernel's then and belong to
 * nobody but us; then they are handed over. No CPU copies it. While a page is handed over, the monitor keeps it
 * from the disk as from any other device.
 *
 *   grant AT PAGES     reads into fresh pages, which are handed over; says "first count" of each run of them, in
 *                      the order of what was read. All or none
 *   return FIRST PAGES gets back those of a range that were handed over and never used; says "pages"
 *   room               says how many "pages" could be handed over now; less than 0: how many have to come back first
 *   read AT PAGES      reads into the buffer
 *   write AT PAGES     writes what is in the buffer
 *   flush              what was written stays, also when power goes
 *
 * AT and PAGES count pages, of the disk and of memory. The buffer is user space's: memory that the device tree sets
 * aside, like the ring of messages, so it is in one place whenever this module is loaded.
 *
 * A disk that does not answer in time may still write to the pages that it was told of, at any later moment. So
 * they are not freed then; neither is what its answer would touch, nor is this module. It is told nothing more.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of_reserved_mem.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

#include "flexmem.h"

static char *disk = "/dev/vda";
module_param(disk, charp, 0644);
MODULE_PARM_DESC(disk, "the disk that sealed weights are read from");

static unsigned int disk_ms = FLEX_DISK_MS_DEFAULT;
module_param(disk_ms, uint, 0644);
MODULE_PARM_DESC(disk_ms, "how long the disk has for a command");

#define MODE (FMODE_READ | FMODE_WRITE)

/* ---- moving ---- */

struct transfer {
	struct bio *bio; /* being filled */
	atomic_t pending; /* bios under way, and one while more may come */
	int error;
	struct completion done;
};

static void finish(struct transfer *transfer)
{
	if (atomic_dec_and_test(&transfer->pending))
		complete(&transfer->done);
}

static void ended(struct bio *bio)
{
	struct transfer *transfer = bio->bi_private;

	if (bio->bi_status)
		WRITE_ONCE(transfer->error, blk_status_to_errno(bio->bi_status));
	bio_put(bio);
	finish(transfer);
}

static void begin(struct transfer *transfer, struct block_device *device, blk_opf_t how, sector_t sector)
{
	struct bio *bio = bio_alloc(device, BIO_MAX_VECS, how, GFP_KERNEL);

	bio->bi_iter.bi_sector = sector;
	bio->bi_private = transfer;
	bio->bi_end_io = ended;
	transfer->bio = bio;
}

static void submit(struct transfer *transfer)
{
	atomic_inc(&transfer->pending);
	submit_bio(transfer->bio);
	transfer->bio = NULL;
}

/* Adds pages that lie side by side; what is full goes. */
static void add(struct transfer *transfer, struct page *page, size_t bytes)
{
	struct bio *full = transfer->bio;

	if (bio_add_page(full, page, bytes, 0) == bytes)
		return;
	begin(transfer, full->bi_bdev, full->bi_opf, bio_end_sector(full));
	swap(transfer->bio, full);
	submit(transfer);
	transfer->bio = full;
	bio_add_page(full, page, bytes, 0); /* an empty one has room */
}

/*
 * Has the disk read or write `blocks`, or, when that is NULL, `pages` pages of the buffer (none: a flush). On
 * -ETIMEDOUT all of that is the disk's from now on.
 */
static int move(struct flexmem *fm, blk_opf_t how, u64 at, struct list_head *blocks, unsigned long pages)
{
	struct transfer *transfer = kzalloc(sizeof(*transfer), GFP_KERNEL);
	u64 start = ktime_get_ns();
	struct page *block;
	int error;

	if (!transfer)
		return -ENOMEM;
	atomic_set(&transfer->pending, 1);
	init_completion(&transfer->done);
	begin(transfer, fm->disk.device, how, at << (PAGE_SHIFT - SECTOR_SHIFT));
	if (!blocks && pages)
		add(transfer, fm->disk.buffer, pages * PAGE_SIZE);
	else if (blocks)
		list_for_each_entry(block, blocks, lru)
			add(transfer, block, PAGE_SIZE << page_private(block));
	submit(transfer);
	finish(transfer);
	if (!wait_for_completion_timeout(&transfer->done, msecs_to_jiffies(READ_ONCE(disk_ms)))) {
		fm->disk.silent = true;
		__module_get(THIS_MODULE);
		pr_err("flexmem: %s does not answer and is not used any more\n", disk);
		return -ETIMEDOUT;
	}
	error = transfer->error;
	kfree(transfer);
	flex_count(&fm->counters, FLEX_COUNT_DISK_NS, ktime_get_ns() - start);
	flex_count(&fm->counters, FLEX_COUNT_DISK_PAGES, pages);
	return error;
}

/* ---- handing over ---- */

static ssize_t describe(struct list_head *blocks, char *text, size_t room)
{
	unsigned long first = 0, count = 0;
	struct page *block;
	size_t length = 0;

	list_for_each_entry(block, blocks, lru) {
		unsigned long pages = 1UL << page_private(block);

		if (count && page_to_pfn(block) != first + count) {
			length += scnprintf(text + length, room - length, "%lu %lu\n", first, count);
			count = 0;
		}
		first = count ? first : page_to_pfn(block);
		count += pages;
	}
	return length + scnprintf(text + length, room - length, "%lu %lu\n", first, count);
}

/* Gets back what was handed over of the runs that `text` says. */
static void take_back(struct flexmem *fm, const char *text)
{
	unsigned long first, count;
	int used;

	while (sscanf(text, "%lu %lu\n%n", &first, &count, &used) == 2) {
		flex_pool_return(fm, PFN_PHYS(first), count);
		text += used;
	}
}

/* Hands over all of the blocks, which are the runs that `text` says, or none. */
static int hand_over(struct flexmem *fm, struct list_head *blocks, unsigned long pages, const char *text)
{
	int error = 0;

	mutex_lock(&fm->service.lock);
	flex_ondemand_touch(fm);
	if (READ_ONCE(fm->service.closing)) {
		error = -EBUSY;
	} else if (flex_pool_grant_blocks(fm, blocks) < pages) {
		take_back(fm, text);
		error = -EACCES;
	}
	mutex_unlock(&fm->service.lock);
	return error;
}

static bool allocate(struct flexmem *fm, unsigned long pages, struct list_head *blocks)
{
	bool enough;

	mutex_lock(&fm->service.lock);
	enough = flex_blocks_alloc(fm, pages, blocks) == pages;
	mutex_unlock(&fm->service.lock);
	if (!enough)
		flex_blocks_free(blocks);
	return enough;
}

static ssize_t grant(struct flexmem *fm, u64 at, unsigned long pages, char *text, size_t room)
{
	ssize_t length = 0;
	LIST_HEAD(blocks);
	int error;

	if (!allocate(fm, pages, &blocks)) {
		flex_service_reap(fm, pages); /* the secure world may have given some back for this */
		if (!allocate(fm, pages, &blocks))
			return -ENOMEM;
	}
	error = move(fm, REQ_OP_READ | REQ_SYNC, at, &blocks, pages);
	if (error == -ETIMEDOUT)
		return error; /* they are the disk's */
	if (!error) {
		length = describe(&blocks, text, room);
		error = hand_over(fm, &blocks, pages, text);
	}
	flex_blocks_free(&blocks);
	return error ? error : length;
}

static ssize_t give_back(struct flexmem *fm, u64 first, unsigned long pages, char *text, size_t room)
{
	unsigned long came;

	mutex_lock(&fm->service.lock);
	came = first >> (BITS_PER_LONG - PAGE_SHIFT) ? 0 : flex_pool_return(fm, PFN_PHYS(first), pages);
	mutex_unlock(&fm->service.lock);
	return scnprintf(text, room, "pages %lu\n", came);
}

static ssize_t say_room(struct flexmem *fm, char *text, size_t room)
{
	long pages = flex_blocks_spare();

	return scnprintf(text, room, "pages %ld\n", READ_ONCE(fm->service.closing) ? min(pages, 0L) : pages);
}

/* ---- commands ---- */

/* Opened once, and kept: who waits for it no more cannot close it. */
static int prepare(struct flexmem *fm)
{
	struct block_device *device;

	if (fm->disk.device)
		return fm->disk.silent ? -EIO : 0;
	device = blkdev_get_by_path(disk, MODE, NULL);
	if (IS_ERR(device))
		return PTR_ERR(device);
	fm->disk.device = device;
	return 0;
}

static bool has(struct flexmem *fm, u64 at, unsigned long pages)
{
	u64 all = bdev_nr_bytes(fm->disk.device) / PAGE_SIZE;

	return at <= all && pages <= all - at;
}

static ssize_t carry_out(struct flexmem *fm, const char *name, u64 at, unsigned long pages, char *text, size_t room)
{
	if (!strcmp(name, "return"))
		return give_back(fm, at, pages, text, room);
	if (!strcmp(name, "room"))
		return say_room(fm, text, room);
	if (!strcmp(name, "flush"))
		return move(fm, REQ_OP_WRITE | REQ_PREFLUSH, 0, NULL, 0);
	if (!pages || !has(fm, at, pages))
		return -EINVAL;
	if (!strcmp(name, "grant") && pages <= FLEX_CALL_PAGES_MAX)
		return grant(fm, at, pages, text, room);
	if (!strcmp(name, "read") && pages <= fm->disk.buffer_pages)
		return move(fm, REQ_OP_READ | REQ_SYNC, at, NULL, pages);
	if (!strcmp(name, "write") && pages <= fm->disk.buffer_pages)
		return move(fm, REQ_OP_WRITE | REQ_SYNC, at, NULL, pages);
	return -EINVAL;
}

ssize_t flex_disk_command(struct flexmem *fm, const char *line, char *text, size_t room)
{
	unsigned long pages = 0;
	ssize_t said;
	char name[8];
	u64 at = 0;

	if (sscanf(line, "%7s %llu %lu", name, &at, &pages) < 1)
		return -EINVAL;
	if (!try_module_get(THIS_MODULE))
		return -ENODEV; /* it is being unloaded */
	mutex_lock(&fm->disk.lock);
	said = strcmp(name, "return") ? prepare(fm) : 0;
	if (!said)
		said = carry_out(fm, name, at, pages, text, room);
	if (said < 0)
		flex_count(&fm->counters, FLEX_COUNT_DISK_ERRORS, 1);
	mutex_unlock(&fm->disk.lock);
	module_put(THIS_MODULE);
	return said;
}

void flex_disk_init(struct flexmem *fm, struct device_node *node)
{
	struct reserved_mem *memory = flex_area(node, "buffer");

	mutex_init(&fm->disk.lock);
	if (memory) {
		fm->disk.buffer = pfn_to_page(PHYS_PFN(memory->base));
		fm->disk.buffer_pages = memory->size / PAGE_SIZE;
	}
}

void flex_disk_exit(struct flexmem *fm)
{
	if (fm->disk.device)
		blkdev_put(fm->disk.device, MODE);
}
