/* See recorded.h. */
#include "recorded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void recorded_open(const char *name, recorded_t *out)
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
    for (size_t i = 0; i < RECORDED_PROMPTS; i++)
        json_array_append(
            out->ids, json_object_get(json_array_get(json_object_get(out->golden, "prompts"), i),
                                      "input_ids"));
    out->tolerance = json_number_value(json_object_get(out->golden, "tolerance_fp32_max_abs"));
    assert_true(out->tolerance > 0 && out->tolerance < 4e-3);
}

void recorded_close(recorded_t *recorded)
{
    free(recorded->model);
    free(recorded->tensors);
    json_decref(recorded->ids);
    json_decref(recorded->golden);
}

eval_args_t recorded_args(const recorded_t *recorded, const char *model)
{
    return (eval_args_t){.model = model,
                         .ids = recorded->ids,
                         .threads = 1,
                         .greedy = RECORDED_GREEDY,
                         .f32 = true,
                         .hidden = true};
}

/* The recorded logits of a prompt, as many as were computed. To be freed. */
static float *wanted_logits(const recorded_t *recorded, const eval_result_t *result, uint32_t i,
                            uint64_t *n_out)
{
    char name[32];
    snprintf(name, sizeof name, "p%u.logits", i);
    float *wanted = eval_read_tensor(recorded->tensors, name, n_out);
    assert_non_null(wanted);
    assert_int_equal(*n_out, (uint64_t)result->prompts[i].rows * result->vocab);
    return wanted;
}

double recorded_worst_logit(const recorded_t *recorded, const eval_result_t *result)
{
    double worst = 0;
    for (uint32_t i = 0; i < RECORDED_PROMPTS; i++) {
        uint64_t n;
        float *wanted = wanted_logits(recorded, result, i, &n);
        double d = eval_max_abs(result->prompts[i].logits, wanted, n);
        worst = d <= worst ? worst : d; /* NaN counts as the largest */
        free(wanted);
    }
    return worst;
}

/* The recorded hidden states: 0 is what layer 0 begins with, k what layer k - 1 leaves. The last
 * one was recorded behind the final norm; the logits cover it. */
static double worst_hidden(const recorded_t *recorded, const eval_result_t *result,
                           uint32_t *n_out)
{
    double worst = 0;
    *n_out = 0;
    for (uint32_t k = 0; k < result->n_hidden_layers - 1; k++) {
        char name[32];
        uint64_t n;
        snprintf(name, sizeof name, "p%d.hidden.%u", RECORDED_HIDDEN_PROMPT, k);
        float *wanted = eval_read_tensor(recorded->tensors, name, &n);
        if (!wanted)
            continue;
        uint64_t layer = result->prompts[RECORDED_HIDDEN_PROMPT].n_hidden / result->n_hidden_layers;
        assert_int_equal(n, layer);
        double d =
            eval_max_abs(result->prompts[RECORDED_HIDDEN_PROMPT].hidden + k * layer, wanted, n);
        worst = d <= worst ? worst : d;
        ++*n_out;
        free(wanted);
    }
    return worst;
}

static bool same_text(const recorded_t *recorded, const eval_result_t *result)
{
    for (uint32_t i = 0; i < RECORDED_PROMPTS; i++) {
        const json_t *prompt = json_array_get(json_object_get(recorded->golden, "prompts"), i);
        const json_t *greedy = json_object_get(prompt, "greedy_ids");
        for (uint32_t k = 0; k < RECORDED_GREEDY; k++)
            if (result->prompts[i].greedy[k] != json_integer_value(json_array_get(greedy, k)))
                return false;
    }
    return true;
}

recorded_verdict_t recorded_judge(const recorded_t *recorded, const eval_result_t *result)
{
    recorded_verdict_t verdict = {.worst = recorded_worst_logit(recorded, result),
                                  .same_text = same_text(recorded, result)};
    verdict.hidden = worst_hidden(recorded, result, &verdict.n_hidden);
    assert_true(verdict.n_hidden > 0);
    verdict.right = verdict.worst <= recorded->tolerance && verdict.hidden <= recorded->tolerance &&
                    verdict.same_text;
    return verdict;
}

/* --- noise --- */

static uint32_t highest(const float *row, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = row[i] > row[best] ? i : best;
    return best;
}

recorded_noise_t recorded_measure(const recorded_t *recorded, const eval_result_t *result)
{
    recorded_noise_t noise = {0};
    double sum = 0;
    uint64_t n_values = 0;
    for (uint32_t i = 0; i < RECORDED_PROMPTS; i++) {
        uint64_t n;
        float *wanted = wanted_logits(recorded, result, i, &n);
        const float *found = result->prompts[i].logits;
        for (uint64_t k = 0; k < n; k++)
            sum += fabs((double)found[k] - (double)wanted[k]);
        noise.most = fmax(noise.most, eval_max_abs(found, wanted, n));
        for (uint64_t k = 0; k < n; k += result->vocab)
            noise.mismatches +=
                highest(found + k, result->vocab) != highest(wanted + k, result->vocab);
        n_values += n;
        free(wanted);
    }
    noise.mean = sum / (double)n_values;
    return noise;
}

bool recorded_noise_of(const recorded_t *recorded, const char *row, recorded_noise_t *out)
{
    const json_t *rows = json_object_get(json_object_get(recorded->golden, "noise"), row);
    out->mean = json_number_value(json_object_get(rows, "mean_abs"));
    out->most = json_number_value(json_object_get(rows, "max_abs"));
    out->mismatches = (uint32_t)json_integer_value(json_object_get(rows, "argmax_mismatch"));
    return out->mean > 0;
}
