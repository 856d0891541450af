/* The thread that runs the etcd client: a mailbox, timers, and the orderly end. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/net/etcd_internal.h"

void etcd_post(etcd_t *etcd, etcd_run_fn run, void *context)
{
    etcd_task_t *task = MEM_NEW(etcd_task_t);
    task->run = run;
    task->context = context;
    pthread_mutex_lock(&etcd->lock);
    if (etcd->tasks_tail)
        etcd->tasks_tail->next = task;
    else
        etcd->tasks_head = task;
    etcd->tasks_tail = task;
    pthread_cond_signal(&etcd->wake);
    pthread_mutex_unlock(&etcd->lock);
}

void etcd_after(etcd_t *etcd, uint64_t delay_ms, etcd_run_fn run, void *context)
{
    MEM_GROW(etcd->timers, etcd->timers_capacity, etcd->n_timers + 1);
    size_t at = etcd->n_timers++;
    etcd_timer_t timer = {clock_ms() + delay_ms, run, context};
    while (at && etcd->timers[(at - 1) / 2].due_ms > timer.due_ms) {
        etcd->timers[at] = etcd->timers[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    etcd->timers[at] = timer;
}

static etcd_timer_t take_timer(etcd_t *etcd)
{
    etcd_timer_t first = etcd->timers[0];
    etcd_timer_t last = etcd->timers[--etcd->n_timers];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= etcd->n_timers)
            break;
        if (child + 1 < etcd->n_timers &&
            etcd->timers[child + 1].due_ms < etcd->timers[child].due_ms)
            child++;
        if (last.due_ms <= etcd->timers[child].due_ms)
            break;
        etcd->timers[at] = etcd->timers[child];
        at = child;
    }
    etcd->timers[at] = last;
    return first;
}

uint64_t etcd_jitter(etcd_t *etcd, uint64_t ms)
{
    /* xorshift: clients that lost the same server at the same time must not return together. */
    etcd->random ^= etcd->random << 13;
    etcd->random ^= etcd->random >> 7;
    etcd->random ^= etcd->random << 17;
    return ms / 2 + etcd->random % (ms / 2 + 1);
}

uint64_t etcd_backoff(etcd_t *etcd, unsigned attempt)
{
    uint64_t ms = attempt > 10 ? etcd->options.backoff_ms_max : 50ull << attempt;
    if (ms > etcd->options.backoff_ms_max)
        ms = etcd->options.backoff_ms_max;
    return etcd_jitter(etcd, ms);
}

/* Waits for a task or the next timer; lock held. */
static void wait_for_work(etcd_t *etcd)
{
    if (!etcd->n_timers) {
        pthread_cond_wait(&etcd->wake, &etcd->lock);
        return;
    }
    uint64_t due = etcd->timers[0].due_ms;
    struct timespec until = {.tv_sec = (time_t)(due / 1000),
                             .tv_nsec = (long)(due % 1000) * 1000000};
    pthread_cond_timedwait(&etcd->wake, &etcd->lock, &until);
}

static void *run_loop(void *context)
{
    etcd_t *etcd = context;
    pthread_mutex_lock(&etcd->lock);
    for (;;) {
        etcd_task_t *task = etcd->tasks_head;
        if (task) {
            etcd->tasks_head = task->next;
            if (!etcd->tasks_head)
                etcd->tasks_tail = NULL;
            pthread_mutex_unlock(&etcd->lock);
            task->run(task->context);
            free(task);
            pthread_mutex_lock(&etcd->lock);
            continue;
        }
        if (etcd->n_timers &&
            (etcd->timers[0].due_ms <= clock_ms() || atomic_load(&etcd->closing))) {
            pthread_mutex_unlock(&etcd->lock);
            etcd_timer_t timer = take_timer(etcd);
            timer.run(timer.context);
            pthread_mutex_lock(&etcd->lock);
            continue;
        }
        if (etcd->stop && etcd->n_busy == 0)
            break;
        wait_for_work(etcd);
    }
    pthread_mutex_unlock(&etcd->lock);
    return NULL;
}

status_t etcd_loop_start(etcd_t *etcd)
{
    pthread_mutex_init(&etcd->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&etcd->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    etcd->random = clock_ns() | 1;
    if (pthread_create(&etcd->thread, NULL, run_loop, etcd) != 0)
        return fail(STATUS_EXHAUSTED, "cannot start the thread of the etcd client");
    return STATUS_OK;
}

static void close_all(void *context)
{
    etcd_t *etcd = context;
    /* Elections first: each owns a watch. */
    etcd_elections_close(etcd);
    etcd_leases_close(etcd);
    etcd_watches_close(etcd);
    etcd_ops_cancel(etcd);
    pthread_mutex_lock(&etcd->lock);
    etcd->stop = true;
    pthread_mutex_unlock(&etcd->lock);
}

void etcd_loop_join(etcd_t *etcd)
{
    atomic_store(&etcd->closing, true);
    etcd_post(etcd, close_all, etcd);
    pthread_join(etcd->thread, NULL);
    pthread_mutex_destroy(&etcd->lock);
    pthread_cond_destroy(&etcd->wake);
    free(etcd->timers);
}
