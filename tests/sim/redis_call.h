/* One call of the job functions on its way to the simulated Redis and back. */
#ifndef SHOAL_TESTS_SIM_REDIS_CALL_H
#define SHOAL_TESTS_SIM_REDIS_CALL_H

#include "tests/sim/sim.h"

typedef struct {
    core_action_kind_t kind;
    uint32_t coordinator;
    uint64_t life, op, generation;
    bool lose_reply;
    char id[CORE_ID_SIZE]; /* job or session */
    uint64_t index, attempt, process, to, epoch, n, nonce, fence, owner;
    bool complete;
    char error[16], text[SIM_TEXT_MAX];
    uint32_t n_ids;
    char jobs[SIM_JOBS][CORE_ID_SIZE];
    uint64_t versions[SIM_JOBS];
    size_t n_jobs;
    uint8_t pointer[JOBS_POINTER_BYTES_MAX];
    size_t pointer_bytes;
    /* the answer */
    jobs_code_t code;
    uint64_t number;
    struct {
        char job[CORE_ID_SIZE];
        uint64_t index, attempt, deaths;
        /* Of the job when it was claimed: the store may be empty when the answer comes back. */
        uint64_t seed;
        bool poison;
    } refs[CORE_CLAIM_MAX];
    size_t n_refs;
    struct { char job[CORE_ID_SIZE]; jobs_state_t state; uint64_t version; } states[SIM_JOBS];
    size_t n_states;
    uint64_t processes[128];
    size_t n_processes;
} redis_call_t;

/* Carries it out at the server, now, and fills in the answer. */
void redis_apply(sim_t *sim, redis_call_t *call);
/* NULL when there is no such job. */
sim_job_t *redis_find_job(sim_t *sim, const char *id);
/* Gives an item its terminal record. */
void redis_end_item(sim_t *sim, sim_job_t *job, sim_item_t *item, jobs_end_t end);

#endif
