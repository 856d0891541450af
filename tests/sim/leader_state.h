/* What the simulated leader's two files share. */
#ifndef SHOAL_TESTS_SIM_LEADER_STATE_H
#define SHOAL_TESTS_SIM_LEADER_STATE_H

#include "tests/sim/sim.h"

enum { SLOT_IDS = STEP_SLOTS_MAX, BOOK_MAX = 512 };

typedef struct {
    uint64_t seed;
    uint32_t choice, n_prompt;
} slot_params_t;

typedef struct {
    char key[CORE_ID_SIZE + 12];
    uint8_t *admit; /* packed, as it was admitted */
    size_t size;
} book_entry_t;

struct sim_leader {
    uint32_t host, ordinal;
    uint64_t epoch, life;
    scheduler_t *scheduler;
    sim_stream_t streams[SIM_STREAMS];
    slot_params_t slots[SLOT_IDS];
    book_entry_t book[BOOK_MAX];
    size_t n_book;
    uint64_t step, done_at_ms;
    bool dead;
};

/* leader_streams.c: to every coordinator what its stream is owed; NULL breaks the stream. */
void leader_flush(sim_t *sim, sim_leader_t *leader);
void leader_send(sim_t *sim, sim_stream_t *stream, const Shoal__Worker__V1__LeaderMessage *m);
/* leader.c: plans steps while there is something to run; the leader may die of it. */
void leader_plan(sim_t *sim, sim_leader_t *leader);

#endif
