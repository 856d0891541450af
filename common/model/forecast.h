/* What would become of a model on given hosts: does it fit, in what shape, with how much cache, and
 * how fast at best. Each device takes one rank. Memory is plan.h's own answer (plan_needs,
 * plan_fit), so what fits here is what a deployment is given; speed is roofline.h's upper bound.
 * Pure. */
#ifndef SHOAL_COMMON_MODEL_FORECAST_H
#define SHOAL_COMMON_MODEL_FORECAST_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/hosts_file.h"
#include "common/model/plan.h"

typedef struct {
    const plan_sizes_t *sizes;
    qtype_t weights;     /* of most matrices: decides a device's rate */
    uint32_t tp, stages; /* 0: chosen */
    uint32_t expert_groups, attention_slices; /* as plan_cut(); 0: chosen */
    uint32_t attention_replicas;              /* 0: one */
    uint32_t context;    /* positions of a sequence */
    uint32_t prompt;     /* tokens of a prompt, at most `context` */
    uint32_t batch_max;  /* sequences that decode together, at most */
    bool activations_f32, kv_codes;
    uint64_t draft_bytes; /* as plan_shape_t's */
    bool latency; /* choose the shape that answers one sequence fastest, not the one that makes most
                     tokens on all devices together */
} forecast_question_t;

/* Seconds of the slowest stage, by what takes them. */
typedef struct {
    double compute_s, memory_s;
    double link_s; /* exchanges inside the stage, the pass to the next, the gather of logits */
    double stage_s; /* max(compute, memory) of the slowest slice + link, of the slowest stage */
    double all_s;   /* of all stages, one behind the other */
} forecast_time_t;

typedef struct {
    plan_shape_t shape; /* its cut is the one that was chosen */
    bool fits;
    char reason[STATUS_TEXT_MAX]; /* why not */
    uint64_t device_bytes_least;  /* devices with so much (reserve included) would do */
    plan_run_t layers[PLAN_STAGES_MAX];
    plan_need_t needs[PLAN_RANKS_MAX]; /* rank = stage * tp + slice */
    uint32_t devices[PLAN_RANKS_MAX];  /* of the hosts file */
    uint32_t replicas;                 /* that the devices hold */

    /* Of one replica that fits. */
    uint64_t kv_tokens;
    uint32_t sequences; /* of `context` positions that those hold */
    uint32_t batch;
    forecast_time_t one, many, prefill; /* one sequence; `batch` sequences in flight; a piece of a
                                           prompt */
    double one_tokens_s, many_tokens_s, prefill_tokens_s;
    double first_token_s; /* of a prompt on an idle replica */
} forecast_t;

/* Sets *out for the best shape that fits, or, with fits = false, for the one that lacks least.
 * STATUS_REFUSED when the devices are too few for the tp and stages that were asked for,
 * STATUS_INVALID for what no devices would make right. */
status_t forecast_make(const forecast_question_t *question, const hosts_file_t *hosts,
                       forecast_t *out) MUST_USE;

/* What would make a model fit that does not. */
typedef struct {
    uint64_t device_bytes; /* larger devices in the forecast's shape */
    uint32_t devices;      /* the fewest like the largest one; 0: PLAN_RANKS_MAX do not help */
    uint32_t tp, stages;   /* with them */
    uint32_t context;      /* the longest that fits on the hosts as they are; 0: none */
} forecast_advice_t;
void forecast_advise(const forecast_question_t *question, const hosts_file_t *hosts,
                     const forecast_t *forecast, forecast_advice_t *out);

#endif
