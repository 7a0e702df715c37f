/* Threads of the C library on two cores: they wait for each other, compute beside each other, and keep their registers. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define THREADS 4
#define ROUNDS 200

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int turn;
static __thread int own;

/* Sums that are the same whoever runs beside. */
static double sum(int seed)
{
	double value = seed, result = 0;
	int i;

	for (i = 0; i < 20000; i++) {
		value = value * 1.0000001 + 0.5;
		result += 1.0 / value;
	}
	return result;
}

static void *take_turns(void *argument)
{
	int self = (int)(long)argument, round;
	double *sums = malloc(sizeof(double));

	own = self;
	for (round = 0; round < ROUNDS; round++) {
		pthread_mutex_lock(&lock);
		while (turn % THREADS != self)
			pthread_cond_wait(&turned, &lock);
		turn++;
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&lock);
		if (own != self)
			exit(10);
	}
	*sums = sum(self + 1);
	return sums;
}

static int late(void)
{
	struct timespec until, now;
	int result;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += 20000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&lock);
	result = pthread_cond_timedwait(&turned, &lock, &until);
	pthread_mutex_unlock(&lock);
	clock_gettime(CLOCK_REALTIME, &now);
	return result == ETIMEDOUT && (now.tv_sec > until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec >= until.tv_nsec));
}

int main(void)
{
	pthread_t threads[THREADS];
	void *sums;
	long i;

	for (i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, take_turns, (void *)i))
			return 11;
	for (i = 0; i < THREADS; i++) {
		if (pthread_join(threads[i], &sums) || *(double *)sums != sum((int)i + 1))
			return 12;
		free(sums);
	}
	if (turn != THREADS * ROUNDS || !late())
		return 13;
	puts("threads: well");
	return 0;
}
