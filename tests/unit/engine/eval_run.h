/* Runs `shoal-worker offline eval` as its users do and reads what it wrote; and reads the recorded
 * references, which are safetensors files as well. */
#ifndef SHOAL_TESTS_ENGINE_EVAL_RUN_H
#define SHOAL_TESTS_ENGINE_EVAL_RUN_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { EVAL_PROMPTS_MAX = 256 };

/* Whether a test's command line names it; one without names wants all. */
bool eval_is_wanted(int argc, char **argv, const char *name);

typedef struct {
    const char *model;
    const json_t *ids; /* array of arrays */
    const char *isa;   /* NULL: the best */
    const char *failpoints;
    const char *quantize, *pack_cache; /* NULL: none */
    const char *kv, *head; /* NULL: as it is without the option */
    uint32_t tp, stages, threads, batch, chunk, passes, greedy; /* 0: the default */
    uint32_t expert_groups, attention_slices, attention_replicas; /* 0: the rule */
    const char *draft_model; /* NULL: none */
    uint32_t speculate, seed, fixed_rows;
    double temperature;
    bool f32, last, no_sums, no_prefix_cache, late_queue, hidden;
} eval_args_t;

/* How the guesses of a run went; of these by a draft model. */
typedef struct {
    uint64_t guessed, guessed_right, drafted, drafted_right;
} eval_guesses_t;

typedef struct {
    uint32_t n_prompts;
    uint32_t vocab;
    uint32_t n_greedy;
    eval_guesses_t guesses; /* with speculate */
    uint32_t n_hidden_layers; /* layers + 1; 0 when they were not asked for */
    struct {
        uint32_t rows;
        float *logits;
        int32_t *greedy;
        double sum_logprob;
        uint32_t cached;
        float *hidden; /* [n_hidden_layers][rows][hidden] */
        uint64_t n_hidden;
    } prompts[EVAL_PROMPTS_MAX];
} eval_result_t;

/* Fails the test unless the program exits with 0. */
void eval_run(const eval_args_t *args, eval_result_t *out);
/* Runs it for its eval_hash(); its guesses are added to the sum. */
uint64_t eval_run_hash(const eval_args_t *args, eval_guesses_t *sum);
/* The exit code; what it wrote on standard error is in text_out. */
int eval_run_failing(const eval_args_t *args, char *text_out, size_t text_bytes);
void eval_release(eval_result_t *result);
/* Hash over the last row of each prompt and its greedy ids. */
uint64_t eval_hash(const eval_result_t *result);
/* Hash over every row. */
uint64_t eval_hash_rows(const eval_result_t *result);

/* `shoal-worker` of this build; SHOAL_TEST_WORKER overrides it. */
const char *eval_program(void);
/* A file of the recorded references: "gguf-llama-f32/model.gguf". To be freed. */
char *eval_golden(const char *name);
/* Of these one with each kind of cache: plain, with windows and sinks, latent, indexed, compressed. */
enum { EVAL_CACHE_KINDS = 8 };
extern const char *const eval_cache_kinds[EVAL_CACHE_KINDS];
/* The real model: $SHOAL_MODEL or the checkout's cache. NULL when it is not there, or a failure when
 * SHOAL_REQUIRE_MODEL is set, as tests/run does. To be freed. */
char *eval_real_model(void);

/* A tensor of a safetensors file; NULL when absent. To be freed. */
void *eval_read_tensor(const char *path, const char *name, uint64_t *n_out);
/* The first side of its shape; 0 when absent. */
uint64_t eval_tensor_side(const char *path, const char *name);
double eval_max_abs(const float *a, const float *b, uint64_t n);

#endif
