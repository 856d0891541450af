/* The tolerances are sharp: each model is run once more with one thing wrong in its configuration,
 * as a wrong reading of it would be (an eps ten times too large, a window or a top-k off by one, no
 * mscale, another rope base), through the code that judges the right ones; and it is judged wrong.
 * The recording says how far transformers itself lands with the same change: so do we, which shows
 * that the change arrived and that nothing else is seen. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "copies.h"
#include "recorded.h"

/* `key` may lead into rope_scaling ("rope_scaling.factor"); value NULL takes it away. */
typedef struct {
    const char *model, *name, *key, *value;
} mutant_t;

static const mutant_t mutants[] = {
    {"llama-gqa-bf16", "eps_x10", "rms_norm_eps", "1e-4"},
    {"llama-gqa-bf16", "rope_theta_wrong", "rope_theta", "11000.0"},
    {"llama-tied-f32", "eps_x10", "rms_norm_eps", "1e-4"},
    {"qwen2-f16", "eps_x10", "rms_norm_eps", "1e-5"},
    {"qwen3-qknorm", "eps", "rms_norm_eps", "1e-4"},
    {"llama3-rope-sharded", "no_scaling", "rope_scaling.factor", "1.0"},
    {"llama3-rope-sharded", "orig_max", "rope_scaling.original_max_position_embeddings", "128"},
    {"mistral-swa", "window+1", "sliding_window", "17"},
    {"mistral-swa", "window-1", "sliding_window", "15"},
    {"mistral-swa", "no_window", "sliding_window", "null"},
    {"gemma2", "window", "sliding_window", "17"},
    {"gemma2", "scalar", "query_pre_attn_scalar", "24"},
    {"gemma2", "no_attncap", "attn_logit_softcapping", "null"},
    {"gemma2", "no_finalcap", "final_logit_softcapping", "null"},
    {"gemma3-text", "window", "sliding_window", "17"},
    {"gpt-oss-bf16", "window", "sliding_window", "17"},
    {"gpt-oss-bf16", "limit", "swiglu_limit", "7.0"},
    {"gpt-oss-bf16", "truncate", "rope_scaling.truncate", "true"},
    {"mixtral", "top1", "num_experts_per_tok", "1"},
    {"mixtral", "top3", "num_experts_per_tok", "3"},
    {"qwen2-moe", "norm", "norm_topk_prob", "true"},
    {"qwen3-moe", "no_norm", "norm_topk_prob", "false"},
    {"qwen2-yarn", "factor", "rope_scaling.factor", "2.0"},
    {"qwen2-yarn", "no_attn_factor", "rope_scaling.attention_factor", "1.0"},
    {"deepseek-v2-group", "greedy", "topk_method", "\"greedy\""},
    {"deepseek-v2-group", "scaling", "routed_scaling_factor", "1.0"},
    {"deepseek-v2-group", "topk_group", "topk_group", "3"},
    {"deepseek-v2-lite", "no_mscale_all_dim", "rope_scaling.mscale_all_dim", NULL},
    {"deepseek-v2-lite", "factor", "rope_scaling.factor", "20.0"},
    {"deepseek-v3", "eps_x10", "rms_norm_eps", "1e-4"},
    {"deepseek-v3", "no_mscale_all_dim", "rope_scaling.mscale_all_dim", NULL},
    {"deepseek-v3", "yarn_factor", "rope_scaling.factor", "20.0"},
    {"deepseek-v3", "scaling_factor", "routed_scaling_factor", "1.0"},
    {"deepseek-v3", "norm_topk_flip", "norm_topk_prob", "false"},
    {"deepseek-v3", "all_groups", "topk_group", "4"},
    {"deepseek-v3", "rope_not_interleaved", "rope_interleave", "false"},
    {"deepseek-v3-fp8", "eps_x10", "rms_norm_eps", "1e-4"},
    {"deepseek-v3-fp8", "no_mscale_all_dim", "rope_scaling.mscale_all_dim", NULL},
    {"deepseek-v3-fp8", "yarn_factor", "rope_scaling.factor", "20.0"},
    {"deepseek-v3-fp8", "scaling_factor", "routed_scaling_factor", "1.0"},
    {"deepseek-v3-fp8", "norm_topk_flip", "norm_topk_prob", "false"},
    {"deepseek-v3-fp8", "all_groups", "topk_group", "2"},
    {"deepseek-v3-fp8", "rope_not_interleaved", "rope_interleave", "false"},
    {"deepseek-v32-dsa", "topk15", "index_topk", "15"},
    {"deepseek-v32-dsa", "topk17", "index_topk", "17"},
    {"deepseek-v32-dsa", "dense", "index_topk", "4096"},
    {"deepseek-v4", "window", "sliding_window", "17"},
    {"deepseek-v4", "sinkhorn", "hc_sinkhorn_iters", "3"},
    {"deepseek-v4", "topk", "index_topk", "5"},
    {"deepseek-v4", "swiglu_limit", "swiglu_limit", "10.0"},
};
enum { N_MUTANTS = sizeof mutants / sizeof *mutants };

static void change(json_t *config, const mutant_t *mutant)
{
    const char *key = mutant->key, *dot = strchr(key, '.');
    if (dot != NULL) {
        assert_int_equal(dot - key, strlen("rope_scaling"));
        config = json_object_get(config, "rope_scaling");
        key = dot + 1;
    }
    if (mutant->value == NULL) {
        assert_int_equal(json_object_del(config, key), 0);
        return;
    }
    json_t *value = json_loads(mutant->value, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    json_t *was = json_object_get(config, key);
    assert_false(was != NULL && json_equal(was, value));
    assert_int_equal(json_object_set_new(config, key, value), 0);
}

static const char *const linked[] = {
    "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
};
enum { N_LINKED = sizeof linked / sizeof *linked };

/* The recorded directory with another config.json. */
static void make_directory(const char *model, const mutant_t *mutant, const char *dir)
{
    char from[512], to[128];
    for (size_t i = 0; i < N_LINKED; i++) {
        snprintf(from, sizeof from, "%s/%s", model, linked[i]);
        snprintf(to, sizeof to, "%s/%s", dir, linked[i]);
        if (access(from, R_OK) == 0)
            assert_int_equal(symlink(from, to), 0);
    }
    snprintf(from, sizeof from, "%s/config.json", model);
    json_t *config = json_load_file(from, 0, NULL);
    assert_non_null(config);
    change(config, mutant);
    snprintf(to, sizeof to, "%s/config.json", dir);
    assert_int_equal(json_dump_file(config, to, 0), 0);
    json_decref(config);
}

static void check_mutant(void **state)
{
    const mutant_t *mutant = *state;
    char dir[] = "/tmp/shoal-mutant-XXXXXX";
    recorded_t recorded;
    eval_result_t result;
    recorded_open(mutant->model, &recorded);
    double wanted = json_number_value(json_object_get(
        json_object_get(recorded.golden, "mutants_max_abs"), mutant->name));
    assert_non_null(mkdtemp(dir));
    make_directory(recorded.model, mutant, dir);
    eval_args_t args = recorded_args(&recorded, dir);
    eval_run(&args, &result);
    recorded_verdict_t found = recorded_judge(&recorded, &result);
    print_message("%-20s %-18s max abs %8.4f, recorded %8.4f; tolerance %.1e; greedy %s\n",
                  mutant->model, mutant->name, found.worst, wanted, recorded.tolerance,
                  found.same_text ? "equal" : "differs");
    assert_false(found.right);
    assert_true(found.worst > recorded.tolerance);
    /* Two results, each within the tolerance of what it stands for. */
    assert_true(wanted > 0 && fabs(found.worst - wanted) <= 2 * recorded.tolerance);
    eval_release(&result);
    copies_remove(dir);
    recorded_close(&recorded);
}

int main(void)
{
    static char names[N_MUTANTS][64];
    struct CMUnitTest tests[N_MUTANTS];
    for (size_t i = 0; i < N_MUTANTS; i++) {
        snprintf(names[i], sizeof names[i], "%s %s is judged wrong", mutants[i].model,
                 mutants[i].name);
        tests[i] = (struct CMUnitTest){.name = names[i],
                                       .test_func = check_mutant,
                                       .initial_state = (void *)(uintptr_t)&mutants[i]};
    }
    return _cmocka_run_group_tests("mutants", tests, N_MUTANTS, NULL, NULL);
}
