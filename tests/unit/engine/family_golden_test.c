/* Every family against the world: all recorded models, in f32 mode, at every position, after every
 * layer where that was recorded, and their greedy text.
 *
 * Arguments name models; none runs all. With SHOAL_FAMILY_RESULTS=FILE a line of JSON is written
 * for each that is right, and one for each architecture: family_page.py makes docs/models.md of
 * them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/model.h"
#include "recorded.h"

/* Native mode loses no more than what was recorded for its arithmetic, where that was, or for BF16;
 * those that multiply 8-bit activations and have only the BF16 row beside them lose more, each as
 * much as stands here: `over` of the recorded mean, `ids` more positions, and `most` of the recorded
 * maximum. A maximum is one draw of noise, as is the way of a token through experts; where one that
 * goes elsewhere makes any maximum, it is not held (0). Every level computes the same bits, so there
 * is no room for chance. 141 positions are few: noise_test.c has 64 times as many, and rows of 8-bit
 * inputs for those that have none here. */
typedef struct {
    const char *name;
    double over;
    uint32_t ids;
    double most;
} model_row_t;

static const model_row_t models[] = {
    {"llama-gqa-bf16", 1, 0, 1}, {"llama-tied-f32", 1, 0, 1}, {"llama3-rope-sharded", 1, 0, 1},
    {"mistral-swa", 1, 0, 1}, {"gguf-llama-f32", 1, 0, 1}, {"gguf-llama-q8_0", 1, 2, 1.08},
    {"gguf-llama-q4_0", 1, 0, 1}, {"gguf-llama-kquants", 1.02, 1, 1.35},
    {"gguf-llama3-rope-bf16", 1, 0, 1}, {"qwen2-f16", 1, 0, 1}, {"qwen2-yarn", 1, 0, 1},
    {"qwen2-awq-g128", 1.14, 1, 1.07}, {"qwen2-gptq-sym", 1.27, 0, 1.23},
    {"qwen2-gptq-actorder", 1, 0, 1}, {"qwen2-ct-int8", 1, 0, 1},
    {"qwen2-ct-w4a16", 1.33, 2, 1.28}, {"gguf-qwen2-q5_1", 1, 0, 1},
    {"qwen3-qknorm", 1, 0, 1}, {"gguf-qwen3-f16", 1, 0, 1}, {"gemma2", 1, 0, 1},
    {"gemma3-text", 1, 0, 1}, {"mixtral", 1, 0, 0}, {"gguf-mixtral-q4_1", 1, 0, 0},
    {"qwen2-moe", 1, 0, 0}, {"qwen3-moe", 1, 0, 0}, {"gguf-qwen3moe-q8_0", 1, 0, 0},
    {"gpt-oss-bf16", 1, 0, 0}, {"gpt-oss-mxfp4", 1, 0, 0}, {"deepseek-v2-group", 1, 0, 0},
    {"deepseek-v2-lite", 1, 0, 0}, {"gguf-deepseek2-lite-f16", 1, 0, 0}, {"deepseek-v3", 1, 0, 0},
    {"deepseek-v3-fp8", 1, 1, 0}, {"gguf-deepseek2-v3-q8_0", 1.33, 16, 0},
    {"deepseek-v32-dsa", 1, 0, 0}, {"deepseek-v4", 1, 1, 0}, {"deepseek-v4-fp4", 1, 0, 0},
};
enum { N_MODELS = sizeof models / sizeof *models };

static void check_native(const recorded_t *recorded, const model_row_t *row,
                         recorded_noise_t *out)
{
    eval_result_t result;
    eval_args_t args = {.model = recorded->model, .ids = recorded->ids, .threads = 1};
    eval_run(&args, &result);
    recorded_noise_t found = recorded_measure(recorded, &result), bound;
    assert_true(recorded_noise_of(recorded, "act_q8_block32", &bound) ||
                recorded_noise_of(recorded, "act_int8_token", &bound) ||
                recorded_noise_of(recorded, "bf16", &bound));
    print_message("%-26s native mean %.4f, %u other ids, most %.3f; recorded %.4f, %u, %.3f\n",
                  row->name, found.mean, found.mismatches, found.most, bound.mean, bound.mismatches,
                  bound.most);
    assert_true(found.mean <= row->over * bound.mean);
    assert_true(found.mismatches <= bound.mismatches + row->ids);
    assert_true(row->most == 0 || found.most <= row->most * bound.most);
    eval_release(&result);
    *out = found;
}

static void write_result(const recorded_t *recorded, const char *name,
                         const recorded_verdict_t *verdict, const recorded_noise_t *native)
{
    const char *path = getenv("SHOAL_FAMILY_RESULTS");
    if (!path)
        return;
    FILE *file = fopen(path, "a");
    model_t *model;
    assert_non_null(file);
    assert_int_equal(model_open(recorded->model, &model), STATUS_OK);
    fprintf(file,
            "{\"model\":\"%s\",\"architecture\":\"%s\",\"max_abs\":%.3g,\"hidden_max_abs\":%.3g,"
            "\"tolerance\":%.3g,\"native_mean\":%.3g,\"native_mismatches\":%u}\n",
            name, model_config(model)->architecture, verdict->worst, verdict->hidden,
            recorded->tolerance, native->mean, native->mismatches);
    model_close(model);
    fclose(file);
}

static void check_model(void **state)
{
    const model_row_t *row = *state;
    recorded_noise_t native;
    recorded_t recorded;
    eval_result_t result;
    recorded_open(row->name, &recorded);
    eval_args_t args = recorded_args(&recorded, recorded.model);
    eval_run(&args, &result);
    recorded_verdict_t found = recorded_judge(&recorded, &result);
    print_message("%-26s max abs %.2e of %.2e; %u hidden states %.2e; greedy %s\n", row->name,
                  found.worst, recorded.tolerance, found.n_hidden, found.hidden,
                  found.same_text ? "equal" : "DIFFERENT");
    assert_true(found.right);
    eval_release(&result);
    check_native(&recorded, row, &native);
    write_result(&recorded, row->name, &found, &native);
    recorded_close(&recorded);
}

/* The descriptors' own names. */
static void write_architectures(void)
{
    const char *path = getenv("SHOAL_FAMILY_RESULTS");
    if (!path)
        return;
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    const char *rest = model_architectures();
    while (*rest) {
        int n = (int)strcspn(rest, "\n");
        fprintf(file, "{\"descriptor\":\"%.*s\"}\n", n, rest);
        rest += n;
        rest += *rest == '\n';
    }
    fclose(file);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[N_MODELS];
    size_t n = 0;
    write_architectures();
    for (size_t i = 0; i < N_MODELS; i++) {
        if (eval_is_wanted(argc, argv, models[i].name))
            tests[n++] = (struct CMUnitTest){.name = models[i].name,
                                             .test_func = check_model,
                                             .initial_state = (void *)(uintptr_t)&models[i]};
    }
    return n > 0 ? _cmocka_run_group_tests("families", tests, n, NULL, NULL) : 2;
}
