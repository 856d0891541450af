/* See pack_cache_check.h. The file is cut into turns: runs of pieces of one weight, taken by a
 * counter, so that whoever has time takes the next one. */
#include "worker/engine/pack_cache_check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/memory.h"
#include "common/base/status.h"

enum {
    TURN = PACK_FILE_HUGE / PACK_FILE_PIECE, /* pieces */
    HELPERS_MAX = 63,                        /* memory has no more speed to give long before */
};

typedef enum { PENDING, GOOD, BAD } verdict_t;

typedef struct {
    uint32_t entry, piece, n_pieces; /* pieces from the entry's own first one on */
    verdict_t verdict;               /* under the lock */
} turn_t;

struct pack_check {
    uint8_t *map;
    const pack_file_entry_t *entries;
    const uint8_t *sums;
    turn_t *turns;
    uint32_t n_turns;
    uint32_t *turn_first;  /* of each entry, and n_turns */
    _Atomic uint32_t next; /* the turn to be taken */
    pthread_mutex_t lock;
    pthread_cond_t done;
    pthread_t helpers[HELPERS_MAX];
    uint32_t n_helpers;
};

/* Fetches before it reads, because a page that the disk cannot give, or that the file lost, is an
 * error then and not a signal. Before Linux 5.14 the system cannot, and it is a signal. */
static bool turn_is_good(const pack_check_t *check, const turn_t *turn)
{
    const pack_file_entry_t *entry = &check->entries[turn->entry];
    uint8_t *image = check->map + entry->offset;
    const uint8_t *sums = check->sums + (entry->piece_first + turn->piece) * PACK_FILE_CHECKSUM;
    size_t at = (size_t)turn->piece * PACK_FILE_PIECE;
    size_t end = at + (size_t)turn->n_pieces * PACK_FILE_PIECE;
    end = end < entry->bytes ? end : (size_t)entry->bytes;
    if (madvise(image + at, end - at, MADV_POPULATE_READ) != 0 && errno != EINVAL)
        return false;
    for (; at < end; at += PACK_FILE_PIECE, sums += PACK_FILE_CHECKSUM) {
        uint8_t sum[PACK_FILE_CHECKSUM];
        size_t left = end - at;
        pack_file_checksum(image + at, left < PACK_FILE_PIECE ? left : PACK_FILE_PIECE, sum);
        if (memcmp(sum, sums, sizeof sum) != 0)
            return false;
    }
    return true;
}

/* False when there is none any more. */
static bool take_turn(pack_check_t *check)
{
    /* Looked at first, so that the counter never runs away. */
    if (atomic_load(&check->next) >= check->n_turns)
        return false;
    uint32_t i = atomic_fetch_add(&check->next, 1);
    if (i >= check->n_turns)
        return false;
    verdict_t verdict = turn_is_good(check, &check->turns[i]) ? GOOD : BAD;
    pthread_mutex_lock(&check->lock);
    check->turns[i].verdict = verdict;
    pthread_cond_broadcast(&check->done);
    pthread_mutex_unlock(&check->lock);
    return true;
}

static void *help(void *argument)
{
    while (take_turn(argument))
        ;
    return NULL;
}

static void cut_turns(pack_check_t *check, uint64_t n_entries)
{
    size_t n = 0;
    check->turn_first = MEM_NEW_ARRAY(uint32_t, n_entries + 1);
    for (uint64_t e = 0; e < n_entries; e++)
        n += (pack_file_pieces(check->entries[e].bytes) + TURN - 1) / TURN;
    CHECK(n < UINT32_MAX / 2);
    check->turns = MEM_NEW_ARRAY(turn_t, n + 1);
    for (uint64_t e = 0; e < n_entries; e++) {
        uint32_t pieces = (uint32_t)pack_file_pieces(check->entries[e].bytes);
        check->turn_first[e] = check->n_turns;
        for (uint32_t at = 0; at < pieces; at += TURN)
            check->turns[check->n_turns++] = (turn_t){
                .entry = (uint32_t)e, .piece = at,
                .n_pieces = pieces - at < TURN ? pieces - at : TURN};
    }
    check->turn_first[n_entries] = check->n_turns;
}

pack_check_t *pack_check_start(uint8_t *map, const pack_file_head_t *head, const uint8_t *table,
                               uint32_t threads)
{
    pack_check_t *check = MEM_NEW(pack_check_t);
    check->map = map;
    check->entries = (const pack_file_entry_t *)(const void *)table;
    check->sums = table + head->n_entries * sizeof *check->entries;
    pthread_mutex_init(&check->lock, NULL);
    pthread_cond_init(&check->done, NULL);
    cut_turns(check, head->n_entries);
    sigset_t all, before; /* signals are for the other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (check->n_helpers + 1 < threads && check->n_helpers < HELPERS_MAX &&
           check->n_helpers < check->n_turns &&
           pthread_create(&check->helpers[check->n_helpers], NULL, help, check) == 0)
        check->n_helpers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return check;
}

/* While others are at it, takes turns behind it, which will be asked for too; waits when there are
 * none. Who only waited would have each next weight taken from under it and compute nothing. */
static bool turn_was_good(pack_check_t *check, uint32_t i)
{
    bool some_left = true;
    pthread_mutex_lock(&check->lock);
    while (check->turns[i].verdict == PENDING) {
        if (!some_left) {
            pthread_cond_wait(&check->done, &check->lock);
            continue;
        }
        pthread_mutex_unlock(&check->lock);
        some_left = take_turn(check);
        pthread_mutex_lock(&check->lock);
    }
    bool good = check->turns[i].verdict == GOOD;
    pthread_mutex_unlock(&check->lock);
    return good;
}

bool pack_check_entry(pack_check_t *check, uint64_t entry)
{
    uint32_t end = check->turn_first[entry + 1];
    while (atomic_load(&check->next) < end && take_turn(check))
        ;
    for (uint32_t i = check->turn_first[entry]; i < end; i++)
        if (!turn_was_good(check, i))
            return false;
    return true;
}

void pack_check_end(pack_check_t *take_check)
{
    if (take_check == NULL)
        return;
    atomic_store(&take_check->next, take_check->n_turns);
    for (uint32_t i = 0; i < take_check->n_helpers; i++)
        pthread_join(take_check->helpers[i], NULL);
    pthread_mutex_destroy(&take_check->lock);
    pthread_cond_destroy(&take_check->done);
    free(take_check->turn_first);
    free(take_check->turns);
    free(take_check);
}
