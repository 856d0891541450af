/* Preemption in the real engine: where blocks are short, the youngest sequence gives its up and
 * comes back later, and every text is the one that it has with room for all. One model for each
 * layout of the cache: keys and values, also as codes, windows, latent, latent with an indexer's
 * keys, compressed entries with what is kept of their open windows. And a model whose every layer
 * has a window in less room than one of its sequences is long. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/model.h"
#include "common/model/plan.h"
#include "rank_rig.h"
#include "worker/engine/kv.h"

enum { N_SEQUENCES = 5, N_ROWS = 24 };

typedef struct {
    uint32_t n_prompt, n_ids, context;
} shape_t;

static const shape_t SHORT = {40, 56, 112}, LONG = {200, 240, 448};

static const char *const models[] = {
    "llama-gqa-bf16", "gemma3-text", "gpt-oss-bf16", "deepseek-v3", "deepseek-v32-dsa",
    "deepseek-v4",  "gpt-oss-bf16 int8", "gemma2 fp8",
};
enum { N_MODELS = sizeof models / sizeof *models };

static uint32_t layers_of(const char *path)
{
    return strstr(path, "gemma3") || strstr(path, "deepseek-v3/") ||
           strstr(path, "deepseek-v4/") ? 4 : 3;
}

static rank_config_t config_of(const char *path, const char *kv, const shape_t *shape,
                               uint64_t kv_tokens)
{
    return (rank_config_t){.model_path = path,
                           .kv = kv,
                           .tp = 1,
                           .stages = 1,
                           .layer_count = layers_of(path),
                           .threads = 1,
                           .context_max = shape->context,
                           .kv_tokens_max = kv_tokens,
                           .prefill_tokens_max = N_ROWS,
                           .batch_max = N_SEQUENCES};
}

/* All sequences at once on a rank with that many tokens of cache; how often one was preempted, and how
 * many stood in one step. */
static scheduler_load_t run_all(const char *path, const char *kv, const shape_t *shape, uint64_t kv_tokens,
                        text_t texts[N_SEQUENCES])
{
    rank_config_t config = config_of(path, kv, shape, kv_tokens);
    static uint32_t prompts[N_SEQUENCES][RIG_PROMPT_MAX];
    rank_t *rank;
    epoch_t epoch;
    client_t client;
    scheduler_load_t load;
    sequence_output_t out;
    sampled_t drawn[SCHEDULER_OUTPUT_IDS_MAX];
    if (rank_open(&config, &rank) != STATUS_OK)
        fail_msg("%s", status_text());
    assert_int_equal(rank_kv_tokens(rank), kv_tokens); /* all that it was given, and no more */
    epoch_begin(&epoch, rank);
    client_open(&client, &epoch);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        admission_t admission;
        char session[8];
        snprintf(session, sizeof session, "%u", i);
        rig_request(&admission, session, i + 1, shape->n_prompt, shape->n_ids, prompts[i]);
        leader_admit(epoch.leader, client.stream, &admission);
    }
    for (uint32_t n_ended = 0; n_ended < N_SEQUENCES;) {
        rig_next_output(&client, &out, drawn);
        uint32_t i = (uint32_t)strtoul(out.session, NULL, 10);
        assert_true(i < N_SEQUENCES && texts[i].end == END_NONE);
        rig_collect(&out, &texts[i]);
        n_ended += out.end != END_NONE;
    }
    leader_load(epoch.leader, &load);
    client_close(&client);
    epoch_end(&epoch);
    assert_int_equal(epoch.status, STATUS_OK);
    rank_close(rank);
    return load;
}

/* So many tokens as the planner counts into some bytes are there when a rank has those. */
static void check_bytes(const char *path, const char *kv, uint32_t n_layers)
{
    const uint64_t wanted = 20 * KV_BLOCK_TOKENS;
    plan_shape_t shape = {.tp = 1, .stages = 1, .context_max = SHORT.context,
                          .kv_codes = kv != NULL};
    plan_need_t need;
    static plan_sizes_t sizes;
    model_t *model;
    rank_t *rank;
    assert_int_equal(model_open(path, &model), STATUS_OK);
    plan_sizes(model, &sizes);
    assert_int_equal(plan_need(&sizes, &shape, 0, 0, &need), STATUS_OK);
    model_close(model);
    rank_config_t config = {.model_path = path,
                            .kv = kv,
                            .tp = 1,
                            .stages = 1,
                            .layer_count = n_layers,
                            .threads = 1,
                            .context_max = SHORT.context,
                            .kv_bytes_max = wanted * need.kv_per_token};
    assert_int_equal(rank_open(&config, &rank), STATUS_OK);
    print_message("%s: %llu KV tokens\n", path, (unsigned long long)rank_kv_tokens(rank));
    assert_int_equal(rank_kv_tokens(rank), wanted);
    rank_close(rank);
}

static void check_model(void **state)
{
    static text_t roomy[N_SEQUENCES], narrow[N_SEQUENCES];
    char path[512];
    const char *name = *state, *kv = strchr(name, ' ');
    int n_name = kv ? (int)(kv++ - name) : (int)strlen(name);
    snprintf(path, sizeof path, "%s/%.*s/", SHOAL_TEST_DATA, n_name, name);
    memset(roomy, 0, sizeof roomy);
    memset(narrow, 0, sizeof narrow);
    check_bytes(path, kv, layers_of(path));
    uint64_t room = (uint64_t)N_SEQUENCES * SHORT.context * 2;
    assert_int_equal(run_all(path, kv, &SHORT, room, roomy).preemptions, 0);
    uint64_t preemptions = run_all(path, kv, &SHORT, SHORT.context, narrow).preemptions;
    print_message("%s: %u preemptions\n", (const char *)*state, (unsigned)preemptions);
    assert_true(preemptions >= 1);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        assert_int_equal(roomy[i].n, SHORT.n_ids);
        assert_int_equal(roomy[i].end, END_FINISHED);
        assert_memory_equal(&roomy[i], &narrow[i], sizeof roomy[i]);
    }
    assert_memory_not_equal(roomy[0].ids, roomy[1].ids, sizeof roomy[0].ids);
}

/* KV tokens that one sequence holds at most at once. A rank with a block less is refused. */
static uint64_t held_by_one(const char *path, const shape_t *shape)
{
    model_t *model;
    rank_t *rank;
    assert_int_equal(model_open(path, &model), STATUS_OK);
    uint32_t window = plan_kv_window(model_config(model));
    model_close(model);
    uint64_t held = plan_kv_tokens_held(window, N_ROWS, shape->context);
    assert_in_range(held, window + N_ROWS, shape->context / 2);
    rank_config_t config = config_of(path, NULL, shape, held - KV_BLOCK_TOKENS);
    assert_int_equal(rank_open(&config, &rank), STATUS_REFUSED);
    return held;
}

/* With room for all no block is ever taken twice, so what was given back is still what it was; with
 * room for two windows it holds other rows long before a sequence has passed its window 20 times. And
 * with a block more than one sequence holds they run one after the other. */
static void check_window(void **state)
{
    (void)state;
    static text_t roomy[N_SEQUENCES], narrow[N_SEQUENCES], least[N_SEQUENCES];
    char path[512];
    snprintf(path, sizeof path, "%s/mistral-swa/", SHOAL_TEST_DATA);
    uint64_t held = held_by_one(path, &LONG), room = (uint64_t)N_SEQUENCES * LONG.context * 2;
    scheduler_load_t in_room = run_all(path, NULL, &LONG, room, roomy);
    scheduler_load_t in_narrow = run_all(path, NULL, &LONG, 320, narrow);
    scheduler_load_t in_least = run_all(path, NULL, &LONG, held + KV_BLOCK_TOKENS, least);
    print_message("mistral-swa in 320 tokens: %u together, %u preemptions\n",
                  (unsigned)in_narrow.sequences_max_in_step, (unsigned)in_narrow.preemptions);
    assert_int_equal(in_room.sequences_max_in_step, N_SEQUENCES);
    assert_in_range(in_narrow.sequences_max_in_step, 2, N_SEQUENCES - 1);
    assert_int_equal(in_least.sequences_max_in_step, 1);
    assert_int_equal(in_room.preemptions + in_least.preemptions, 0);
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        assert_int_equal(roomy[i].n, LONG.n_ids);
        assert_int_equal(roomy[i].end, END_FINISHED);
        assert_memory_equal(&roomy[i], &narrow[i], sizeof roomy[i]);
        assert_memory_equal(&roomy[i], &least[i], sizeof roomy[i]);
    }
    assert_memory_not_equal(roomy[0].ids, roomy[1].ids, sizeof roomy[0].ids);
}

int main(void)
{
    struct CMUnitTest tests[N_MODELS + 1];
    tests[N_MODELS] = (struct CMUnitTest){.name = "long behind a window",
                                          .test_func = check_window};
    for (size_t i = 0; i < N_MODELS; i++)
        tests[i] = (struct CMUnitTest){.name = models[i],
                                       .test_func = check_model,
                                       .initial_state = (void *)(uintptr_t)models[i]};
    return _cmocka_run_group_tests("texts after preemption", tests, N_MODELS + 1, NULL,
                                   NULL);
}
