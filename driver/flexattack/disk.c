// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A virtio disk, asked as the kernel itself asks it. `disk-read ADDRESS DISK PAGES`: it reads its first pages to
 * there. "answered" is whether it did so, or said that it cannot, in a while; "errno" what it said; "broken" whether
 * it stopped working, which is what a device does whose access was refused. (QEMU's drops one page without a word, and
 * stops at two.)
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/completion.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "flexattack.h"

static const unsigned int patience_ms = 1000;

static void ended(struct bio *bio)
{
	complete(bio->bi_private);
}

static bool is_broken(struct block_device *device)
{
	struct virtio_device *virtio = dev_to_virtio(disk_to_dev(device->bd_disk)->parent);

	return virtio->config->get_status(virtio) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

/* Has it read; a request that stays unanswered keeps what it uses. Whether it was answered. */
static bool ask(struct attack *attack, struct block_device *device, struct completion *done)
{
	struct bio *bio = bio_alloc(device, 1, REQ_OP_READ, GFP_KERNEL);
	bool answered;

	init_completion(done);
	bio->bi_private = done;
	bio->bi_end_io = ended;
	bio_add_page(bio, phys_to_page(word(attack, 1)), PAGE_SIZE * clamp_t(u64, word(attack, 3), 1, 512), 0);
	submit_bio(bio);
	answered = wait_for_completion_timeout(done, msecs_to_jiffies(patience_ms));
	tell(attack, "answered", answered);
	tell(attack, "errno", answered ? blk_status_to_errno(bio->bi_status) : 0);
	tell(attack, "broken", is_broken(device));
	if (answered)
		bio_put(bio);
	return answered;
}

void disk_read(struct attack *attack)
{
	struct block_device *device = blkdev_get_by_path(attack->words[2] ?: "", FMODE_READ, NULL);
	struct completion *done;

	attack->error = PTR_ERR_OR_ZERO(device);
	if (attack->error)
		return;
	done = kmalloc(sizeof(*done), GFP_KERNEL | __GFP_NOFAIL);
	if (!ask(attack, device, done))
		return;
	kfree(done);
	blkdev_put(device, FMODE_READ);
}
