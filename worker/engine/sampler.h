/* Choosing the next token from a row of logits, by the rules of docs/numerics.md ("Sampling").
 *
 * The choice is a pure function of (logits, parameters, the ids before it): random numbers come
 * from Philox counted by (position, choice, draw) under the seed, and the only state, how often
 * each id occurred, is rebuilt from ids alone. So a sequence goes on with the same text on any rank
 * that is given its ids.
 *
 * Order: repetition, presence, frequency penalty, bias (F32) → (x − max)/T in F32 → exp in F64 →
 * top-k → top-p → min-p → draw in id order. Ties always go to the lower id. Single-threaded. */
#ifndef SHOAL_WORKER_ENGINE_SAMPLER_H
#define SHOAL_WORKER_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define SAMPLING_BIAS_MAX 1024u
#define SAMPLING_STOP_IDS_MAX 64u
#define SAMPLING_EOS_IDS_MAX 16u
#define SAMPLING_LOGPROBS_MAX 20u
#define SAMPLER_BLOCK_TOKENS \
    1024u /* tokens a block of a sum; vocabulary slices end on such edges */
#define SAMPLER_LANES 16u

typedef struct {
    uint32_t id;
    float bias;
} sampling_bias_t;

/* Every field set; the ranges are those of shoal.v1.Sampling. */
typedef struct {
    float temperature;        /* 0 is greedy */
    uint32_t top_k;           /* 0 is off */
    float top_p;              /* 1 is off */
    float min_p;              /* 0 is off */
    float repetition_penalty; /* 1 is off; counts prompt and produced ids */
    float presence_penalty;   /* 0 is off; counts produced ids only, like frequency_penalty */
    float frequency_penalty;
    uint64_t seed;
    bool want_logprobs;
    uint32_t n_top; /* alternatives listed with each token, when want_logprobs */
    uint32_t n_bias;
    const sampling_bias_t *bias;
} sampling_t;

/* Greedy, nothing else on. */
extern const sampling_t sampling_default;

/* INVALID names the field, its value and its range. */
status_t sampling_check(const sampling_t *sampling, uint32_t vocab) MUST_USE;

typedef struct {
    uint32_t id;
    float logprob;
} token_logprob_t;

/* What one draw gave. Log-probabilities are those of the model: before penalties and temperature.
 */
typedef struct {
    uint32_t id;
    float logprob; /* 0 unless want_logprobs */
    uint32_t n_top;
    token_logprob_t top[SAMPLING_LOGPROBS_MAX];
} sampled_t;

/* How often each id occurred in one sequence. Zero-initialised is empty and ready. */
typedef struct {
    struct sampler_count {
        uint32_t id;       /* SAMPLER_NO_ID marks an empty place */
        uint32_t prompt;   /* occurrences in the prompt */
        uint32_t produced; /* and among the produced ids */
    } * places;            /* open addressing, capacity a power of two */
    uint32_t capacity, n_used;
} sampler_state_t;
#define SAMPLER_NO_ID UINT32_MAX

void sampler_state_add(sampler_state_t *state, uint32_t id, bool produced);
void sampler_state_release(sampler_state_t *state);
/* Equal for equal states, whatever the order in which ids were added; for tests. */
uint64_t sampler_state_digest(const sampler_state_t *state);

/* Scratch memory for one vocabulary; one for each thread that samples. */
typedef struct sampler sampler_t;
sampler_t *sampler_new(uint32_t vocab);
void sampler_free(sampler_t *take_sampler);

/* Draws the token that stands at `position` (how many ids come before it) of choice `choice`.
 * `logits` has `vocab` values and is not changed. NUMERIC when one of them is NaN or +Inf. */
status_t sampler_draw(sampler_t *sampler, const float *logits, const sampling_t *sampling,
                      const sampler_state_t *state, uint32_t position, uint32_t choice,
                      sampled_t *out) MUST_USE;

/* Natural logarithm of the probability of `id` under softmax(logits), in F64. */
double sampler_logprob(const float *logits, uint32_t vocab, uint32_t id);

/* Philox-4x32-10: 128 random bits for a counter under a key. */
void philox4x32(const uint32_t counter[4], uint64_t key, uint32_t out[4]);

/* exp and log in F64 by one written sequence of operations; no libm. exp's argument is at most 0.
 */
double sampler_exp(double x);
double sampler_log(double x);

#endif
