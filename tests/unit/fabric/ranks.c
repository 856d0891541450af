#include "ranks.h"

#include <signal.h>
#include <stdlib.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "worker/fabric/fabric_internal.h"

bool is_in(const char *text, const char *words)
{
    if (strstr(text, words))
        return true;
    fprintf(stderr, "\"%s\" is not in \"%s\"\n", words, text);
    return false;
}

shared_t *shared_new(void)
{
    void *map = mmap(NULL, sizeof(shared_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                     -1, 0);
    if (map == MAP_FAILED)
        abort();
    return map;
}

static void run_rank(const ranks_t *ranks, uint32_t rank, uint32_t group_n,
                     uint32_t step_timeout_ms, rank_fn function)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fabric_peer_t peers[FABRIC_RANKS_MAX];
    for (uint32_t i = 0; i < ranks->n; i++)
        peers[i] = (fabric_peer_t){.host = "a"};
    fabric_config_t config = {
        .incarnation = 1,
        .epoch = 7,
        .rank = rank,
        .n_ranks = ranks->n,
        .group_first = rank / group_n * group_n,
        .group_n = group_n,
        .peers = peers,
        .shm_fd = fabric_shm_fd(ranks->shm),
        .step_timeout_ms = step_timeout_ms,
    };
    fabric_t *fabric;
    if (fabric_open(&config, &fabric) != STATUS_OK) {
        fprintf(stderr, "rank %u: %s\n", rank, status_text());
        exit(3);
    }
    int code = function(fabric, ranks->shared);
    fabric_close(fabric);
    fabric_shm_release(ranks->shm);
    exit(code);
}

void ranks_start(ranks_t *ranks, uint32_t n, uint32_t group_n, uint32_t step_timeout_ms,
                 rank_fn function)
{
    uint32_t local[FABRIC_RANKS_MAX];
    for (uint32_t i = 0; i < n; i++)
        local[i] = i;
    memset(ranks, 0, sizeof *ranks);
    ranks->n = n;
    ranks->shared = shared_new();
    if (fabric_shm_create(7, local, n, &ranks->shm) != STATUS_OK)
        abort();
    fflush(NULL);
    for (uint32_t i = 0; i < n; i++) {
        ranks->pids[i] = fork();
        if (ranks->pids[i] < 0)
            abort();
        if (ranks->pids[i] == 0)
            run_rank(ranks, i, group_n, step_timeout_ms, function);
    }
}

void nap(void)
{
    struct timespec pause = {0, 1000000};
    nanosleep(&pause, NULL);
}

void ranks_wait_ready(const ranks_t *ranks, uint32_t count)
{
    uint64_t end = clock_ms() + 20000;
    while (atomic_load(&ranks->shared->ready) < count && clock_ms() < end)
        nap();
}

static bool has_beaten(const fabric_t *fabric, uint32_t rank)
{
    if (fabric_is_local(fabric, rank))
        return atomic_load(&fabric->board->ranks[rank].beat) > 0;
    return ucx_beats_heard(fabric, rank) > 0;
}

bool rank_wait_heard(const fabric_t *fabric)
{
    uint64_t end = clock_ms() + 10000;
    for (uint32_t rank = 0; rank < fabric->n_ranks; rank++)
        while (rank != fabric->rank && !has_beaten(fabric, rank)) {
            if (clock_ms() > end)
                return false;
            nap();
        }
    /* The second tick that begins after that has certainly looked at all of them. */
    const board_rank_t *own = &fabric->board->ranks[fabric->rank];
    uint64_t beat = atomic_load(&own->beat);
    while (atomic_load(&own->beat) < beat + 2)
        nap();
    return true;
}

void ranks_wait_asleep(const ranks_t *ranks, uint64_t mask)
{
    uint64_t end = clock_ms() + 20000;
    for (uint32_t rank = 0; rank < ranks->n; rank++)
        while ((mask >> rank & 1) && clock_ms() < end &&
               atomic_load(&ranks->shm->board->ranks[rank].sleepers) == 0)
            nap();
}

void ranks_signal(const ranks_t *ranks, uint32_t rank, int signal)
{
    atomic_store(&ranks->shared->killed_ns, clock_ns());
    kill(ranks->pids[rank], signal);
}

int ranks_finish(ranks_t *ranks, uint64_t skip)
{
    int bad = 0;
    for (uint32_t i = 0; i < ranks->n; i++) {
        if (skip >> i & 1)
            continue;
        int status = 0;
        if (waitpid(ranks->pids[i], &status, 0) < 0 || !WIFEXITED(status) ||
            WEXITSTATUS(status) != 0) {
            fprintf(stderr, "rank %u ended with wait status %#x\n", i, (unsigned)status);
            bad++;
        }
    }
    for (uint32_t i = 0; i < ranks->n; i++) {
        if (skip >> i & 1) {
            kill(ranks->pids[i], SIGKILL);
            waitpid(ranks->pids[i], NULL, 0);
        }
    }
    fabric_shm_release(ranks->shm);
    munmap(ranks->shared, sizeof *ranks->shared);
    return bad;
}

uint64_t ms_since(const shared_t *shared)
{
    return (clock_ns() - atomic_load(&shared->killed_ns)) / 1000000;
}
