/* Every family against the world: all recorded models, in f32 mode, at every position, after every
 * layer where that was recorded, and their greedy text.
 *
 * Arguments name models; none runs all. With SHOAL_FAMILY_RESULTS=FILE a line of JSON is written
 * for each (tests/tools/models_page makes docs/models.md of them). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval_run.h"

enum { N_PROMPTS = 4, N_GREEDY = 32, HIDDEN_PROMPT = 1 };

static const char *const models[] = {
    "llama-gqa-bf16",    "llama-tied-f32",       "llama3-rope-sharded", "mistral-swa",
    "gguf-llama-f32",    "gguf-llama-q8_0",      "gguf-llama-q4_0",     "gguf-llama-kquants",
    "gguf-llama3-rope-bf16", "qwen2-f16",        "qwen2-yarn",          "qwen2-awq-g128",
    "qwen2-gptq-sym",    "qwen2-gptq-actorder",  "qwen2-ct-int8",       "qwen2-ct-w4a16",
    "gguf-qwen2-q5_1",   "qwen3-qknorm",         "gguf-qwen3-f16",      "gemma2",
    "gemma3-text",       "mixtral",              "gguf-mixtral-q4_1",   "qwen2-moe",
    "qwen3-moe",         "gguf-qwen3moe-q8_0",   "gpt-oss-bf16",        "gpt-oss-mxfp4",
    "deepseek-v2-group", "deepseek-v2-lite",     "gguf-deepseek2-lite-f16", "deepseek-v3",
    "deepseek-v3-fp8",   "gguf-deepseek2-v3-q8_0", "deepseek-v32-dsa",
    "deepseek-v4",       "deepseek-v4-fp4",
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

static void write_result(const fixture_t *fixture, const char *name, double worst, double hidden,
                         double tolerance, bool same)
{
    const char *path = getenv("SHOAL_FAMILY_RESULTS");
    if (!path)
        return;
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fprintf(file,
            "{\"model\":\"%s\",\"architecture\":\"%s\",\"max_abs\":%.3g,\"hidden_max_abs\":%.3g,"
            "\"tolerance\":%.3g,\"greedy\":%s}\n",
            name, json_string_value(json_object_get(fixture->golden, "arch")), worst, hidden,
            tolerance, same ? "true" : "false");
    fclose(file);
}

static void check_model(void **state)
{
    const char *name = *state;
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
    write_result(&fixture, name, worst, hidden, tolerance, same);
    assert_true(tolerance > 0 && tolerance < 4e-3);
    assert_true(worst <= tolerance);
    assert_true(n_hidden > 0 && hidden <= tolerance);
    assert_true(same);
    eval_release(&result);
    close_fixture(&fixture);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[N_MODELS];
    size_t n = 0;
    for (size_t i = 0; i < N_MODELS; i++) {
        bool wanted = argc < 2;
        for (int k = 1; k < argc; k++)
            wanted = wanted || strcmp(argv[k], models[i]) == 0;
        if (wanted)
            tests[n++] = (struct CMUnitTest){.name = models[i],
                                             .test_func = check_model,
                                             .initial_state = (void *)(uintptr_t)models[i]};
    }
    return n > 0 ? _cmocka_run_group_tests("families", tests, n, NULL, NULL) : 2;
}
