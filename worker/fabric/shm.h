/* The layout of one epoch's shared memory: head and board, then the rings of every ordered pair of
 * local ranks, then two exchange slots a local rank. The file is sparse: what is never touched costs
 * no memory. Everybody computes the same layout from the head, which is checked when it is mapped. */
#ifndef SHOAL_WORKER_FABRIC_SHM_H
#define SHOAL_WORKER_FABRIC_SHM_H

#include "worker/fabric/board.h"
#include "worker/fabric/ring.h"

#define SHM_MAGIC 0x53484f414c303146ull

typedef struct {
    uint64_t magic;
    uint64_t epoch;
    uint64_t bytes; /* of the whole file */
    uint32_t n_local;
    uint32_t local[FABRIC_RANKS_MAX]; /* the ranks of this host, ascending */
} shm_head_t;

/* One of the two places where a rank puts its part of an exchange. `sequence` is stored last. */
typedef struct {
    _Alignas(64) _Atomic uint64_t sequence;
    uint64_t bytes;
} shm_slot_t;

struct fabric_shm {
    int fd; /* -1 when the mapping was made from a borrowed descriptor */
    uint8_t *map;
    size_t bytes;
    board_t *board;
};

/* How many bytes a lane buffers; PARTIALS has slots instead of rings inside a host. */
size_t fabric_lane_bytes(fabric_lane_t lane);

/* Maps a borrowed descriptor and checks size, seals and head. */
status_t shm_map(int fd, uint64_t epoch, fabric_shm_t *out) MUST_USE;
void shm_unmap(fabric_shm_t *shm);

/* The index of a rank among the local ones; UINT32_MAX when it is not on this host. */
uint32_t shm_local_index(const fabric_shm_t *shm, uint32_t rank);
/* The ring from local rank index `from` to `to`. */
ring_t shm_ring(const fabric_shm_t *shm, uint32_t from, uint32_t to, fabric_lane_t lane);
/* Slot 0 or 1 of a local rank index, and its bytes. */
shm_slot_t *shm_slot(const fabric_shm_t *shm, uint32_t index, uint32_t which);
uint8_t *shm_slot_bytes(shm_slot_t *slot);

#endif
