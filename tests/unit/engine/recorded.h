/* One recorded model and how what was computed compares with it: the same code judges the models as
 * they are and those that were made wrong on purpose. */
#ifndef SHOAL_TESTS_ENGINE_RECORDED_H
#define SHOAL_TESTS_ENGINE_RECORDED_H

#include "eval_run.h"

enum { RECORDED_PROMPTS = 4, RECORDED_GREEDY = 32, RECORDED_HIDDEN_PROMPT = 1 };

typedef struct {
    char *model;   /* the GGUF file, or the directory */
    char *tensors; /* golden.safetensors */
    json_t *golden, *ids;
    double tolerance; /* of any logit in F32 */
} recorded_t;

/* A folder of tests/golden. Fails the test when it is not there. */
void recorded_open(const char *name, recorded_t *out);
void recorded_close(recorded_t *recorded);

/* What F32 compute is judged by. `right`: every logit of every position and every recorded hidden
 * state within the tolerance, and all greedy ids equal. */
typedef struct {
    double worst, hidden;
    uint32_t n_hidden;
    bool same_text, right;
} recorded_verdict_t;

/* Of an evaluation in f32 mode with RECORDED_GREEDY greedy ids and hidden states. */
recorded_verdict_t recorded_judge(const recorded_t *recorded, const eval_result_t *result);
/* The arguments of such an evaluation; `model` may be another than the recorded one. */
eval_args_t recorded_args(const recorded_t *recorded, const char *model);

double recorded_worst_logit(const recorded_t *recorded, const eval_result_t *result);

/* Native mode is measured against what the same model loses by the recorded arithmetic: means,
 * mismatches, and maxima of dense models: with experts one token that goes elsewhere makes any
 * maximum. */
typedef struct {
    double mean, most;
    uint32_t mismatches; /* positions whose highest logit is another one */
} recorded_noise_t;

recorded_noise_t recorded_measure(const recorded_t *recorded, const eval_result_t *result);
/* What was recorded for `row` ("bf16", "act_q8_block32"); false when nothing was. */
bool recorded_noise_of(const recorded_t *recorded, const char *row, recorded_noise_t *out);

#endif
