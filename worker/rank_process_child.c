/* The life of a rank process: armed against outliving its parent, told by its control channel, it
 * loads its slice once and then serves one epoch after the other until it is told to stop.
 *
 * Two threads besides the engine's own: the main thread loads and runs, the control thread reads
 * the channel, beats, and ends what the main thread is at when the parent says so. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "kernels/ops.h"
#include "worker/engine/rank.h"
#include "worker/numa.h"
#include "worker/rank_process.h"
#include "worker/service.h"
#include "worker/step_page.h"
#include "worker/usage.h"

#define EXIT_PARENT_GONE 90
/* The leader has this long to hand out what its streams are owed when an epoch ends. */
#define SERVICE_GRACE_MS 1000u
/* A rank that is told to stop and does not come to an end by itself leaves after this. */
#define STOP_GRACE_MS 3000u

typedef struct {
    rank_start_t start;
    rank_pulse_t pulse;
    _Atomic bool loading;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex. */
    rank_epoch_t *next; /* the newest EPOCH that was not begun; own */
    int next_shm;
    bool started, stop, drain;
    uint64_t stop_ms;
    fabric_t *fabric; /* of the epoch that runs; NULL between epochs and for a single rank */
    leader_t *leader; /* of the epoch that runs, on rank 0 */
    /* Of the main thread. */
    service_t *service;
    uint64_t epoch;
    fabric_endpoint_t *endpoint;
    step_page_t *page; /* of a leader that serves; set before `started` */
} child_t;

static void send_or_die(const control_message_t *message)
{
    /* Without its parent a rank is nothing. */
    if (control_send(CONTROL_FD, message) != STATUS_OK)
        _exit(EXIT_PARENT_GONE);
}

/* ---- the control thread ---- */

static void end_running_epoch(child_t *child, const char *why)
{
    if (child->leader)
        leader_stop(child->leader);
    if (child->fabric && why)
        fabric_abort(child->fabric, why);
}

static void take_epoch(child_t *child, const control_message_t *message)
{
    free(child->next);
    if (child->next_shm >= 0)
        close(child->next_shm);
    child->next = MEM_NEW(rank_epoch_t);
    *child->next = message->epoch;
    child->next_shm = message->fd;
    char why[64];
    snprintf(why, sizeof why, "epoch %llu begins", (unsigned long long)message->epoch.epoch);
    end_running_epoch(child, why);
}

static void take_start(child_t *child, const control_message_t *message)
{
    child->start = message->start;
    child->started = true;
    if (message->fd < 0)
        return;
    /* Without the page a rank serves all the same; only its own crash is then told without
     * names. */
    if (step_page_map(message->fd, &child->page) != STATUS_OK)
        log_warn("%s", status_text());
    close(message->fd);
}

static void take_message(child_t *child, const control_message_t *message)
{
    pthread_mutex_lock(&child->mutex);
    switch (message->kind) {
    case CONTROL_START:
        take_start(child, message);
        break;
    case CONTROL_EPOCH:
        take_epoch(child, message);
        break;
    case CONTROL_DRAIN:
        child->drain = true;
        if (child->service)
            service_drain(child->service);
        break;
    case CONTROL_STOP:
        child->stop = true;
        child->stop_ms = clock_ms();
        /* The leader ends its epoch in good order and with it the other ranks. */
        end_running_epoch(child, NULL);
        break;
    default:
        break; /* only a parent that is us sends; other kinds do not go this way */
    }
    pthread_cond_signal(&child->changed);
    pthread_mutex_unlock(&child->mutex);
}

static void beat(child_t *child)
{
    control_message_t *message = MEM_NEW(control_message_t);
    bool loading = atomic_load(&child->loading);
    message->kind = CONTROL_BEAT;
    message->fd = -1;
    message->beat.progress = atomic_load(&child->pulse.beats) + (loading ? usage_pages_got() : 0);
    message->beat.busy = loading || !atomic_load(&child->pulse.waiting);
    message->beat.loading = loading;
    message->beat.loaded_percent = (uint8_t)atomic_load(&child->pulse.loaded_percent);
    message->beat.cpu_ms = usage_cpu_ms();
    pthread_mutex_lock(&child->mutex);
    if (child->leader) {
        scheduler_load_t load = {0};
        leader_load(child->leader, &load);
        message->beat.sequences = load.running + load.waiting;
    }
    pthread_mutex_unlock(&child->mutex);
    /* A beat that finds no room is no loss: the parent has older ones to read. */
    bool sent = false;
    if (control_try_send(CONTROL_FD, message, &sent) != STATUS_OK)
        _exit(EXIT_PARENT_GONE);
    free(message);
}

static void *control(void *argument)
{
    child_t *child = argument;
    control_message_t *message = MEM_NEW(control_message_t);
    uint64_t next_beat_ms = 0;
    for (;;) {
        uint64_t now = clock_ms();
        if (now >= next_beat_ms) {
            beat(child);
            next_beat_ms = now + CONTROL_BEAT_MS;
        }
        struct pollfd fd = {.fd = CONTROL_FD, .events = POLLIN};
        if (poll(&fd, 1, (int)CONTROL_BEAT_MS) < 0 && errno != EINTR)
            _exit(EXIT_PARENT_GONE);
        bool got = true;
        while (fd.revents && got) {
            /* End of file is the second way, besides the death signal, to learn that the parent is
             * gone; garbage from the parent leaves nothing to rely on. */
            if (control_receive(CONTROL_FD, message, &got) != STATUS_OK)
                _exit(EXIT_PARENT_GONE);
            if (got)
                take_message(child, message);
        }
        pthread_mutex_lock(&child->mutex);
        bool overdue = child->stop && clock_ms() - child->stop_ms > STOP_GRACE_MS;
        pthread_mutex_unlock(&child->mutex);
        if (overdue)
            _exit(0);
    }
    return NULL;
}

/* ---- the main thread ---- */

static void send_hello(const child_t *child)
{
    control_message_t message = {.kind = CONTROL_HELLO, .fd = -1};
    message.hello.pid = getpid();
    if (child->endpoint) {
        const uint8_t *bytes;
        size_t n;
        fabric_endpoint_address(child->endpoint, &bytes, &n);
        memcpy(message.hello.address, bytes, n);
        message.hello.address_bytes = (uint32_t)n;
    }
    send_or_die(&message);
}

static void send_failed(child_t *child, uint64_t epoch, status_t status, const char *text,
                        const fabric_failure_t *failure)
{
    control_message_t message = {.kind = CONTROL_FAILED, .fd = -1};
    control_failed_t *failed = &message.failed;
    failed->epoch = epoch;
    failed->status = status;
    failed->lost_rank = UINT32_MAX;
    snprintf(failed->text, sizeof failed->text, "%s", text);
    if (failure) {
        failed->lost_rank = failure->rank;
        failed->silent = failure->silent;
        snprintf(failed->lost_host, sizeof failed->lost_host, "%s", failure->host);
    }
    _Static_assert(SESSION_BYTES == CONTROL_SESSION_BYTES, "sessions are named alike");
    if (child->leader && status != STATUS_OK)
        failed->n_sessions =
            leader_suspects(child->leader, failed->sessions, CONTROL_SESSIONS_MAX);
    send_or_die(&message);
}

static void on_planned(void *context, uint64_t step, uint32_t n,
                       const char (*sessions)[SESSION_BYTES])
{
    child_t *child = context;
    (void)step;
    step_page_write(child->page, n, sessions);
}

static void on_prepared(void *context, uint64_t kv_tokens)
{
    child_t *child = context;
    control_message_t message = {.kind = CONTROL_PREPARED, .fd = -1};
    message.prepared = (control_prepared_t){child->epoch, kv_tokens / 16};
    send_or_die(&message);
}

static void on_active(void *context, const char *text_identity, uint64_t kv_tokens,
                      uint32_t context_max)
{
    child_t *child = context;
    control_message_t message = {.kind = CONTROL_ACTIVE, .fd = -1};
    message.active.epoch = child->epoch;
    message.active.kv_tokens = kv_tokens;
    snprintf(message.active.text_identity, sizeof message.active.text_identity, "%s",
             text_identity);
    if (child->service) {
        bool v6 = strchr(child->start.address, ':') != NULL;
        snprintf(message.active.leader, sizeof message.active.leader, "%s%s%s:%u",
                 v6 ? "[" : "", child->start.address, v6 ? "]" : "",
                 service_port(child->service));
        service_begin(child->service, child->leader, child->epoch, text_identity, context_max);
    }
    send_or_die(&message);
}

static status_t open_fabric(child_t *child, const rank_epoch_t *epoch, int shm_fd, fabric_t **out)
{
    fabric_peer_t peers[FABRIC_RANKS_MAX];
    const rank_start_t *start = &child->start;
    *out = NULL;
    if (epoch->n_peers != start->n_ranks)
        return fail(STATUS_INVALID, "an epoch of %u ranks for a rank of %u", epoch->n_peers,
                    start->n_ranks);
    for (uint32_t i = 0; i < epoch->n_peers; i++)
        peers[i] = (fabric_peer_t){.host = epoch->peers[i].host,
                                   .address = epoch->peers[i].address,
                                   .address_bytes = epoch->peers[i].address_bytes};
    if (start->n_ranks == 1)
        return STATUS_OK; /* nobody to talk to */
    fabric_config_t config = {
        .incarnation = epoch->incarnation,
        .epoch = epoch->epoch,
        .rank = start->rank,
        .n_ranks = start->n_ranks,
        .group_first = start->stage * start->tp,
        .group_n = start->tp,
        .peers = peers,
        .shm_fd = shm_fd,
        .endpoint = child->endpoint,
        .step_timeout_ms = start->step_timeout_ms,
    };
    return fabric_open(&config, out);
}

/* Publishes what the control thread may end, unless it has to end at once. */
static bool begin(child_t *child, fabric_t *fabric, leader_t *leader)
{
    pthread_mutex_lock(&child->mutex);
    bool may_run = !child->next && !child->stop;
    child->fabric = fabric;
    child->leader = leader;
    pthread_mutex_unlock(&child->mutex);
    return may_run;
}

static void end(child_t *child, status_t status, const char *text, fabric_t *fabric,
                leader_t *leader)
{
    fabric_failure_t failure;
    bool known = fabric && fabric_failure(fabric, &failure);
    if (status != STATUS_OK && fabric)
        fabric_abort(fabric, text);
    send_failed(child, child->epoch, status, text, known ? &failure : NULL);
    if (child->page)
        step_page_write(child->page, 0, NULL); /* nothing is under way any more */
    if (child->service)
        service_end(child->service, SERVICE_GRACE_MS);
    begin(child, NULL, NULL);
    fabric_close(fabric);
    leader_free(leader);
}

static void run_epoch(child_t *child, rank_t *rank, const rank_epoch_t *epoch, int shm_fd)
{
    char text[STATUS_TEXT_MAX] = "";
    fabric_t *fabric = NULL;
    leader_t *leader = NULL;
    child->epoch = epoch->epoch;
    status_t status = open_fabric(child, epoch, shm_fd, &fabric);
    if (status == STATUS_OK && child->start.rank == 0)
        leader = leader_new();
    bool may_run = begin(child, fabric, leader);
    const rank_callbacks_t callbacks = {.pulse = &child->pulse,
                                        .context = child,
                                        .active = on_active,
                                        .planned = child->page ? on_planned : NULL,
                                        .prepared = on_prepared};
    if (status == STATUS_OK && may_run) {
        atomic_store(&child->pulse.waiting, 0);
        status = rank_run(rank, fabric, leader, &callbacks);
        /* What follows waits for streams and peers and makes no progress that could be seen. */
        atomic_store(&child->pulse.waiting, 1);
    } else if (status == STATUS_OK) {
        status = fail(STATUS_ABORTED, "overtaken before it began");
    }
    if (status != STATUS_OK) {
        snprintf(text, sizeof text, "%s", status_text());
        log_warn("epoch %llu ended: %s", (unsigned long long)epoch->epoch, text);
    }
    end(child, status, text, fabric, leader);
}

static status_t open_rank(child_t *child, rank_t **own_out)
{
    const rank_start_t *start = &child->start;
    const rank_config_t config = {
        .model_path = start->model_path,
        .quantize = start->quantize, .kv = start->kv,
        .model_digest = start->model_digest[0] ? start->model_digest : NULL,
        .cache_dir = start->data_dir[0] ? start->data_dir : NULL,
        .pack_cache_bytes = start->pack_cache_bytes,
        .pack_cache_bytes_min = start->pack_cache_bytes_min,
        .rank = start->rank, .stage = start->stage, .slice = start->slice,
        .tp = start->tp, .stages = start->stages,
        .draft_path = start->draft_path[0] ? start->draft_path : NULL,
        .draft_digest = start->draft_digest[0] ? start->draft_digest : NULL,
        .draft_may_fail = true,
        .expert_groups = start->expert_groups,
        .attention_slices = start->attention_slices,
        .attention_replicas = start->attention_replicas, .shared_head = start->shared_head,
        .layer_first = start->layer_first,
        .layer_count = start->layer_count,
        .threads = start->threads,
        .activations_f32 = strcmp(start->activations, "f32") == 0,
        .context_max = start->context_max,
        .kv_tokens_max = start->kv_tokens_max,
        .kv_bytes_max = start->memory_bytes,
        .prefill_tokens_max = (uint32_t)start->prefill_tokens_max,
        .no_prefix_cache = start->prefix_cache_off != 0,
        .speculate_max = start->speculate_max,
        .whole_prompts = start->whole_prompts != 0,
        .beyond_context = start->beyond_context != 0,
        .pulse = &child->pulse,
        .trace_path = start->trace_path[0] ? start->trace_path : NULL,
    };
    return rank_open(&config, own_out);
}

/* Waits for the next epoch, or NULL when the rank shall stop. */
static rank_epoch_t *next_epoch(child_t *child, int *shm_out)
{
    pthread_mutex_lock(&child->mutex);
    while (!child->next && !child->stop)
        pthread_cond_wait(&child->changed, &child->mutex);
    rank_epoch_t *epoch = child->stop ? NULL : child->next;
    if (epoch) {
        child->next = NULL;
        *shm_out = child->next_shm;
        child->next_shm = -1;
    }
    pthread_mutex_unlock(&child->mutex);
    return epoch;
}

static status_t prepare(child_t *child, rank_t **own_rank_out)
{
    const rank_start_t *start = &child->start;
    /* Before any thread starts and anything large is touched. */
    if (start->in_node && numa_bind("", start->numa_node) != STATUS_OK)
        log_warn("%s; the rank runs all the same", status_text());
    if (start->spans_hosts)
        TRY(fabric_endpoint_open(start->address, &child->endpoint));
    kernels_cpu_begin();
    send_hello(child);
    TRY(open_rank(child, own_rank_out));
    if (start->serve && start->rank == 0) {
        service_t *service;
        TRY(service_open(start->address, start->replica, &service));
        pthread_mutex_lock(&child->mutex);
        child->service = service;
        if (child->drain)
            service_drain(service);
        pthread_mutex_unlock(&child->mutex);
    }
    control_message_t message = {.kind = CONTROL_LOADED, .fd = -1};
    send_or_die(&message);
    atomic_store(&child->loading, false);
    return STATUS_OK;
}

static int live(child_t *child)
{
    char name[256];
    rank_t *rank = NULL;
    pthread_mutex_lock(&child->mutex);
    while (!child->started && !child->stop)
        pthread_cond_wait(&child->changed, &child->mutex);
    pthread_mutex_unlock(&child->mutex);
    snprintf(name, sizeof name, "shoal-worker %s rank %u", child->start.replica,
             child->start.rank);
    log_start(name);
    int code = 0;
    status_t status = prepare(child, &rank);
    if (status != STATUS_OK) {
        char text[STATUS_TEXT_MAX];
        snprintf(text, sizeof text, "%s", status_text());
        log_error("%s", text);
        send_failed(child, 0, status, text, NULL);
        code = status_exit_code(status);
    }
    int shm_fd = -1;
    for (rank_epoch_t *epoch; code == 0 && (epoch = next_epoch(child, &shm_fd));) {
        run_epoch(child, rank, epoch, shm_fd);
        if (shm_fd >= 0)
            close(shm_fd);
        free(epoch);
    }
    pthread_mutex_lock(&child->mutex);
    service_t *service = child->service;
    child->service = NULL;
    pthread_mutex_unlock(&child->mutex);
    service_close(service);
    rank_close(rank);
    fabric_endpoint_close(child->endpoint);
    return code;
}

int rank_process_main(int argc, char **argv)
{
    /* First of all, before anything can go wrong or take long. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int parent = argc == 3 ? atoi(argv[2]) : 0;
    if (parent <= 0) {
        fprintf(stderr, "shoal-worker rank: started by an agent only; "
                        "`shoal-worker agent --help` tells how\n");
        return 2;
    }
    if (getppid() != parent)
        return EXIT_PARENT_GONE; /* it died before the signal was armed */
    signal(SIGPIPE, SIG_IGN);
    log_start("shoal-worker rank");
    failpoint_start();
    static child_t child = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                            .changed = PTHREAD_COND_INITIALIZER,
                            .next_shm = -1,
                            .loading = true};
    atomic_store(&child.pulse.waiting, 1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, control, &child) != 0)
        return status_exit_code(STATUS_INTERNAL);
    int code = live(&child);
    /* The control thread goes with the process. */
    fflush(NULL);
    _exit(code);
}
