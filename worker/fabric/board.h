/* The board: what the ranks of one host tell each other besides messages. Who beats, who is dead,
 * whether the epoch is aborted, and the doorbell on which each rank sleeps. It lies in the epoch's
 * shared memory, or on the heap of a rank that is alone on its host. Everything in it is an atomic
 * or is written once before an atomic says so; a process that dies at any instruction leaves it
 * usable. */
#ifndef SHOAL_WORKER_FABRIC_BOARD_H
#define SHOAL_WORKER_FABRIC_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "worker/fabric/fabric.h"

#define BOARD_REASON_BYTES 200

/* A text that is written once: the first writer wins. */
typedef struct {
    _Atomic uint32_t state; /* NOTE_EMPTY, NOTE_TAKEN while its words are written, NOTE_SET */
    _Atomic uint32_t silent;
    char text[BOARD_REASON_BYTES];
} note_t;
enum { NOTE_EMPTY, NOTE_TAKEN, NOTE_SET };

typedef struct {
    _Alignas(64) _Atomic uint32_t doorbell; /* the futex word; rises with every ring */
    _Atomic uint32_t sleepers;              /* threads that are about to sleep or do */
    _Alignas(64) _Atomic uint64_t beat;     /* rises every FABRIC_HEARTBEAT_MS */
    _Atomic int32_t pid;                    /* 0 until the rank has opened its fabric */
    _Atomic uint32_t left;                  /* closed its fabric in good order */
    note_t dead;
} board_rank_t;

typedef struct {
    note_t aborted;
    _Atomic uint32_t n_dead; /* of any rank, local or not; waiters look at this one word */
    board_rank_t ranks[FABRIC_RANKS_MAX]; /* by rank; doorbell, beat and pid of local ones only */
} board_t;

/* Sets a note; false when it was set (or is being set) by another. */
bool note_set(note_t *note, const char *text, bool silent);
/* The words, or NULL when it is not set. */
const char *note_text(const note_t *note);

/* Wakes the threads of a rank that sleep; cheap when none does. Publish first, ring then. */
void board_ring(board_t *board, uint32_t rank);
/* All local ranks, whether they sleep or not; used when something ends. */
void board_ring_all(board_t *board);
/* Marks a rank dead and rings everybody; false when it was known. */
bool board_rank_died(board_t *board, uint32_t rank, const char *reason, bool silent);
bool board_abort(board_t *board, const char *reason);

/* The sleep of one waiter: announce, look once more, then sleep with the key, then leave. */
uint32_t board_sleep_announce(board_rank_t *own);
void board_sleep(board_rank_t *own, uint32_t key, uint32_t timeout_ms);
void board_sleep_leave(board_rank_t *own);

#endif
