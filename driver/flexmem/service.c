// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The secure world's requests. Its doorbell is an interrupt, which wakes a worker, which POLLs until
 * the monitor has nothing more to say.
 *
 * Whoever reclaims memory wants offered pages at once and cannot wait for the worker, which may be
 * waiting for memory itself. So flex_service_reap() does the same work when the lock is free, leaving
 * to the worker what takes long (a WANT, which allocates, and a GONE), and the rest when it has enough.
 * At most one notice is put aside, and while it is, nobody but the worker polls, so nothing overtakes
 * it. The monitor keeps the others.
 *
 * The monitor may say WAIT instead of nothing, when a device needs time. Nobody spins on that: the
 * worker looks again a little later, and later each time.
 *
 * An interrupt is never lost: it comes after its command was written, queue_work() after that queues
 * the work anew even while it runs, and a POLL that says NONE was after everything written before.
 */
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/workqueue.h>

#include "flexmem.h"

/* ---- notices ---- */

static void want(struct flexmem *fm, u64 serial, u64 pages, u64 minimum)
{
	unsigned long granted = 0;

	flex_count(&fm->counters, FLEX_COUNT_WANTS, 1);
	flex_count(&fm->counters, FLEX_COUNT_WANTED, pages);
	if (!READ_ONCE(fm->service.closing) && pages)
		granted = flex_pool_grant(fm, pages, minimum);
	if (flex_call_patiently(fm, FLEX_CALL_ANSWER, serial, granted) != FLEX_STATUS_OK)
		pr_warn_ratelimited("flexmem: the secure world does not hear answers\n");
}

/*
 * The monitor has recalled all that the dead secure world used. What was granted and never used comes
 * back here, too, before anything can be granted to a new one: both happen under the lock.
 */
static void clear_up(struct flexmem *fm)
{
	WRITE_ONCE(fm->service.attached, false);
	flex_pool_recover(fm);
}

/* Handles what is quick. Returns the pages that came back. */
static unsigned long handle(struct flexmem *fm, const struct flex_results *notice)
{
	switch (notice->x[0]) {
	case FLEX_NOTICE_OFFER:
		return flex_pool_take(fm, notice->x[1], notice->x[2]);
	case FLEX_NOTICE_UNWANTED:
		return flex_pool_return(fm, notice->x[1], notice->x[2]);
	case FLEX_NOTICE_ATTACHED:
		WRITE_ONCE(fm->service.attached, true);
		return 0;
	case FLEX_NOTICE_MORE:
		return 0;
	default:
		if (fm->service.listener)
			fm->service.listener(fm->service.listener_data, notice);
		return 0;
	}
}

/* One POLL, its time, and how long the monitor has been waiting. Under the lock. */
static int ask(struct flexmem *fm, struct flex_results *notice)
{
	u64 began = ktime_get_ns(), ended;
	int status = flex_call(fm, FLEX_CALL_POLL, 0, 0, 0, notice);

	ended = ktime_get_ns();
	flex_count(&fm->counters, FLEX_COUNT_POLL_NS, ended - began);
	if (!status && notice->x[0] == FLEX_NOTICE_WAIT) {
		if (!fm->service.waits)
			fm->service.waiting_since = began;
		fm->service.waits = min(fm->service.waits + 1, FLEX_WAITS_MAX);
	} else if (fm->service.waits) {
		flex_count(&fm->counters, FLEX_COUNT_WAIT_NS, ended - fm->service.waiting_since);
		fm->service.waits = 0;
	}
	return status;
}

/*
 * Polls until there is nothing more, or something is put aside, or enough came, or the monitor waits
 * for something. Under the lock.
 */
static unsigned long poll(struct flexmem *fm, unsigned long enough)
{
	unsigned long came = 0;

	while (!fm->service.put_aside.x[0] && came < enough) {
		struct flex_results notice;

		if (ask(fm, &notice) || notice.x[0] == FLEX_NOTICE_NONE || fm->service.waits)
			break;
		if (notice.x[0] == FLEX_NOTICE_WANT || notice.x[0] == FLEX_NOTICE_GONE)
			fm->service.put_aside = notice;
		else
			came += handle(fm, &notice);
	}
	return came;
}

static void serve_put_aside(struct flexmem *fm)
{
	struct flex_results *notice = &fm->service.put_aside;

	if (notice->x[0] == FLEX_NOTICE_WANT)
		want(fm, notice->x[1], notice->x[2], notice->x[3]);
	if (notice->x[0] == FLEX_NOTICE_GONE)
		clear_up(fm);
	notice->x[0] = FLEX_NOTICE_NONE;
}

static void serve(struct work_struct *work)
{
	struct flexmem *fm = container_of(work, struct flexmem, service.work);
	unsigned int us;

	mutex_lock(&fm->service.lock);
	flex_ondemand_touch(fm);
	do {
		serve_put_aside(fm);
		poll(fm, ULONG_MAX);
	} while (fm->service.put_aside.x[0]);
	us = fm->service.waits ? FLEX_WAIT_US << fm->service.waits : 0;
	mutex_unlock(&fm->service.lock);
	if (us) {
		usleep_range(us / 2, us);
		flex_service_kick(fm);
	}
}

/* ---- for others ---- */

static irqreturn_t doorbell(int irq, void *fm)
{
	flex_service_kick(fm);
	return IRQ_HANDLED;
}

void flex_service_kick(struct flexmem *fm)
{
	queue_work(fm->service.queue, &fm->service.work);
}
EXPORT_SYMBOL_GPL(flex_service_kick);

bool flex_service_attached(struct flexmem *fm)
{
	return READ_ONCE(fm->service.attached);
}

unsigned long flex_service_reap(struct flexmem *fm, unsigned long enough)
{
	unsigned long came;

	if (!mutex_trylock(&fm->service.lock))
		return 0;
	came = poll(fm, enough);
	if (fm->service.put_aside.x[0] || fm->service.waits || came >= enough)
		flex_service_kick(fm); /* the rest comes, too, but nobody waits for it */
	mutex_unlock(&fm->service.lock);
	return came;
}

void flex_listen(struct flexmem *fm, void (*hear)(void *data, const struct flex_results *notice), void *data)
{
	mutex_lock(&fm->service.lock);
	fm->service.listener = hear;
	fm->service.listener_data = data;
	mutex_unlock(&fm->service.lock);
}
EXPORT_SYMBOL_GPL(flex_listen);

/*
 * First the door is closed: no WANT is met any more. Then everything is asked for, and waited for.
 * What does not come stays where it is, and the door is opened again.
 */
int flex_service_close(struct flexmem *fm, unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms);

	WRITE_ONCE(fm->service.closing, true);
	flex_ring_demand(fm, ULONG_MAX, ms);
	if (flex_service_attached(fm))
		flex_call_patiently(fm, FLEX_CALL_DETACH, 0, 0);
	while (flex_pool_held(fm) && time_before(jiffies, end)) {
		flex_service_kick(fm);
		msleep(FLEX_DRAIN_LOOK_MS);
	}
	if (!flex_pool_held(fm))
		return 0;
	flex_service_open(fm);
	pr_warn("flexmem: the secure world keeps %lu pages; staying\n", flex_pool_held(fm));
	return -EBUSY;
}

void flex_service_open(struct flexmem *fm)
{
	WRITE_ONCE(fm->service.closing, false);
}

int flex_service_init(struct flexmem *fm)
{
	mutex_init(&fm->service.lock);
	INIT_WORK(&fm->service.work, serve);
	/* WQ_MEM_RECLAIM: reclaim must get its pages when no thread for a worker can be made. */
	fm->service.queue = alloc_ordered_workqueue("flexmem", WQ_MEM_RECLAIM);
	return fm->service.queue ? 0 : -ENOMEM;
}

void flex_service_exit(struct flexmem *fm)
{
	cancel_work_sync(&fm->service.work); /* which may queue itself, so it is not flushed */
	destroy_workqueue(fm->service.queue);
}

int flex_service_start(struct flexmem *fm, struct platform_device *device)
{
	int error;

	fm->service.irq = platform_get_irq(device, 0);
	if (fm->service.irq < 0)
		return fm->service.irq;
	error = request_irq(fm->service.irq, doorbell, 0, "flexmem", fm);
	if (error)
		return error;
	flex_service_kick(fm); /* for what was said before we listened */
	return 0;
}

void flex_service_stop(struct flexmem *fm)
{
	WRITE_ONCE(fm->service.closing, true);
	free_irq(fm->service.irq, fm);
}
