/* A rank: one slice of one stage of a model, ready to run. rank_open() maps the model file and
 * packs the weights of its slice (slow, once); rank_run() serves one epoch over one fabric and
 * returns; a living rank then takes the next epoch with another fabric, its weights still in place
 * and its KV and sequences forgotten.
 *
 * All functions are called from one thread, the rank's own; other threads only read the pulse and
 * talk to the leader's mailbox. */
#ifndef SHOAL_WORKER_ENGINE_RANK_H
#define SHOAL_WORKER_ENGINE_RANK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/model/model.h"
#include "worker/engine/leader.h"
#include "worker/fabric/fabric.h"

typedef struct rank rank_t;

/* Guesses of a sequence in a step where nobody says otherwise: a replica that serves. Above it the
 * chance that all before were right is seldom worth a row. */
#define RANK_SPECULATE 8u

/* What the process around the rank watches, without a lock: `beats` rises with every layer, step
 * and idle turn; `waiting` is not 0 while the rank waits for a peer (the fabric's own timeout then
 * decides) or for work. No progress = beats stand still while waiting is 0. */
typedef struct {
    _Atomic uint64_t beats;
    _Atomic uint64_t step; /* in work, or the last one */
    _Atomic uint32_t layer;
    _Atomic uint32_t waiting;
    _Atomic uint32_t loaded_percent; /* of the weights, while rank_open runs */
} rank_pulse_t;

typedef struct {
    const char *model_path;
    const char *quantize; /* as model_open_quantized; NULL is "" */
    const model_t *model; /* what these two name, open already and as long as the rank is; NULL:
                             rank_open opens it */
    const char
        *model_digest;     /* "sha256:…" when the caller knows it; NULL: computed from the file */
    const char *cache_dir; /* where model_digest() keeps its answers; may be NULL */
    /* What packed weights may take under cache_dir; 0: they are not kept. Those of a rank are only
     * kept from bytes_min on. */
    uint64_t pack_cache_bytes, pack_cache_bytes_min;
    uint32_t rank, stage, slice, tp, stages; /* rank = stage * tp + slice */
    uint32_t expert_groups, attention_slices; /* the cut, as plan_cut(); alike on all ranks */
    uint32_t attention_replicas;
    bool shared_head; /* every stage has a part of the head (plan_head_run); alike on all ranks */
    uint32_t layer_first, layer_count;
    uint32_t threads;            /* compute threads, this one included; 0 takes all allowed cores */
    bool activations_f32;        /* "f32" mode; false is "native" */
    const char *kv;              /* the cache's type (kv_type.h); NULL is "" */
    uint32_t context_max;        /* 0 takes the model's */
    uint64_t kv_tokens_max;      /* KV capacity of the replica, of all its replicas of attention; 0
                                    takes what kv_bytes_max holds on each */
    uint64_t kv_bytes_max;       /* memory for KV on this rank; 0 takes 1 GiB */
    uint32_t prefill_tokens_max; /* rows of a step at most; 0 takes 512. Fewer where a shared head
                                    would hold such steps up (stage_rows_past_heads) */
    uint32_t batch_max;          /* sequences of a step; 0 takes 64 */
    bool no_prefix_cache;
    uint32_t speculate_max; /* guesses of a sequence in a step; 0: none */
    const char *draft_path; /* a model that guesses for rank 0 (draft_model.h); NULL: none */
    const char *draft_digest; /* as model_digest */
    bool draft_may_fail;      /* one that cannot be opened is left out with a warning */
    bool whole_prompts;     /* as scheduler_config_t's */
    bool beyond_context;      /* context_max may pass the trained one: eval looks there too */
    uint32_t form_timeout_ms; /* how long to wait for the other ranks; 0 takes 60 s */
    rank_pulse_t *pulse;      /* moved by rank_open; may be NULL */
    uint32_t fixed_rows;      /* tests: as scheduler_config_t's, so that guesses always seem to pay */
    bool late_queue;          /* tests: ops run when their event is waited for */
    /* Tests: sees each row of the residual stream as layer `layer` begins with it (n_layers: as the
     * last one leaves it). On slice 0 of each stage it sees what every slice has. NULL: none. */
    void (*hidden)(void *context, uint32_t layer, uint32_t position, uint32_t n, const float *row);
    void *hidden_context;
    /* Where rank_close() writes what each op of the last steps cost (trace_file.h); NULL: nothing
     * is measured. */
    const char *trace_path;
} rank_config_t;

typedef struct {
    rank_pulse_t *pulse; /* may be NULL */
    void *context;
    /* On the leader's rank, once, when every rank is prepared and go was said: the epoch is active
     * from here. May be NULL. */
    void (*active)(void *context, const char *text_identity, uint64_t kv_tokens,
                   uint32_t context_max);
    /* On the leader's rank, before each step: the sessions of all steps in flight, this one's
     * included. Whoever keeps them outside this process knows the suspects when the leader itself
     * dies. Valid for the call; it must not block. May be NULL. */
    void (*planned)(void *context, uint64_t step, uint32_t n,
                    const char (*sessions)[SESSION_BYTES]);
    /* On every rank, once, when it is prepared (before go). May be NULL. */
    void (*prepared)(void *context, uint64_t kv_tokens);
    /* On the leader's rank: rows of logits that an admission asked for (logits_from), in the order
     * of positions, some rows a call. May be NULL. */
    void (*logits)(void *context, const char *session, uint32_t choice, uint32_t position,
                   uint32_t n_rows, uint32_t vocab, const float *rows);
} rank_callbacks_t;

/* Parts of rank_open(): the defaults of a model of this shape, and whether it can be served so. */
void rank_config_complete(rank_config_t *config, const model_config_t *shape);
status_t rank_config_check(const rank_config_t *config, const model_config_t *shape) MUST_USE;

/* Checks the configuration against the model, maps it, packs this rank's slice, takes memory for
 * KV. */
status_t rank_open(const rank_config_t *config, rank_t **own_out) MUST_USE;
void rank_close(rank_t *take_rank);

const char *rank_text_identity(const rank_t *rank); /* valid as long as the rank */
uint64_t rank_kv_tokens(const rank_t *rank); /* of the replica, if all ranks offer what this one does */
uint64_t rank_weight_bytes(const rank_t *rank);
uint32_t rank_context_max(const rank_t *rank);
uint32_t rank_vocab(const rank_t *rank);
const char *rank_isa(const rank_t *rank);

/* Serves one epoch. `fabric` is borrowed and may be NULL for a replica of one rank; `leader` is
 * given on rank 0 and NULL elsewhere. Returns STATUS_OK when the epoch was stopped in good order,
 * else the failure (whose words name rank, operation and step); the caller then aborts the fabric.
 */
status_t rank_run(rank_t *rank, fabric_t *fabric, leader_t *leader,
                  const rank_callbacks_t *callbacks) MUST_USE;

#endif
