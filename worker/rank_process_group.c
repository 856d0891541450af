/* A replica on this host without an agent: the caller is rank 0 and the parent of the others. */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/rank_process.h"

#define GROUP_EPOCH 1

struct rank_group {
    uint32_t n; /* ranks, the caller's included */
    rank_process_t *ranks[FABRIC_RANKS_MAX]; /* [0] is NULL */
    fabric_shm_t *shm;
    fabric_peer_t peers[FABRIC_RANKS_MAX];
    fabric_config_t config;
    pthread_t watcher;
    bool watching;
    int wake; /* eventfd: stop watching */
    _Atomic bool stopping;
    pthread_mutex_t mutex;
    char failure[STATUS_TEXT_MAX];
};

static void note_failure(rank_group_t *group, uint32_t rank, const char *text)
{
    pthread_mutex_lock(&group->mutex);
    if (group->failure[0] == 0)
        snprintf(group->failure, sizeof group->failure, "rank %u: %s", rank, text);
    pthread_mutex_unlock(&group->mutex);
}

void rank_group_failure(rank_group_t *group, char *text_out, size_t text_bytes)
{
    pthread_mutex_lock(&group->mutex);
    snprintf(text_out, text_bytes, "%s", group->failure);
    pthread_mutex_unlock(&group->mutex);
}

/* What the ranks say is read so that they never wait for us; only their failures matter here. */
static void read_rank(rank_group_t *group, uint32_t i)
{
    control_message_t message;
    bool got;
    while (rank_process_receive(group->ranks[i], &message, &got) == STATUS_OK && got) {
        if (message.kind != CONTROL_FAILED || message.failed.status == STATUS_OK)
            continue;
        /* A failure because others failed is not the first cause. */
        if (message.failed.status != STATUS_ABORTED)
            note_failure(group, i, message.failed.text);
        if (message.failed.epoch == 0)
            fabric_shm_rank_died(group->shm, i, message.failed.text);
    }
}

static void *watch(void *argument)
{
    rank_group_t *group = argument;
    bool dead[FABRIC_RANKS_MAX] = {false};
    while (!atomic_load(&group->stopping)) {
        struct pollfd fds[2 * FABRIC_RANKS_MAX + 1];
        uint32_t n = 0;
        fds[n++] = (struct pollfd){.fd = group->wake, .events = POLLIN};
        for (uint32_t i = 1; i < group->n; i++) {
            rank_process_t *rank = group->ranks[i];
            fds[n++] = (struct pollfd){.fd = dead[i] ? -1 : rank_process_socket(rank),
                                       .events = POLLIN};
            fds[n++] = (struct pollfd){.fd = dead[i] ? -1 : rank_process_pidfd(rank),
                                       .events = POLLIN};
        }
        if (poll(fds, n, -1) < 0)
            continue;
        for (uint32_t i = 1; i < group->n; i++) {
            rank_death_t death;
            if (fds[2 * i - 1].revents)
                read_rank(group, i);
            if (!fds[2 * i].revents || !rank_process_reap(group->ranks[i], 0, &death))
                continue;
            dead[i] = true;
            note_failure(group, i, death.text);
            fabric_shm_rank_died(group->shm, i, death.text);
        }
    }
    return NULL;
}

static status_t spawn_all(rank_group_t *group, const rank_start_t *starts, uint32_t formation_ms)
{
    rank_epoch_t *epoch = MEM_NEW(rank_epoch_t);
    epoch->epoch = GROUP_EPOCH;
    epoch->formation_ms = formation_ms;
    epoch->n_peers = group->n;
    for (uint32_t i = 0; i < group->n; i++)
        snprintf(epoch->peers[i].host, sizeof epoch->peers[i].host, "%s", starts[i].host);
    status_t status = STATUS_OK;
    for (uint32_t i = 1; i < group->n && status == STATUS_OK; i++) {
        status = rank_process_spawn(&starts[i], &group->ranks[i]);
        if (status == STATUS_OK)
            status = rank_process_send_epoch(group->ranks[i], epoch, fabric_shm_fd(group->shm));
    }
    free(epoch);
    return status;
}

static void fill_config(rank_group_t *group, const rank_start_t *starts)
{
    for (uint32_t i = 0; i < group->n; i++)
        group->peers[i].host = mem_strdup(starts[i].host);
    group->config = (fabric_config_t){
        .epoch = GROUP_EPOCH,
        .rank = 0,
        .n_ranks = group->n,
        .group_first = 0,
        .group_n = starts[0].tp,
        .peers = group->peers,
        .shm_fd = fabric_shm_fd(group->shm),
        .step_timeout_ms = starts[0].step_timeout_ms,
    };
}

status_t rank_group_start(const rank_start_t *starts, uint32_t n_ranks, uint32_t formation_ms,
                          rank_group_t **own_out)
{
    uint32_t local[FABRIC_RANKS_MAX];
    if (n_ranks == 0 || n_ranks > FABRIC_RANKS_MAX)
        return fail(STATUS_INVALID, "%u ranks; 1 to %d are right", n_ranks, FABRIC_RANKS_MAX);
    for (uint32_t i = 0; i < n_ranks; i++)
        local[i] = i;
    rank_group_t *group = MEM_NEW(rank_group_t);
    group->n = n_ranks;
    pthread_mutex_init(&group->mutex, NULL);
    group->wake = eventfd(0, EFD_CLOEXEC);
    status_t status = group->wake < 0 ? fail(STATUS_INTERNAL, "cannot make an eventfd: %m")
                                      : fabric_shm_create(GROUP_EPOCH, local, n_ranks, &group->shm);
    if (status == STATUS_OK) {
        fill_config(group, starts);
        status = spawn_all(group, starts, formation_ms);
    }
    if (status == STATUS_OK && pthread_create(&group->watcher, NULL, watch, group) != 0)
        status = fail(STATUS_INTERNAL, "cannot start the thread that watches the ranks");
    if (status != STATUS_OK) {
        rank_group_stop(group, 0);
        return status;
    }
    group->watching = true;
    *own_out = group;
    return STATUS_OK;
}

const fabric_config_t *rank_group_fabric_config(const rank_group_t *group)
{
    return &group->config;
}

void rank_group_stop(rank_group_t *take_group, uint32_t timeout_ms)
{
    rank_group_t *group = take_group;
    if (!group)
        return;
    atomic_store(&group->stopping, true);
    uint64_t one = 1, end = clock_ms() + timeout_ms;
    if (group->watching && write(group->wake, &one, sizeof one) == sizeof one)
        pthread_join(group->watcher, NULL);
    for (uint32_t i = 1; i < group->n; i++) {
        if (group->ranks[i] && timeout_ms > 0 &&
            rank_process_send_stop(group->ranks[i]) != STATUS_OK)
            rank_process_kill(group->ranks[i]);
    }
    for (uint32_t i = 1; i < group->n; i++) {
        uint64_t now = clock_ms();
        if (group->ranks[i] && now < end)
            rank_process_reap(group->ranks[i], (uint32_t)(end - now), NULL);
        rank_process_release(group->ranks[i]);
    }
    for (uint32_t i = 0; i < group->n; i++) {
        const void *host = group->peers[i].host;
        char *own_host;
        memcpy(&own_host, &host, sizeof own_host);
        free(own_host);
    }
    fabric_shm_release(group->shm);
    if (group->wake >= 0)
        close(group->wake);
    pthread_mutex_destroy(&group->mutex);
    free(group);
}
