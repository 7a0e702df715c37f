// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* /dev/flexnpu: the jobs of an open file, and its two requests. The file's mutex is for its list. */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "flexnpu.h"

struct client {
	struct flexnpu *npu;
	struct mutex lock;
	struct list_head jobs;
	unsigned int count;
	u32 last; /* number given to a job */
};

static int enter(struct client *client, struct flexnpu_job *job)
{
	int error = -EAGAIN;

	mutex_lock(&client->lock);
	if (client->count < FLEXNPU_JOBS_MAX) {
		client->count++;
		job->number = ++client->last;
		list_add_tail(&job->of_file, &client->jobs);
		error = 0;
	}
	mutex_unlock(&client->lock);
	return error;
}

/* Returns a job with a reference for the caller, or NULL. */
static struct flexnpu_job *find(struct client *client, u32 number)
{
	struct flexnpu_job *job, *found = NULL;

	mutex_lock(&client->lock);
	list_for_each_entry(job, &client->jobs, of_file)
		if (job->number == number)
			found = job;
	if (found)
		kref_get(&found->references);
	mutex_unlock(&client->lock);
	return found;
}

/* Two that waited for the same job may both come here. */
static void leave(struct client *client, struct flexnpu_job *job)
{
	bool was_there;

	mutex_lock(&client->lock);
	was_there = !list_empty(&job->of_file);
	list_del_init(&job->of_file);
	client->count -= was_there;
	mutex_unlock(&client->lock);
	if (was_there)
		flexnpu_job_put(job);
}

static long submit(struct client *client, void __user *argument)
{
	struct flexnpu_submit request;
	struct flexnpu_job *job;
	int error;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	job = flexnpu_job_create(client->npu, &request);
	if (IS_ERR(job))
		return PTR_ERR(job);
	error = enter(client, job);
	if (error) {
		flexnpu_job_put(job);
		return error;
	}
	request.job = job->number;
	if (copy_to_user(argument, &request, sizeof(request))) {
		leave(client, job);
		return -EFAULT;
	}
	flexnpu_jobs_queue(job);
	return 0;
}

static long await(struct client *client, void __user *argument)
{
	struct flexnpu_wait request;
	struct flexnpu_job *job;
	long error;

	if (copy_from_user(&request, argument, sizeof(request)))
		return -EFAULT;
	job = find(client, request.job);
	if (!job)
		return -ENOENT;
	error = flexnpu_job_wait(job, request.timeout_ms);
	if (!error) {
		request.outcome = job->outcome;
		request.stopped = job->stopped;
		leave(client, job);
		if (copy_to_user(argument, &request, sizeof(request)))
			error = -EFAULT;
	}
	flexnpu_job_put(job);
	return error;
}

static long device_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	switch (request) {
	case FLEXNPU_SUBMIT:
		return submit(file->private_data, (void __user *)argument);
	case FLEXNPU_WAIT:
		return await(file->private_data, (void __user *)argument);
	default:
		return -ENOTTY;
	}
}

static int device_open(struct inode *inode, struct file *file)
{
	struct client *client = kzalloc(sizeof(*client), GFP_KERNEL);

	if (!client)
		return -ENOMEM;
	/* misc_open() left the device there. */
	client->npu = container_of(file->private_data, struct flexnpu, device);
	mutex_init(&client->lock);
	INIT_LIST_HEAD(&client->jobs);
	file->private_data = client;
	return 0;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct client *client = file->private_data;
	struct flexnpu_job *job, *next;

	list_for_each_entry_safe(job, next, &client->jobs, of_file) {
		flexnpu_jobs_forget(job);
		leave(client, job);
	}
	kfree(client);
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
};

int flexnpu_device_init(struct flexnpu *npu)
{
	npu->device = (struct miscdevice){
		.minor = MISC_DYNAMIC_MINOR,
		.name = "flexnpu",
		.fops = &operations,
	};
	return misc_register(&npu->device);
}

void flexnpu_device_exit(struct flexnpu *npu)
{
	misc_deregister(&npu->device);
}
