/* Notes, doorbells and sleeping: see board.h. */
#include "worker/fabric/board.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

bool note_set(note_t *note, const char *text, bool silent)
{
    uint32_t empty = NOTE_EMPTY;
    if (!atomic_compare_exchange_strong(&note->state, &empty, NOTE_TAKEN))
        return false;
    snprintf(note->text, sizeof note->text, "%s", text);
    atomic_store_explicit(&note->silent, silent ? 1u : 0u, memory_order_relaxed);
    atomic_store_explicit(&note->state, NOTE_SET, memory_order_release);
    return true;
}

const char *note_text(const note_t *note)
{
    if (atomic_load_explicit(&note->state, memory_order_acquire) != NOTE_SET)
        return NULL;
    return note->text;
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void board_ring(board_t *board, uint32_t rank)
{
    board_rank_t *to = &board->ranks[rank];
    /* Pairs with the fence in board_sleep_announce: either the sleeper sees what was published, or
     * it is seen here. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&to->sleepers, memory_order_relaxed) == 0)
        return;
    atomic_fetch_add(&to->doorbell, 1);
    futex_wake_all(&to->doorbell);
}

void board_ring_all(board_t *board)
{
    for (uint32_t rank = 0; rank < FABRIC_RANKS_MAX; rank++) {
        atomic_fetch_add(&board->ranks[rank].doorbell, 1);
        futex_wake_all(&board->ranks[rank].doorbell);
    }
}

bool board_rank_died(board_t *board, uint32_t rank, const char *reason, bool silent)
{
    if (!note_set(&board->ranks[rank].dead, reason, silent))
        return false;
    atomic_fetch_add(&board->n_dead, 1);
    board_ring_all(board);
    return true;
}

bool board_abort(board_t *board, const char *reason)
{
    if (!note_set(&board->aborted, reason, false))
        return false;
    board_ring_all(board);
    return true;
}

uint32_t board_sleep_announce(board_rank_t *own)
{
    atomic_fetch_add(&own->sleepers, 1);
    uint32_t key = atomic_load(&own->doorbell);
    atomic_thread_fence(memory_order_seq_cst);
    return key;
}

void board_sleep(board_rank_t *own, uint32_t key, uint32_t timeout_ms)
{
    struct timespec timeout = {timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000};
    /* Every way to return is a reason to look again, so the result does not matter. */
    syscall(SYS_futex, &own->doorbell, FUTEX_WAIT, key, &timeout, NULL, 0);
}

void board_sleep_leave(board_rank_t *own)
{
    atomic_fetch_sub(&own->sleepers, 1);
}
