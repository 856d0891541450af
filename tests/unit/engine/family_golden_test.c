/* Every family against the world: all recorded models, in f32 mode, at every position, after every
 * layer where that was recorded, and their greedy text.
 *
 * Arguments name models; none runs all. With SHOAL_FAMILY_RESULTS=FILE a line of JSON is written
 * for each that is right, and one for each architecture: family_page.py makes docs/models.md of
 * them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/model/model.h"
#include "eval_run.h"

enum { N_PROMPTS = 4, N_GREEDY = 32, HIDDEN_PROMPT = 1 };

/* `integers`: native mode multiplies weights of this file by 8-bit activations. */
typedef struct {
    const char *name;
    bool integers;
} model_row_t;

static const model_row_t models[] = {
    {"llama-gqa-bf16", false}, {"llama-tied-f32", false}, {"llama3-rope-sharded", false},
    {"mistral-swa", false}, {"gguf-llama-f32", false}, {"gguf-llama-q8_0", true},
    {"gguf-llama-q4_0", true}, {"gguf-llama-kquants", true}, {"gguf-llama3-rope-bf16", false},
    {"qwen2-f16", false}, {"qwen2-yarn", false}, {"qwen2-awq-g128", true},
    {"qwen2-gptq-sym", true}, {"qwen2-gptq-actorder", false}, {"qwen2-ct-int8", true},
    {"qwen2-ct-w4a16", true}, {"gguf-qwen2-q5_1", true}, {"qwen3-qknorm", false},
    {"gguf-qwen3-f16", false}, {"gemma2", false}, {"gemma3-text", false}, {"mixtral", false},
    {"gguf-mixtral-q4_1", true}, {"qwen2-moe", false}, {"qwen3-moe", false},
    {"gguf-qwen3moe-q8_0", true}, {"gpt-oss-bf16", false}, {"gpt-oss-mxfp4", true},
    {"deepseek-v2-group", false}, {"deepseek-v2-lite", false}, {"gguf-deepseek2-lite-f16", false},
    {"deepseek-v3", false}, {"deepseek-v3-fp8", false}, {"gguf-deepseek2-v3-q8_0", true},
    {"deepseek-v32-dsa", false}, {"deepseek-v4", false}, {"deepseek-v4-fp4", true},
};
enum { N_MODELS = sizeof models / sizeof *models };

typedef struct {
    char *model, *tensors;
    json_t *golden, *ids;
} fixture_t;

static void open_fixture(const char *name, fixture_t *out)
{
    char path[128];
    snprintf(path, sizeof path, "%s/golden.json", name);
    char *json = eval_golden(path);
    out->golden = json_load_file(json, 0, NULL);
    free(json);
    assert_non_null(out->golden);
    snprintf(path, sizeof path, "%s/model.gguf", name);
    out->model = eval_golden(path);
    if (access(out->model, R_OK) != 0) {
        free(out->model);
        out->model = eval_golden(name);
    }
    snprintf(path, sizeof path, "%s/golden.safetensors", name);
    out->tensors = eval_golden(path);
    out->ids = json_array();
    for (size_t i = 0; i < N_PROMPTS; i++)
        json_array_append(
            out->ids, json_object_get(json_array_get(json_object_get(out->golden, "prompts"), i),
                                      "input_ids"));
}

static void close_fixture(fixture_t *fixture)
{
    free(fixture->model);
    free(fixture->tensors);
    json_decref(fixture->ids);
    json_decref(fixture->golden);
}

static double worst_logit(const fixture_t *fixture, const eval_result_t *result)
{
    double worst = 0;
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        char name[32];
        uint64_t n;
        snprintf(name, sizeof name, "p%u.logits", i);
        float *wanted = eval_read_tensor(fixture->tensors, name, &n);
        assert_non_null(wanted);
        assert_int_equal(n, (uint64_t)result->prompts[i].rows * result->vocab);
        double d = eval_max_abs(result->prompts[i].logits, wanted, n);
        worst = d > worst ? d : worst;
        free(wanted);
    }
    return worst;
}

/* The recorded hidden states: 0 is what layer 0 begins with, k what layer k - 1 leaves. The last one
 * was recorded behind the final norm; the logits cover it. */
static double worst_hidden(const fixture_t *fixture, const eval_result_t *result, uint32_t *n_out)
{
    double worst = 0;
    *n_out = 0;
    for (uint32_t k = 0; k < result->n_hidden_layers - 1; k++) {
        char name[32];
        uint64_t n;
        snprintf(name, sizeof name, "p%d.hidden.%u", HIDDEN_PROMPT, k);
        float *wanted = eval_read_tensor(fixture->tensors, name, &n);
        if (!wanted)
            continue;
        uint64_t layer = result->prompts[HIDDEN_PROMPT].n_hidden / result->n_hidden_layers;
        assert_int_equal(n, layer);
        double d = eval_max_abs(result->prompts[HIDDEN_PROMPT].hidden + k * layer, wanted, n);
        worst = d > worst ? d : worst;
        ++*n_out;
        free(wanted);
    }
    return worst;
}

static bool same_text(const fixture_t *fixture, const eval_result_t *result)
{
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        const json_t *prompt = json_array_get(json_object_get(fixture->golden, "prompts"), i);
        const json_t *greedy = json_object_get(prompt, "greedy_ids");
        for (uint32_t k = 0; k < N_GREEDY; k++)
            if (result->prompts[i].greedy[k] != json_integer_value(json_array_get(greedy, k)))
                return false;
    }
    return true;
}

/* Native mode is measured against what the same model loses by the recorded arithmetic: means and
 * mismatches, because with experts one token that goes elsewhere makes any maximum. */
typedef struct {
    double mean;
    uint32_t mismatches;
} noise_t;

static uint32_t highest(const float *row, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = row[i] > row[best] ? i : best;
    return best;
}

static noise_t measure(const fixture_t *fixture, const eval_result_t *result)
{
    noise_t noise = {0};
    double sum = 0;
    uint64_t n_values = 0;
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        char name[32];
        uint64_t n;
        snprintf(name, sizeof name, "p%u.logits", i);
        float *wanted = eval_read_tensor(fixture->tensors, name, &n);
        const float *found = result->prompts[i].logits;
        assert_non_null(wanted);
        assert_int_equal(n, (uint64_t)result->prompts[i].rows * result->vocab);
        for (uint64_t k = 0; k < n; k++)
            sum += fabs((double)found[k] - (double)wanted[k]);
        for (uint64_t k = 0; k < n; k += result->vocab)
            noise.mismatches +=
                highest(found + k, result->vocab) != highest(wanted + k, result->vocab);
        n_values += n;
        free(wanted);
    }
    noise.mean = sum / (double)n_values;
    return noise;
}

/* Rounding to BF16 alone loses no more than the whole computation in BF16 did. 8-bit activations
 * lose about as much; where their own loss was recorded, that is the bound. */
static void check_native(const fixture_t *fixture, const model_row_t *row, noise_t *out)
{
    eval_result_t result;
    eval_args_t args = {.model = fixture->model, .ids = fixture->ids, .threads = 1};
    eval_run(&args, &result);
    noise_t found = measure(fixture, &result);
    const json_t *rows = json_object_get(fixture->golden, "noise");
    const json_t *own = json_object_get(rows, "act_q8_block32");
    const json_t *recorded = own ? own : json_object_get(rows, "bf16");
    double mean = json_number_value(json_object_get(recorded, "mean_abs"));
    json_int_t mismatches = json_integer_value(json_object_get(recorded, "argmax_mismatch"));
    double factor = own ? 1.15 : row->integers ? 1.6 : 1;
    json_int_t more = row->integers ? 3 + mismatches / 2 : 2;
    print_message("%-26s native mean %.4f, %u other ids; recorded %.4f, %d\n", row->name,
                  found.mean, found.mismatches, mean, (int)mismatches);
    assert_true(mean > 0);
    assert_true(found.mean <= factor * mean);
    assert_true((json_int_t)found.mismatches <= mismatches + more);
    eval_release(&result);
    *out = found;
}

static void write_result(const fixture_t *fixture, const char *name, double worst, double hidden,
                         double tolerance, const noise_t *native)
{
    const char *path = getenv("SHOAL_FAMILY_RESULTS");
    if (!path)
        return;
    FILE *file = fopen(path, "a");
    model_t *model;
    assert_non_null(file);
    assert_int_equal(model_open(fixture->model, &model), STATUS_OK);
    fprintf(file,
            "{\"model\":\"%s\",\"architecture\":\"%s\",\"max_abs\":%.3g,\"hidden_max_abs\":%.3g,"
            "\"tolerance\":%.3g,\"native_mean\":%.3g,\"native_mismatches\":%u}\n",
            name, model_config(model)->architecture, worst, hidden, tolerance, native->mean,
            native->mismatches);
    model_close(model);
    fclose(file);
}

static void check_model(void **state)
{
    const model_row_t *row = *state;
    const char *name = row->name;
    noise_t native;
    fixture_t fixture;
    eval_result_t result;
    uint32_t n_hidden;
    open_fixture(name, &fixture);
    eval_args_t args = {.model = fixture.model,
                        .ids = fixture.ids,
                        .threads = 1,
                        .greedy = N_GREEDY,
                        .f32 = true,
                        .hidden = true};
    eval_run(&args, &result);
    double tolerance = json_number_value(json_object_get(fixture.golden, "tolerance_fp32_max_abs"));
    double worst = worst_logit(&fixture, &result);
    double hidden = worst_hidden(&fixture, &result, &n_hidden);
    bool same = same_text(&fixture, &result);
    print_message("%-26s max abs %.2e of %.2e; %u hidden states %.2e; greedy %s\n", name, worst,
                  tolerance, n_hidden, hidden, same ? "equal" : "DIFFERENT");
    assert_true(tolerance > 0 && tolerance < 4e-3);
    assert_true(worst <= tolerance);
    assert_true(n_hidden > 0 && hidden <= tolerance);
    assert_true(same);
    eval_release(&result);
    check_native(&fixture, row, &native);
    write_result(&fixture, name, worst, hidden, tolerance, &native);
    close_fixture(&fixture);
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
        bool wanted = argc < 2;
        for (int k = 1; k < argc; k++)
            wanted = wanted || strcmp(argv[k], models[i].name) == 0;
        if (wanted)
            tests[n++] = (struct CMUnitTest){.name = models[i].name,
                                             .test_func = check_model,
                                             .initial_state = (void *)(uintptr_t)&models[i]};
    }
    return n > 0 ? _cmocka_run_group_tests("families", tests, n, NULL, NULL) : 2;
}
