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

static const unsigned int patience_ms = 1000;
static const unsigned int wait_us = 50, waits_max = 6; /* before POLL again: doubled with each WAIT */

static void serve(struct work_struct *work);

static DEFINE_MUTEX(service);
static DECLARE_WORK(work, serve);
static struct workqueue_struct *queue;
static struct flex_results put_aside; /* a WANT or GONE, unless its kind is NONE */
static int irq;
static void (*listener)(const struct flex_results *notice); /* under service */
static unsigned int waits; /* in a row; under service */
static u64 waiting_since;   /* ns, while `waits` */
static bool attached, closing;

/* ---- notices ---- */

static void want(u64 serial, u64 pages, u64 minimum)
{
	unsigned long granted = 0;

	flex_count(FLEX_COUNT_WANTS, 1);
	flex_count(FLEX_COUNT_WANTED, pages);
	if (!READ_ONCE(closing) && pages)
		granted = flex_pool_grant(pages, minimum);
	if (flex_call_patiently(FLEX_CALL_ANSWER, serial, granted, patience_ms) != FLEX_STATUS_OK)
		pr_warn_ratelimited("flexmem: the secure world does not hear answers\n");
}

/*
 * The monitor has recalled all that the dead secure world used. What was granted and never used comes
 * back here, too, before anything can be granted to a new one: both happen under the lock.
 */
static void clear_up(void)
{
	WRITE_ONCE(attached, false);
	flex_pool_recover();
}

/* Handles what is quick. Returns the pages that came back. */
static unsigned long handle(const struct flex_results *notice)
{
	switch (notice->x[0]) {
	case FLEX_NOTICE_OFFER:
		return flex_pool_take(notice->x[1], notice->x[2]);
	case FLEX_NOTICE_UNWANTED:
		return flex_pool_return(notice->x[1], notice->x[2]);
	case FLEX_NOTICE_ATTACHED:
		WRITE_ONCE(attached, true);
		return 0;
	case FLEX_NOTICE_MORE:
		return 0;
	default:
		if (listener)
			listener(notice);
		return 0;
	}
}

/* One POLL, its time, and how long the monitor has been waiting. Under service. */
static int ask(struct flex_results *notice)
{
	u64 began = ktime_get_ns(), ended;
	int status = flex_call(FLEX_CALL_POLL, 0, 0, 0, notice);

	ended = ktime_get_ns();
	flex_count(FLEX_COUNT_POLL_NS, ended - began);
	if (!status && notice->x[0] == FLEX_NOTICE_WAIT) {
		if (!waits)
			waiting_since = began;
		waits = min(waits + 1, waits_max);
	} else if (waits) {
		flex_count(FLEX_COUNT_WAIT_NS, ended - waiting_since);
		waits = 0;
	}
	return status;
}

/*
 * Polls until there is nothing more, or something is put aside, or enough came, or the monitor waits
 * for something. Under service.
 */
static unsigned long poll(unsigned long enough)
{
	unsigned long came = 0;

	while (!put_aside.x[0] && came < enough) {
		struct flex_results notice;

		if (ask(&notice) || notice.x[0] == FLEX_NOTICE_NONE || waits)
			break;
		if (notice.x[0] == FLEX_NOTICE_WANT || notice.x[0] == FLEX_NOTICE_GONE)
			put_aside = notice;
		else
			came += handle(&notice);
	}
	return came;
}

static void serve_put_aside(void)
{
	if (put_aside.x[0] == FLEX_NOTICE_WANT)
		want(put_aside.x[1], put_aside.x[2], put_aside.x[3]);
	if (put_aside.x[0] == FLEX_NOTICE_GONE)
		clear_up();
	put_aside.x[0] = FLEX_NOTICE_NONE;
}

static void serve(struct work_struct *unused)
{
	unsigned int us;

	mutex_lock(&service);
	flex_ondemand_touch();
	do {
		serve_put_aside();
		poll(ULONG_MAX);
	} while (put_aside.x[0]);
	us = waits ? wait_us << waits : 0;
	mutex_unlock(&service);
	if (us) {
		usleep_range(us / 2, us);
		flex_service_kick();
	}
}

/* ---- for others ---- */

static irqreturn_t doorbell(int irq, void *device)
{
	flex_service_kick();
	return IRQ_HANDLED;
}

void flex_service_kick(void)
{
	queue_work(queue, &work);
}
EXPORT_SYMBOL_GPL(flex_service_kick);

bool flex_service_attached(void)
{
	return READ_ONCE(attached);
}

unsigned long flex_service_reap(unsigned long enough)
{
	unsigned long came;

	if (!mutex_trylock(&service))
		return 0;
	came = poll(enough);
	if (put_aside.x[0] || waits || came >= enough) /* the rest comes, too, but nobody waits for it */
		flex_service_kick();
	mutex_unlock(&service);
	return came;
}

void flex_listen(void (*hear)(const struct flex_results *notice))
{
	mutex_lock(&service);
	listener = hear;
	mutex_unlock(&service);
}
EXPORT_SYMBOL_GPL(flex_listen);

/*
 * First the door is closed: no WANT is met any more. Then everything is asked for, and waited for.
 * What does not come stays where it is, and the door is opened again.
 */
int flex_service_close(unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms);

	WRITE_ONCE(closing, true);
	if (flex_service_attached())
		flex_call_patiently(FLEX_CALL_DETACH, 0, 0, patience_ms);
	while (flex_pool_held() && time_before(jiffies, end)) {
		flex_service_kick();
		msleep(5);
	}
	if (!flex_pool_held())
		return 0;
	flex_service_open();
	pr_warn("flexmem: the secure world keeps %lu pages; staying\n", flex_pool_held());
	return -EBUSY;
}

void flex_service_open(void)
{
	WRITE_ONCE(closing, false);
}

int flex_service_init(struct platform_device *device)
{
	int error;

	irq = platform_get_irq(device, 0);
	if (irq < 0)
		return irq;
	/* WQ_MEM_RECLAIM: reclaim must get its pages when no thread for a worker can be made. */
	queue = alloc_ordered_workqueue("flexmem", WQ_MEM_RECLAIM);
	if (!queue)
		return -ENOMEM;
	error = request_irq(irq, doorbell, 0, "flexmem", device);
	if (error) {
		destroy_workqueue(queue);
		return error;
	}
	flex_service_kick(); /* for what was said before we listened */
	return 0;
}

void flex_service_exit(struct platform_device *device)
{
	free_irq(irq, device); /* first, since it queues the work */
	cancel_work_sync(&work);
	destroy_workqueue(queue);
}
