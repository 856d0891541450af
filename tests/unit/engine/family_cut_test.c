/* One text however slices share a stage: the bytes of every logit and the greedy ids of each
 * recorded model with experts are the same on 2, 3 and 4 slices in every placement of experts
 * (inside them, whole ones, both), with attention on any number of slices and the sequences divided
 * among any number of replicas of it, in both activation modes. Dense models too, whose attention
 * alone can be placed.
 *
 * Arguments name models, or kept; none runs all. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval_run.h"

enum { N_PROMPTS = 4 };

typedef struct {
    const char *name;
    uint32_t vocab;
    bool experts;
} model_case_t;

static const model_case_t models[] = {
    {"mixtral", 320, true},          {"qwen2-moe", 320, true},
    {"qwen3-moe", 352, true},        {"gguf-qwen3moe-q8_0/model.gguf", 320, true},
    {"gpt-oss-bf16", 320, true},     {"gpt-oss-mxfp4", 320, true},
    {"deepseek-v2-lite", 320, true}, {"deepseek-v2-group", 320, true},
    {"deepseek-v3", 320, true},      {"deepseek-v32-dsa", 320, true},
    {"deepseek-v4", 320, true},      {"llama-gqa-bf16", 320, false},
    {"gemma3-text", 320, false},
};
enum { N_MODELS = sizeof models / sizeof *models };

/* Every placement of experts on 2, 3 and 4 slices, every number of slices with attention, and every
 * number of replicas of it: with slices inside each, alone, and with slices without any behind. */
static const struct {
    uint32_t tp, groups, holders, replicas, stages;
    bool small_parts;
} cuts[] = {
    {2, 1, 1, 1, 1, false}, {2, 2, 2, 2, 1, false}, {3, 1, 3, 1, 1, true}, {3, 3, 2, 2, 2, false},
    {3, 3, 3, 3, 1, true},  {3, 3, 1, 1, 1, false}, {4, 1, 3, 1, 1, true}, {4, 2, 4, 2, 1, true},
    {4, 2, 2, 2, 2, false}, {4, 4, 1, 1, 1, false}, {4, 1, 4, 4, 1, false},
};
enum { N_CUTS = sizeof cuts / sizeof *cuts };

static json_t *make_prompts(uint32_t vocab)
{
    static const uint32_t lengths[N_PROMPTS] = {1, 19, 40, 66};
    json_t *prompts = json_array();
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        json_t *ids = json_array();
        for (uint32_t k = 0; k < lengths[i]; k++)
            json_array_append_new(ids, json_integer((k * 7919 + i * 104729 + 11) % vocab));
        json_array_append_new(prompts, ids);
    }
    return prompts;
}

typedef struct {
    uint64_t rows, ends;
} hashes_t;

static hashes_t run(const eval_args_t *args)
{
    eval_result_t result;
    eval_run(args, &result);
    hashes_t found = {eval_hash_rows(&result), eval_hash(&result)};
    assert_int_equal(result.n_prompts, N_PROMPTS);
    for (uint32_t i = 0; i < N_PROMPTS; i++) /* equal numbers have to be numbers */
        assert_true(result.prompts[i].logits[0] == result.prompts[i].logits[0]);
    eval_release(&result);
    return found;
}

static void check_model(void **state)
{
    const model_case_t *wanted = *state;
    char *path = eval_golden(wanted->name);
    json_t *ids = make_prompts(wanted->vocab);
    for (int f32 = 0; f32 < 2; f32++) {
        eval_args_t args = {.model = path, .ids = ids, .threads = 1, .batch = 3, .chunk = 32,
                            .greedy = 5, .f32 = f32 != 0};
        hashes_t whole = run(&args);
        for (uint32_t i = 0; i < N_CUTS; i++) {
            args.tp = cuts[i].tp;
            args.stages = cuts[i].stages;
            args.expert_groups = wanted->experts ? cuts[i].groups : 0;
            args.attention_slices = cuts[i].holders;
            args.attention_replicas = cuts[i].replicas;
            args.failpoints = cuts[i].small_parts ? "stage.small_parts=error@*" : NULL;
            hashes_t found = run(&args);
            if (found.rows != whole.rows || found.ends != whole.ends)
                fail_msg("%s %s differs on %u slices in %u groups with attention on %u, %u of it",
                         wanted->name, f32 ? "f32" : "native", cuts[i].tp, args.expert_groups,
                         cuts[i].holders, cuts[i].replicas);
        }
    }
    json_decref(ids);
    free(path);
}

/* Files of packed weights under `dir`. */
static uint32_t count_kept(const char *dir)
{
    char path[64];
    uint32_t n = 0;
    snprintf(path, sizeof path, "%s/packed", dir);
    DIR *list = opendir(path);
    assert_non_null(list);
    for (const struct dirent *entry; (entry = readdir(list));)
        n += entry->d_name[0] != '.';
    closedir(list);
    return n;
}

/* What is kept of a slice in one cut is not what the same slice holds in another. */
static void check_kept(void **state)
{
    (void)state;
    static const uint32_t groups[] = {1, 3, 1, 3}, files[] = {3, 6, 6, 6};
    char dir[] = "/tmp/shoal-cut-XXXXXX", remove_all[64];
    assert_non_null(mkdtemp(dir));
    char *path = eval_golden("mixtral");
    json_t *ids = make_prompts(320);
    eval_args_t args = {.model = path, .ids = ids, .threads = 1};
    hashes_t whole = run(&args);
    args.pack_cache = dir;
    args.tp = 3;
    for (uint32_t i = 0; i < 4; i++) {
        args.expert_groups = groups[i];
        assert_true(run(&args).rows == whole.rows);
        assert_int_equal(count_kept(dir), files[i]);
    }
    snprintf(remove_all, sizeof remove_all, "rm -rf %s", dir);
    assert_int_equal(system(remove_all), 0);
    json_decref(ids);
    free(path);
}

static void check_refusals(void **state)
{
    (void)state;
    char text[1024];
    char *path = eval_golden("mixtral"), *dense = eval_golden("llama-gqa-bf16");
    json_t *ids = make_prompts(320);
    eval_args_t args = {.model = path, .ids = ids, .tp = 4, .expert_groups = 3};
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "a divisor of 4 would be right"));
    args.expert_groups = 2;
    args.attention_slices = 5;
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "attention on 5 of 4 slices"));
    args.attention_slices = 3;
    args.attention_replicas = 2;
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "2 replicas of attention on 3 slices; a divisor of 3"));
    args = (eval_args_t){.model = dense, .ids = ids, .tp = 2, .expert_groups = 2};
    assert_int_not_equal(eval_run_failing(&args, text, sizeof text), 0);
    assert_non_null(strstr(text, "the model has no experts"));
    json_decref(ids);
    free(path);
    free(dense);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[N_MODELS + 2];
    size_t n = 0;
    for (size_t i = 0; i < N_MODELS + 2; i++) {
        const char *name = i < N_MODELS ? models[i].name : i == N_MODELS ? "kept" : "refusals";
        bool wanted = argc < 2;
        for (int k = 1; k < argc; k++)
            wanted = wanted || strcmp(argv[k], name) == 0;
        if (wanted)
            tests[n++] = (struct CMUnitTest){
                .name = name,
                .test_func = i < N_MODELS    ? check_model
                             : i == N_MODELS ? check_kept
                                             : check_refusals,
                .initial_state = i < N_MODELS ? (void *)(uintptr_t)&models[i] : NULL};
    }
    return n > 0 ? _cmocka_run_group_tests("family_cut", tests, n, NULL, NULL) : 2;
}
