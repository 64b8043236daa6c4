// A pool of threads that meet at barriers. A thread that waits spins for some microseconds, because
// phases of a decode step are that short, and then sleeps, because a thread that it waits for may
// not have a core at all.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "native.h"

typedef struct {
	qc_pool *pool;
	int index;
} worker;

struct qc_pool {
	int threads;
	int spins; // turns of the waiting loop before a thread sleeps
	void (*job)(void *, int, int);
	void *arg;
	int stop;
	_Alignas(64) atomic_uint arrived;
	_Alignas(64) atomic_uint turn; // goes up when all have arrived
	_Alignas(64) atomic_uint runs; // goes up when there is a job
	_Alignas(64) atomic_int sleepers;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	worker *workers;
	pthread_t *ids;
};

static inline void relax(void) {
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

// until waits for *a to differ from old. The sleeper announces itself before it looks again, and the
// waker looks for sleepers after it has changed *a: one of them sees the other.
static void until(qc_pool *p, atomic_uint *a, unsigned old) {
	for (int i = 0; i < p->spins; i++) {
		if (atomic_load_explicit(a, memory_order_acquire) != old)
			return;
		relax();
	}
	pthread_mutex_lock(&p->mutex);
	atomic_fetch_add(&p->sleepers, 1);
	while (atomic_load(a) == old)
		pthread_cond_wait(&p->wake, &p->mutex);
	atomic_fetch_sub(&p->sleepers, 1);
	pthread_mutex_unlock(&p->mutex);
}

static void advance(qc_pool *p, atomic_uint *a) {
	atomic_fetch_add(a, 1);
	if (atomic_load(&p->sleepers) == 0)
		return;
	pthread_mutex_lock(&p->mutex);
	pthread_cond_broadcast(&p->wake);
	pthread_mutex_unlock(&p->mutex);
}

void qc_pool_barrier(qc_pool *p) {
	if (p->threads == 1)
		return;
	unsigned turn = atomic_load_explicit(&p->turn, memory_order_relaxed);
	if (atomic_fetch_add(&p->arrived, 1) + 1 == (unsigned)p->threads) {
		atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
		advance(p, &p->turn);
	} else {
		until(p, &p->turn, turn);
	}
}

static void *work(void *arg) {
	worker *w = arg;
	qc_pool *p = w->pool;
	for (unsigned run = 0;; run++) {
		until(p, &p->runs, run);
		if (p->stop)
			return NULL;
		p->job(p->arg, w->index, p->threads);
		qc_pool_barrier(p);
	}
}

void qc_pool_run(qc_pool *p, void (*f)(void *, int, int), void *arg) {
	p->job = f;
	p->arg = arg;
	if (p->threads > 1)
		advance(p, &p->runs);
	f(arg, 0, p->threads);
	qc_pool_barrier(p);
}

// spins_for measures how many turns of the waiting loop take the given time.
static int spins_for(double seconds) {
	enum { turns = 2000 };
	struct timespec from, to;
	atomic_uint a = 0;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < turns; i++) {
		if (atomic_load_explicit(&a, memory_order_acquire))
			break;
		relax();
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	double took = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9;
	double n = turns * seconds / (took + 1e-9);
	return n < 50 ? 50 : n > 100000 ? 100000 : (int)n;
}

qc_pool *qc_pool_new(int threads) {
	qc_pool *p = NULL;
	if (posix_memalign((void **)&p, 64, sizeof *p))
		return NULL;
	*p = (qc_pool){.threads = 1, .spins = spins_for(30e-6)};
	pthread_mutex_init(&p->mutex, NULL);
	pthread_cond_init(&p->wake, NULL);
	p->workers = calloc((size_t)threads, sizeof *p->workers);
	p->ids = calloc((size_t)threads, sizeof *p->ids);
	if (!p->workers || !p->ids) {
		qc_pool_free(p);
		return NULL;
	}
	for (int i = 1; i < threads; i++) {
		p->workers[i] = (worker){p, i};
		if (pthread_create(&p->ids[i], NULL, work, &p->workers[i])) {
			qc_pool_free(p);
			return NULL;
		}
		p->threads = i + 1;
	}
	return p;
}

void qc_pool_free(qc_pool *p) {
	p->stop = 1;
	advance(p, &p->runs);
	for (int i = 1; i < p->threads; i++)
		pthread_join(p->ids[i], NULL);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->mutex);
	free(p->workers);
	free(p->ids);
	free(p);
}
