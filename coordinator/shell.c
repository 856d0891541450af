/* The core thread: mailbox, timers, steps of the core, and its actions handed to their doers. */
#include "coordinator/shell_state.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <poll.h>
#include <unistd.h>

static void list_add(task_list_t *list, task_t *task)
{
    task->next = NULL;
    *list->tail = task;
    list->tail = &task->next;
}

static task_t *list_take(task_list_t *list)
{
    task_t *task = list->head;
    if (task) {
        list->head = task->next;
        if (!list->head)
            list->tail = &list->head;
    }
    return task;
}

static task_t *task_new(task_fn fn, void *data, uint64_t at_ms)
{
    task_t *task = MEM_NEW(task_t);
    *task = (task_t){NULL, at_ms, fn, data};
    return task;
}

void shell_post(shell_t *shell, task_fn fn, void *take_data)
{
    task_t *task = task_new(fn, take_data, 0);
    pthread_mutex_lock(&shell->lock);
    list_add(&shell->mailbox, task);
    pthread_cond_signal(&shell->told);
    pthread_mutex_unlock(&shell->lock);
}

void shell_post_at(shell_t *shell, uint64_t at_ms, task_fn fn, void *take_data)
{
    task_t *task = task_new(fn, take_data, at_ms);
    task_t **at = &shell->timers;
    while (*at && (*at)->at_ms <= at_ms)
        at = &(*at)->next;
    task->next = *at;
    *at = task;
}

void shell_work(shell_t *shell, task_fn fn, void *take_data)
{
    task_t *task = task_new(fn, take_data, 0);
    pthread_mutex_lock(&shell->lock);
    list_add(&shell->work, task);
    pthread_cond_signal(&shell->work_told);
    pthread_mutex_unlock(&shell->lock);
}

uint64_t shell_random(void)
{
    uint64_t value = 0;
    while (value == 0)
        if (getrandom(&value, sizeof value, 0) != (ssize_t)sizeof value)
            CHECK(errno == EINTR);
    return value;
}

uint64_t shell_random_seed(void)
{
    return shell_random() & ((UINT64_C(1) << 53) - 1);
}

void shell_random_id(char id_out[CORE_ID_SIZE])
{
    snprintf(id_out, CORE_ID_SIZE, "%016" PRIx64 "%016" PRIx64, shell_random(), shell_random());
}

/* ---- the work team ---- */

static void *work_main(void *user)
{
    shell_t *shell = user;
    pthread_setname_np(pthread_self(), "work");
    pthread_mutex_lock(&shell->lock);
    for (;;) {
        task_t *task = list_take(&shell->work);
        if (task) {
            pthread_mutex_unlock(&shell->lock);
            task->fn(shell, task->data);
            free(task);
            pthread_mutex_lock(&shell->lock);
        } else if (shell->stopping_work) {
            break;
        } else {
            pthread_cond_wait(&shell->work_told, &shell->lock);
        }
    }
    pthread_mutex_unlock(&shell->lock);
    return NULL;
}

static void work_start(shell_t *shell)
{
    size_t n = shell->options.work_threads > 0 ? (size_t)shell->options.work_threads : 2;
    shell->workers = MEM_NEW_ARRAY(pthread_t, n);
    for (size_t i = 0; i < n; i++)
        if (pthread_create(&shell->workers[shell->n_workers], NULL, work_main, shell) == 0)
            shell->n_workers++;
    CHECK(shell->n_workers > 0);
}

static void work_stop(shell_t *shell)
{
    pthread_mutex_lock(&shell->lock);
    shell->stopping_work = true;
    pthread_cond_broadcast(&shell->work_told);
    pthread_mutex_unlock(&shell->lock);
    for (size_t i = 0; i < shell->n_workers; i++)
        pthread_join(shell->workers[i], NULL);
    free(shell->workers);
}

/* ---- the core's actions ---- */

static void do_action(shell_t *shell, const core_action_t *action)
{
    switch (action->kind) {
    case CORE_ACTION_STARTED:
        front_started(shell, action);
        break;
    case CORE_ACTION_OUTPUT:
        front_output(shell, action);
        break;
    case CORE_ACTION_END:
        front_end(shell, action);
        break;
    case CORE_ACTION_WATCH:
        stores_watch(shell, action);
        break;
    case CORE_ACTION_UNWATCH:
        stores_unwatch(shell, action);
        break;
    case CORE_ACTION_TXN:
        stores_txn(shell, action);
        break;
    case CORE_ACTION_RANGE:
        stores_range(shell, action);
        break;
    case CORE_ACTION_LOAD_MODEL:
        models_load(shell, action);
        break;
    case CORE_ACTION_LINK_OPEN:
        links_open(shell, action);
        break;
    case CORE_ACTION_LINK_SEND:
        links_send(shell, action);
        break;
    case CORE_ACTION_LINK_CLOSE:
        links_close(shell, action);
        break;
    case CORE_ACTION_LOG:
        log_at((log_level_t)action->log.level, "%s", action->log.text);
        break;
    case CORE_ACTION_DRAINED:
        shell->stop = true;
        break;
    default:
        stores_redis(shell, action);
        break;
    }
}

void shell_event(shell_t *shell, const core_event_t *event)
{
    CHECK(!shell->dispatching);
    if (!atomic_load(&shell->running))
        return; /* ending: tasks still run, to release what they carry */
    shell->dispatching = true;
    core_step(shell->core, clock_ms(), event, &shell->actions);
    for (size_t i = 0; i < shell->actions.n; i++)
        do_action(shell, &shell->actions.items[i]);
    core_actions_reset(&shell->actions);
    shell->dispatching = false;
}

/* ---- the loop ---- */

static void run_timers(shell_t *shell)
{
    uint64_t now = clock_ms();
    while (shell->timers && shell->timers->at_ms <= now) {
        task_t *task = shell->timers;
        shell->timers = task->next;
        task->fn(shell, task->data);
        free(task);
    }
    if (core_next_timer_ms(shell->core) <= clock_ms())
        shell_event(shell, &(core_event_t){.kind = CORE_EVENT_TICK});
}

/* Waits for the mailbox or the next timer; returns what was posted. */
static task_t *await_tasks(shell_t *shell)
{
    uint64_t at = core_next_timer_ms(shell->core), now = clock_ms();
    if (shell->timers && shell->timers->at_ms < at)
        at = shell->timers->at_ms;
    uint64_t wait_ms = at <= now ? 0 : at - now > 1000 ? 1000 : at - now;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(wait_ms / 1000);
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&shell->lock);
    while (!shell->mailbox.head && wait_ms)
        if (pthread_cond_timedwait(&shell->told, &shell->lock, &until) == ETIMEDOUT)
            break;
    task_t *tasks = shell->mailbox.head;
    shell->mailbox = (task_list_t){NULL, &shell->mailbox.head};
    pthread_mutex_unlock(&shell->lock);
    return tasks;
}

static void loop(shell_t *shell)
{
    while (!shell->stop) {
        task_t *task = await_tasks(shell);
        while (task) {
            task_t *next = task->next;
            task->fn(shell, task->data);
            free(task);
            task = next;
        }
        run_timers(shell);
    }
}

static void drain(shell_t *shell, void *take_data)
{
    (void)take_data;
    if (shell->draining)
        return;
    log_info("draining: no new work, up to %" PRId64 " ms for what runs", shell->options.drain_ms);
    shell->draining = true;
    front_set_serving(shell, false);
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_DRAIN});
}

typedef struct {
    shell_t *shell;
    int signal_fd, stop_fd;
} signals_t;

/* SIGTERM and SIGINT arrive here alone; a second one ends the program at once. */
static void *signals_main(void *user)
{
    signals_t *signals = user;
    for (int n = 0;; n++) {
        struct pollfd fds[2] = {{signals->signal_fd, POLLIN, 0}, {signals->stop_fd, POLLIN, 0}};
        if (poll(fds, 2, -1) < 0 && errno == EINTR)
            continue;
        if (fds[1].revents)
            return NULL;
        struct signalfd_siginfo info;
        if (read(signals->signal_fd, &info, sizeof info) != (ssize_t)sizeof info)
            continue;
        /* Who still waits for a store has nothing to finish and nothing to give back. */
        if (n > 0 || atomic_load(&signals->shell->waits_for))
            _exit(n > 0);
        shell_post(signals->shell, drain, NULL);
    }
}

/* Runs what is left after the loop; the core is stepped no more, but every task releases its
 * data. */
static void run_leftovers(shell_t *shell)
{
    for (;;) {
        pthread_mutex_lock(&shell->lock);
        task_t *task = list_take(&shell->mailbox);
        pthread_mutex_unlock(&shell->lock);
        if (!task && (task = shell->timers))
            shell->timers = task->next;
        if (!task)
            return;
        task->fn(shell, task->data);
        free(task);
    }
}

void shell_flush(shell_t *shell, const table_t *until_empty)
{
    while (until_empty->n) {
        task_t *task = await_tasks(shell);
        while (task) {
            task_t *next = task->next;
            task->fn(shell, task->data);
            free(task);
            task = next;
        }
    }
}

/* ---- life ---- */

static core_t *make_core(const shell_t *shell)
{
    const shell_options_t *o = &shell->options;
    core_config_t config = {
        .id = shell->id,
        .endpoint = shell->endpoint,
        .build = SHOAL_VERSION,
        .seed = shell_random(),
        .detach_ms = (uint32_t)o->detach_ms,
        .queue_wait_ms = (uint32_t)o->queue_wait_ms,
        .waiting_tokens_max = (uint64_t)o->waiting_tokens_max,
        .items_max = (uint32_t)o->items_max,
        .drain_ms = (uint32_t)o->drain_ms,
    };
    return core_new(&config);
}

static status_t serve(shell_t *shell)
{
    TRY(front_open(shell));
    status_t status = stores_open(shell);
    if (status != STATUS_OK) {
        front_close(shell, 0);
        stores_close(shell);
        return status;
    }
    atomic_store(&shell->waits_for, NULL);
    shell->models = models_open(shell);
    shell->core = make_core(shell);
    atomic_store(&shell->running, true);
    shell_event(shell, &(core_event_t){.kind = CORE_EVENT_TICK});
    stores_begin(shell);
    front_set_serving(shell, true);
    log_info("coordinator %s serves at %s", shell->id, shell->endpoint);
    loop(shell);
    log_info("drained");
    /* Foreign threads are ended before what they post to. */
    atomic_store(&shell->running, false);
    front_close(shell, 500);
    links_end(shell);
    stores_leave(shell);
    stores_close(shell);
    return shell->result;
}

status_t shell_run(const shell_options_t *options)
{
    shell_t *shell = MEM_NEW(shell_t);
    shell->options = *options;
    pthread_mutex_init(&shell->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&shell->told, &attributes);
    pthread_cond_init(&shell->work_told, NULL);
    shell->mailbox.tail = &shell->mailbox.head;
    shell->work.tail = &shell->work.head;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    int pipe_fds[2];
    CHECK(pipe(pipe_fds) == 0);
    signals_t signals = {shell, signalfd(-1, &set, SFD_CLOEXEC), pipe_fds[0]};
    pthread_t signals_thread;
    CHECK(signals.signal_fd >= 0);
    CHECK(pthread_create(&signals_thread, NULL, signals_main, &signals) == 0);
    work_start(shell);
    status_t status = rpc_io_open(2, &shell->io);
    if (status == STATUS_OK)
        status = serve(shell);
    work_stop(shell);
    if (shell->io)
        rpc_io_close(shell->io);
    CHECK(write(pipe_fds[1], "", 1) == 1);
    pthread_join(signals_thread, NULL);
    close(signals.signal_fd);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    run_leftovers(shell);
    if (shell->core)
        core_free(shell->core);
    core_actions_release(&shell->actions);
    models_close(shell->models);
    front_release(shell);
    stores_release(shell);
    free(shell);
    return status;
}
