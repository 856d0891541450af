/* `shoal-worker offline eval|bench|profile`: a whole replica without a cluster, for checking numbers and
 * measuring speed. Prints data on standard output and everything else on standard error. */
#ifndef SHOAL_WORKER_OFFLINE_H
#define SHOAL_WORKER_OFFLINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/model/model.h"
#include "worker/engine/leader.h"

/* argv[0] is "offline", argv[1] "eval", "bench" or "profile"; returns the exit code. Call from the main
 * thread. */
int offline_main(int argc, char **argv);

/* ---- shared by the offline files ---- */

typedef struct {
    const char *model_path;
    int64_t tp, stages, threads; /* threads 0: the cores shared out among the ranks */
    int64_t expert_groups, attention_slices; /* as plan_cut(); 0: chosen */
    int64_t attention_replicas;
    const char *head; /* "auto", "last" or "shared": which stages have it */
    const char *activations;     /* "native" | "f32" */
    const char *kv;              /* the cache's type (common/model/kv_type.h) */
    const char *quantize;        /* as model_open_quantized; "" is as stored */
    const model_t *model;        /* what offline_model() gave for these; NULL: opened for each run */
    const char *pack_cache;      /* directory for packed weights; NULL: they are not kept */
    int64_t pack_cache_bytes;    /* that they may take there */
    int64_t batch, chunk;
    int64_t speculate; /* guesses of a sequence in a step; 0: none */
    const char *draft_path; /* a draft model, asked for so many; NULL: none */
    int64_t fixed_rows; /* as rank_config_t's */
    bool no_prefix_cache, late_queue;
    uint32_t context_max;
    uint64_t kv_tokens_max;
    const char *trace_path; /* rank N writes its trace to trace_path.N; NULL: none */
    /* As rank_config_t's: the layers of the first stage. */
    void (*hidden)(void *context, uint32_t layer, uint32_t position, uint32_t n, const float *row);
    void *hidden_context;
} offline_replica_t;

/* A stream to the leader for one thread that may wait. */
typedef struct offline_client offline_client_t;
void offline_admit(offline_client_t *client, const admission_t *admission);
/* The next output, waiting for it; drawn_out as leader_take(). */
void offline_next(offline_client_t *client, sequence_output_t *out);

/* Sequences that are admitted at once and followed to their ends. */
typedef struct {
    uint32_t n, n_prompt, n_ids; /* sequences; ids of each prompt, and that follow it */
    uint32_t choice;             /* as admission_t's: another in each round */
    void *context;
    void (*prompt)(void *context, uint32_t sequence, uint32_t *ids); /* fills n_prompt ids */
    void (*taken)(void *context, const sequence_output_t *out);      /* each output; NULL: none */
} offline_round_t;
/* Fails when a sequence ends otherwise than finished. */
status_t offline_round(offline_client_t *client, const offline_round_t *round) MUST_USE;

/* The scheduler's numbers now. */
void offline_load(offline_client_t *client, scheduler_load_t *out);

typedef struct {
    void *context;
    /* On a thread of its own once the replica is active. Its status is offline_run's, its words
     * too. */
    status_t (*drive)(void *context, offline_client_t *client);
    /* On the rank's thread; as rank_callbacks_t. May be NULL. */
    void (*logits)(void *context, const char *session, uint32_t choice, uint32_t position,
                   uint32_t n_rows, uint32_t vocab, const float *rows);
} offline_work_t;

/* Options of eval and bench that say how slices share a stage. */
#define OFFLINE_EXPERT_GROUPS_HELP \
    "groups of slices, each with whole experts of its own; 0 takes the planner's rule"
#define OFFLINE_ATTENTION_SLICES_HELP "slices that hold attention and its KV; 0: all"
#define OFFLINE_HEAD_HELP "the stage that has the output projection; auto: all share a large one"
#define OFFLINE_ATTENTION_REPLICAS_HELP \
    "replicas of attention among those, each with the KV of its own sequences"

#define OFFLINE_DRAFT_MODEL_HELP \
    "a small model with the same tokenizer, which guesses where a text does not repeat itself"

#define OFFLINE_DRAFT_MODEL_NEEDS \
    "--draft-model needs --speculate: how many tokens it may guess ahead; 8 would be right"

/* Threads of each rank, as asked for or shared out. */
uint32_t offline_threads(const offline_replica_t *replica);

/* Opens the model of the replica. */
status_t offline_model(const offline_replica_t *replica, model_t **own_out) MUST_USE;

/* Forms the replica, does the work, stops it. From the main thread. */
status_t offline_run(const offline_replica_t *replica, const offline_work_t *work) MUST_USE;

int offline_eval(int argc, char **argv);
int offline_bench(int argc, char **argv);
int offline_profile(int argc, char **argv);
/* Prints the last failure on standard error and returns its exit code. */
int offline_failed(const char *program, status_t status);

#endif
