/* Rank processes as their parent sees them (the agent, or the offline mode): spawned from
 * /proc/self/exe as `shoal-worker rank`, spoken to through worker/control.h, supervised by pidfd.
 *
 * A rank never outlives its parent: the child arms the parent-death signal before anything else,
 * checks that the parent is still the one that spawned it, and besides that exits when its control
 * socket reports end of file. The kernel binds the death signal to the parent's *thread*: call
 * rank_process_spawn from the main thread only.
 *
 * Not thread-safe: one owner a process, except where said otherwise. */
#ifndef SHOAL_WORKER_RANK_PROCESS_H
#define SHOAL_WORKER_RANK_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/status.h"
#include "worker/control.h"

typedef struct rank_process rank_process_t;

/* How a rank ended. `crashed` is true only when it died by its own doing: SEGV, BUS, ABRT, FPE,
 * ILL, or its cgroup's out-of-memory kill. Only such a death may be held against a sequence. */
typedef struct {
    bool crashed;
    int signal;    /* 0 when it exited */
    int exit_code; /* when it exited */
    char text[160]; /* "killed by signal 11 (Segmentation fault)" */
} rank_death_t;

/* The program that is spawned, for tests; /proc/self/exe unless set. Kept by the caller. */
void rank_process_program(const char *path);

/* Spawns a rank and sends it START; a leader that serves also gets a step page. */
status_t rank_process_spawn(const rank_start_t *start, rank_process_t **own_out) MUST_USE;
/* Sends EPOCH with the shared memory's descriptor (-1 for none, kept by the caller), DRAIN or STOP.
 * Never waits: what a rank that is stopped or stuck does not take now is kept, and an EPOCH takes
 * the place of an earlier one. STATUS_PEER_LOST when the rank is gone. */
status_t rank_process_send_epoch(rank_process_t *rank, const rank_epoch_t *epoch,
                                 int shm_fd) MUST_USE;
status_t rank_process_send_drain(rank_process_t *rank) MUST_USE;
status_t rank_process_send_stop(rank_process_t *rank) MUST_USE;
/* Whether something was kept: then poll the socket for writing and call rank_process_flush. */
bool rank_process_has_unsent(const rank_process_t *rank);
status_t rank_process_flush(rank_process_t *rank) MUST_USE;
/* The next message of the rank, if one is there; as control_receive. */
status_t rank_process_receive(rank_process_t *rank, control_message_t *out,
                              bool *got_out) MUST_USE;

const rank_start_t *rank_process_start_of(const rank_process_t *rank);
pid_t rank_process_pid(const rank_process_t *rank);
int rank_process_socket(const rank_process_t *rank); /* poll it for reading */
/* The rank's end of the channel is closed: nothing more will come from it. */
bool rank_process_hung_up(const rank_process_t *rank);
int rank_process_pidfd(const rank_process_t *rank);  /* readable when the rank is dead */

/* SIGKILL; harmless when it is dead already. */
void rank_process_kill(rank_process_t *rank);
/* Collects a dead rank within timeout_ms (0: only looks). False while it lives. */
bool rank_process_reap(rank_process_t *rank, uint32_t timeout_ms, rank_death_t *out);
/* Whose sequences were in the steps that this leader had begun and not finished, as it wrote them
 * before it died; returns how many. 0 for other ranks. */
uint32_t rank_process_flying(const rank_process_t *rank,
                             char sessions_out[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES]);
/* Kills and reaps what still lives, closes, frees. NULL is fine. */
void rank_process_release(rank_process_t *take_rank);

/* ---- A whole replica on this host without an agent: what the offline mode uses ---- */

typedef struct rank_group rank_group_t;

/* Spawns ranks 1..n-1 (starts[i] is rank i; starts[0] is the caller's own and is not spawned),
 * makes the shared memory of one epoch and sends it to them. A thread watches the children: when
 * one dies its death is told to everyone through the shared memory, so that each wait ends. Call
 * from the main thread. The caller then opens its own fabric with rank_group_fabric_config. */
status_t rank_group_start(const rank_start_t *starts, uint32_t n_ranks, uint32_t formation_ms,
                          rank_group_t **own_out) MUST_USE;
/* The fabric config of rank 0, the caller. Valid as long as the group. */
const fabric_config_t *rank_group_fabric_config(const rank_group_t *group);
/* The first bad thing a child said or did ("rank 2: killed by signal 9"); "" when all is well. Any
 * thread; the text is copied. */
void rank_group_failure(rank_group_t *group, char *text_out, size_t text_bytes);
/* Sends STOP, waits up to timeout_ms for them to exit, kills the rest, frees. NULL is fine. */
void rank_group_stop(rank_group_t *take_group, uint32_t timeout_ms);

/* ---- The other side ---- */

/* `shoal-worker rank PARENT_PID`: the whole life of a rank process. Returns its exit code. */
int rank_process_main(int argc, char **argv);

#endif
