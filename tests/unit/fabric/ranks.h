/* Ranks as forked processes: what the fabric's tests run their scenarios in. A rank's function
 * returns 0 when all was as it should be; EXPECT says what was not and returns 1. */
#ifndef SHOAL_TESTS_UNIT_FABRIC_RANKS_H
#define SHOAL_TESTS_UNIT_FABRIC_RANKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "worker/fabric/fabric.h"

/* Memory that the test and all its ranks share. */
typedef struct {
    _Atomic uint64_t killed_ns;   /* when the test killed or stopped somebody */
    _Atomic uint32_t ready;       /* ranks that reached the point of the scenario */
    _Atomic uint32_t done;
    _Atomic uint64_t numbers[64];
    uint8_t bytes[64][1024];      /* what ranks publish: endpoint addresses */
    _Atomic uint32_t n_bytes[64];
} shared_t;

typedef int (*rank_fn)(fabric_t *fabric, shared_t *shared);

typedef struct {
    uint32_t n;
    pid_t pids[FABRIC_RANKS_MAX];
    fabric_shm_t *shm;
    shared_t *shared;
} ranks_t;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: rank process %d: not so: %s (last failure: %s)\n", __FILE__,   \
                    __LINE__, (int)getpid(), #condition, status_text());                           \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

/* Whether the words are in the text; prints both when not. */
bool is_in(const char *text, const char *words);

shared_t *shared_new(void);
/* Starts n ranks of one host, groups of `group_n`, epoch 7. */
void ranks_start(ranks_t *ranks, uint32_t n, uint32_t group_n, uint32_t step_timeout_ms,
                 rank_fn function);
/* Waits until `count` ranks said that they are ready. */
void ranks_wait_ready(const ranks_t *ranks, uint32_t count);
/* In a rank's process: a millisecond's pause between two looks at a condition. */
void nap(void);
/* In a rank's process: waits until its fabric watches the beats of all others, so that a silence
 * would be noticed. False after ten seconds. */
bool rank_wait_heard(const fabric_t *fabric);
/* Waits until each rank of the bit mask sleeps on its doorbell; they are of the shared memory's
 * host. */
void ranks_wait_asleep(const ranks_t *ranks, uint64_t mask);
/* Sends a signal to a rank and notes the time. */
void ranks_signal(const ranks_t *ranks, uint32_t rank, int signal);
/* Collects them; a rank of `skip` (a bit mask) may end as it likes, each other must have returned
 * 0. Returns how many did not. */
int ranks_finish(ranks_t *ranks, uint64_t skip);
uint64_t ms_since(const shared_t *shared);

#endif
