/* A replica for the scheduler's tests, made of arithmetic: a token's KV is the hash of all ids up
 * to it, and the next id is a function of the last hash. Carrying out a plan checks that every KV
 * entry that its rows would read is the right one, so a block that is shared, freed or written too
 * early shows at once; and each sequence's text is a pure function of its prompt, so any schedule
 * can be held against it. Texts never repeat themselves unless rig_repeats says so. */
#ifndef SHOAL_TESTS_ENGINE_SCHEDULER_RIG_H
#define SHOAL_TESTS_ENGINE_SCHEDULER_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/engine/kv.h"
#include "worker/engine/scheduler.h"

enum { RIG_VOCAB = 50000, RIG_SEQUENCES_MAX = 256, RIG_IDS_MAX = 1024, RIG_EOS = 7 };

/* What a coordinator has seen of one sequence. */
typedef struct {
    char session[SESSION_BYTES];
    uint32_t n_prompt;
    uint32_t prompt[RIG_IDS_MAX];
    uint32_t max_tokens;
    uint32_t n_ids;
    uint32_t ids[RIG_IDS_MAX];
    uint32_t n_ends;
    end_reason_t end;
    finish_t finish;
    const char *code;
    uint32_t n_cached;
    uint64_t first_step; /* in which it had rows */
} rig_sequence_t;

typedef struct {
    scheduler_t *s;
    scheduler_config_t config;
    uint64_t now_ms;
    uint32_t stream;
    uint64_t *kv; /* [pool][block][16] */
    step_blocks_t blocks; /* plans pass through their bytes */
    arena_t arena;
    buffer_t bytes;
    struct {
        bool open;
        uint32_t n_ids;
        uint32_t ids[RIG_IDS_MAX * 2];
    } * slots;
    /* Steps in flight, oldest first. */
    uint32_t n_flights;
    step_result_t results[8];
    step_drawn_t drawn[8][STEP_ENTRIES_MAX];
    uint64_t n_rows; /* of all plans */
    /* The plan that was made last. */
    uint32_t n_entries;
    struct {
        char session[SESSION_BYTES];
        uint32_t pool, position, n_tokens, n_draft;
        bool sample;
    } entries[STEP_ENTRIES_MAX];
    rig_sequence_t sequences[RIG_SEQUENCES_MAX];
    uint32_t n_sequences;
} rig_t;

/* 0, or how many ids the texts of this process go round in: n after n, but that now and then (as the
 * hash says) one is left out. So guesses are right often, and wrong often. */
extern uint32_t rig_repeats;

/* 0: nobody answers for a draft model. 1 to 9: one does, and of eight guesses so many less one are
 * right. */
extern uint32_t rig_drafts;
/* Its context, over which it is silent; 0: none. */
extern uint32_t rig_draft_context;

/* Defaults: 64 blocks, context 512, 1 stage, 8 sequences and 64 tokens a step. */
rig_t *rig_new(void (*change)(scheduler_config_t *config));
void rig_free(rig_t *rig);

/* A request of n_prompt ids that `salt` decides; `change`, which may be NULL, alters it. */
rig_sequence_t *rig_admit(rig_t *rig, const char *session, uint32_t n_prompt, uint32_t salt,
                          uint32_t max_tokens, void (*change)(admission_t *admission));
/* A change of rig_admit's: a request that runs alone. */
void rig_solo(admission_t *admission);
rig_sequence_t *rig_find(rig_t *rig, const char *session);

/* Makes and carries out one plan; false when there is nothing to run. Its result is queued. */
bool rig_plan(rig_t *rig);
/* Gives the oldest result back. */
void rig_return(rig_t *rig);
/* Reads everything that a stream is owed. */
void rig_take(rig_t *rig, uint32_t stream);
/* One step there and back, outputs read. */
bool rig_step(rig_t *rig);
/* Steps until nothing runs; fails the test after 10,000. */
void rig_run(rig_t *rig);
/* `turns` random requests (n_max at most, of up to tokens_max tokens), cancels, plans and returns,
 * then all that is left. Every sequence must have ended once, with its own text if it finished, and
 * every block be free. Returns how many finished. */
uint32_t rig_run_random(rig_t *rig, uint32_t random, uint32_t turns, uint32_t n_max,
                        uint32_t tokens_max);
bool rig_planned(const rig_t *rig, const char *session);
/* The sequence ended with the text that its prompt decides. */
void rig_check_text(const rig_sequence_t *sequence);

#endif
