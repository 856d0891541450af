/* The service thread of a fabric: beats every 50 ms, watches the other ranks, keeps the network
 * moving while nobody waits for it, and passes on to other hosts what ended the epoch. It is a
 * thread of its own because a rank that computes for a second is not dead. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "worker/fabric/fabric_internal.h"

static void rank_is_dead(fabric_t *fabric, uint32_t rank, bool silent, const char *how)
{
    board_rank_died(fabric->board, rank, how, silent);
    fabric_look_for_failure(fabric);
}

/* A local peer opens its fabric later than this rank: its pidfd is taken when its pid shows up. */
static void take_pidfd(fabric_t *fabric, uint32_t rank, watch_t *watch)
{
    int32_t pid = atomic_load(&fabric->board->ranks[rank].pid);
    if (watch->pidfd >= 0 || pid <= 0)
        return;
    watch->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (watch->pidfd < 0 && errno == ESRCH)
        rank_is_dead(fabric, rank, false, "its process is gone");
}

static void drop_pidfd(watch_t *watch)
{
    if (watch->pidfd >= 0)
        close(watch->pidfd);
    watch->pidfd = -1;
}

static void watch_rank(fabric_t *fabric, uint32_t rank)
{
    watch_t *watch = &fabric->watches[rank];
    board_rank_t *other = &fabric->board->ranks[rank];
    if (atomic_load(&other->left) || note_text(&other->dead)) {
        drop_pidfd(watch);
        return;
    }
    bool local = fabric_is_local(fabric, rank);
    uint64_t beat = local ? atomic_load(&other->beat) : ucx_beats_heard(fabric, rank);
    if (local)
        take_pidfd(fabric, rank, watch);
    if (beat != watch->beat_seen) {
        watch->beat_seen = beat;
        watch->ticks_silent = 0;
        watch->heard = true;
    } else if (watch->heard && ++watch->ticks_silent >= FABRIC_SILENT_TICKS) {
        char how[64];
        snprintf(how, sizeof how, "no heartbeat for %u ms", FABRIC_SILENCE_MS);
        rank_is_dead(fabric, rank, true, how);
    }
}

/* Tells other hosts once; local ranks read the board. */
static void pass_on(fabric_t *fabric)
{
    fabric_look_for_failure(fabric);
    if (!fabric->has_remote)
        return;
    const char *reason = note_text(&fabric->board->aborted);
    if (reason && fabric->abort_told == 0) {
        fabric->abort_told = 1;
        ucx_tell_abort(fabric, reason);
    }
    if (atomic_load(&fabric->board->n_dead) == 0)
        return;
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        const note_t *dead = &fabric->board->ranks[rank].dead;
        const char *how = note_text(dead);
        if (how && !(fabric->lost_told >> rank & 1)) {
            fabric->lost_told |= 1ull << rank;
            ucx_tell_lost(fabric, rank, how, atomic_load(&dead->silent) != 0);
        }
    }
}

static void tick(fabric_t *fabric)
{
    atomic_fetch_add(&fabric->board->ranks[fabric->rank].beat, 1);
    if (fabric->has_remote)
        ucx_beat(fabric);
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        if (rank != fabric->rank)
            watch_rank(fabric, rank);
    }
}

/* Sleeps until the next tick, a kick, a death or something from the network. */
static void sleep_until(fabric_t *fabric, uint64_t next_tick_ms)
{
    struct pollfd fds[FABRIC_RANKS_MAX + 2];
    uint32_t ranks[FABRIC_RANKS_MAX + 2];
    nfds_t n = 0;
    bool again = false;
    fds[n++] = (struct pollfd){.fd = fabric->service_event, .events = POLLIN};
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++) {
        if (fabric->watches[rank].pidfd >= 0) {
            ranks[n] = rank;
            fds[n++] = (struct pollfd){.fd = fabric->watches[rank].pidfd, .events = POLLIN};
        }
    }
    nfds_t n_dead_or_alive = n;
    uint64_t now = clock_ms();
    int timeout_ms = now < next_tick_ms ? (int)(next_tick_ms - now) : 0;
    if (fabric->has_remote) {
        int network = ucx_service_arm(fabric, &again);
        if (network >= 0)
            fds[n++] = (struct pollfd){.fd = network, .events = POLLIN};
        else if (!again && timeout_ms > 1)
            timeout_ms = 1; /* somebody polls the network and may stop at any moment */
    }
    if (again || poll(fds, n, timeout_ms) <= 0)
        return;
    uint64_t drained;
    if (fds[0].revents && read(fabric->service_event, &drained, sizeof drained) < 0)
        drained = 0;
    for (nfds_t i = 1; i < n_dead_or_alive; i++) {
        if (!fds[i].revents)
            continue;
        drop_pidfd(&fabric->watches[ranks[i]]);
        if (!atomic_load(&fabric->board->ranks[ranks[i]].left))
            rank_is_dead(fabric, ranks[i], false, "its process died");
    }
}

static void *serve(void *argument)
{
    fabric_t *fabric = argument;
    uint64_t next_tick_ms = 0;
    while (!atomic_load(&fabric->service_stop)) {
        uint64_t now = clock_ms();
        if (now >= next_tick_ms) {
            tick(fabric);
            next_tick_ms = now + FABRIC_HEARTBEAT_MS;
        }
        if (fabric->has_remote) {
            while (ucx_progress(fabric))
                ;
        }
        pass_on(fabric);
        sleep_until(fabric, next_tick_ms);
    }
    return NULL;
}

status_t fabric_service_start(fabric_t *fabric)
{
    fabric->service_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fabric->service_event < 0)
        return fail(STATUS_INTERNAL, "cannot make an eventfd: %m");
    int error = pthread_create(&fabric->service, NULL, serve, fabric);
    if (error != 0)
        return fail(STATUS_INTERNAL, "cannot start the fabric's service thread: %s",
                    strerror(error));
    fabric->service_started = true;
    return STATUS_OK;
}

void fabric_service_kick(fabric_t *fabric)
{
    uint64_t one = 1;
    if (fabric->service_event >= 0 && write(fabric->service_event, &one, sizeof one) < 0)
        return; /* full: it is awake already */
}

void fabric_service_stop(fabric_t *fabric)
{
    if (fabric->service_started) {
        atomic_store(&fabric->service_stop, true);
        fabric_service_kick(fabric);
        pthread_join(fabric->service, NULL);
        /* What ended the epoch may not have been told yet. */
        pass_on(fabric);
    }
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++)
        drop_pidfd(&fabric->watches[rank]);
    if (fabric->service_event >= 0)
        close(fabric->service_event);
    fabric->service_event = -1;
}
