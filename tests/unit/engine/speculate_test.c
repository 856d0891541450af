/* Guessed tokens on models that compute: the ids, the rows of logits and the log-probabilities are
 * the same bytes with guesses and without, greedy and drawn, for every shape of replica and for
 * every kind of cache. In each case some guesses were right and some wrong, or it would show
 * nothing; of the model that learnt few are wrong, and its cases are looked at together, because how
 * many there are depends on what steps cost here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/model.h"
#include "eval_run.h"
#include "rank_rig.h"

enum { N_TEXTS = 4, N_IDS = 60, N_PROMPT = 40 };

/* ---- one rank in this process: what a client of the leader sees ---- */

typedef struct {
    uint32_t n;
    uint32_t ids[N_IDS];
    sampled_t drawn[N_IDS];
} drawn_text_t;

/* A prompt that says the same thing over and over: a model that learnt goes on with it, more or
 * less. One that did not says anything, and is held to three ids by a bias. */
static void admit(client_t *client, uint32_t number, uint32_t vocab)
{
    static const uint32_t words[] = {504, 3575, 282, 4649, 314, 7042, 30, 198, 1780, 260, 2240};
    static const sampling_bias_t bias[] = {{20, 90}, {30, 90}, {40, 90}};
    uint32_t prompt[N_PROMPT], period = 6 + number;
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = words[i % period % 11] % vocab;
    admission_t admission = {.owner = 1,
                             .prompt = prompt,
                             .n_prompt = N_PROMPT,
                             .sampling = sampling_default,
                             .max_tokens = N_IDS,
                             .logits_from = LOGITS_NONE};
    snprintf(admission.session, sizeof admission.session, "%u", number);
    admission.sampling.temperature = number % 2 ? 0.8f : 0;
    admission.sampling.frequency_penalty = number >= 2 ? 0.5f : 0;
    admission.sampling.bias = bias;
    admission.sampling.n_bias = vocab < 10000 ? 3 : 0;
    admission.sampling.seed = number;
    admission.sampling.want_logprobs = true;
    admission.sampling.n_top = 3;
    leader_admit(client->epoch->leader, client->stream, &admission);
}

static void follow(client_t *client, drawn_text_t *texts)
{
    sequence_output_t out;
    sampled_t drawn[SCHEDULER_OUTPUT_IDS_MAX];
    for (uint32_t n_ended = 0; n_ended < N_TEXTS;) {
        rig_next_output(client, &out, drawn);
        drawn_text_t *text = &texts[strtoul(out.session, NULL, 10)];
        assert_int_equal(out.first_position, text->n);
        for (uint32_t i = 0; i < out.n_ids; i++) {
            assert_int_equal(drawn[i].id, out.ids[i]);
            text->ids[text->n] = out.ids[i];
            text->drawn[text->n++] = drawn[i];
        }
        assert_true(out.end == END_NONE || out.end == END_FINISHED);
        n_ended += out.end != END_NONE;
    }
}

static void run_texts(const char *path, uint32_t speculate, drawn_text_t *texts,
                      scheduler_load_t *load)
{
    model_t *model;
    assert_int_equal(model_open(path, &model), STATUS_OK);
    uint32_t vocab = model_config(model)->vocab;
    rank_config_t config = {.model_path = path,
                            .tp = 1,
                            .stages = 1,
                            .layer_count = model_config(model)->n_layers,
                            .threads = 1,
                            .context_max = 128,
                            .kv_tokens_max = 1024,
                            .speculate_max = speculate};
    model_close(model);
    rank_t *rank;
    epoch_t epoch;
    client_t client;
    assert_int_equal(rank_open(&config, &rank), STATUS_OK);
    epoch_begin(&epoch, rank);
    client_open(&client, &epoch);
    for (uint32_t i = 0; i < N_TEXTS; i++)
        admit(&client, i, vocab);
    follow(&client, texts);
    leader_load(epoch.leader, load);
    client_close(&client);
    epoch_end(&epoch);
    assert_int_equal(epoch.status, STATUS_OK);
    rank_close(rank);
}

static void compare(const char *model, uint32_t speculate, bool some_wrong)
{
    static drawn_text_t without[N_TEXTS], with[N_TEXTS];
    scheduler_load_t load, load_with;
    memset(without, 0, sizeof without);
    memset(with, 0, sizeof with);
    run_texts(model, 0, without, &load);
    run_texts(model, speculate, with, &load_with);
    assert_int_equal(with[N_TEXTS - 1].n, N_IDS);
    assert_memory_equal(without, with, sizeof without);
    print_message("%s: %llu steps, %llu with %llu guesses of which %llu were right\n", model,
                  (unsigned long long)load.steps, (unsigned long long)load_with.steps,
                  (unsigned long long)load_with.drafted_tokens,
                  (unsigned long long)load_with.accepted_tokens);
    assert_int_equal(load.drafted_tokens, 0);
    assert_true(load_with.accepted_tokens > 0);
    assert_true(!some_wrong || load_with.drafted_tokens > load_with.accepted_tokens);
}

static void test_ids_and_log_probabilities_are_those_without_guesses(void **state)
{
    (void)state;
    char *model = eval_real_model();
    if (!model)
        skip();
    compare(model, 8, false);
    free(model);
}

/* Latent, indexed and compressed caches, windows with sinks, experts: what a guess that was wrong
 * left in any of them is never read. */
static void test_every_kind_of_cache_gives_them_too(void **state)
{
    (void)state;
    static const char *const models[] = {
        "gguf-llama-q4_0/model.gguf", "gpt-oss-bf16",     "mistral-swa", "mixtral",
        "deepseek-v2-lite",           "deepseek-v32-dsa", "deepseek-v4", "gemma2"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char *model = eval_golden(models[i]);
        compare(model, 16, true);
        free(model);
    }
}

/* ---- replicas of every shape, in processes of their own ---- */

static json_t *repeating_prompts(uint32_t n, uint32_t vocab)
{
    json_t *prompts = json_array();
    for (uint32_t i = 0; i < n; i++) {
        json_t *ids = json_array();
        for (uint32_t k = 0; k < 30 + 5 * i; k++)
            json_array_append_new(ids, json_integer((k % (7 + i) * 7919 + i * 31 + 11) % vocab));
        json_array_append_new(prompts, ids);
    }
    return prompts;
}

static uint64_t hash_of(eval_args_t args, uint32_t speculate, uint64_t *right, uint64_t *wrong)
{
    eval_result_t result;
    args.speculate = speculate;
    eval_run(&args, &result);
    uint64_t hash = eval_hash(&result);
    *right += result.guessed_right;
    *wrong += result.guessed - result.guessed_right;
    eval_release(&result);
    return hash;
}

static void test_every_shape_of_the_real_model_gives_the_text_without_guesses(void **state)
{
    (void)state;
    char *model = eval_real_model();
    if (!model)
        skip();
    json_t *ids = repeating_prompts(3, 49152);
    uint64_t all_wrong = 0;
    for (int drawn = 0; drawn < 2; drawn++) {
        uint64_t right = 0, wrong = 0, none = 0;
        eval_args_t args = {.model = model,
                            .ids = ids,
                            .greedy = 50,
                            .seed = 5,
                            .temperature = drawn * 0.8,
                            .threads = 1,
                            .last = true,
                            .no_sums = true};
        uint64_t without = hash_of(args, 0, &none, &none);
        assert_true(hash_of(args, 8, &right, &wrong) == without);
        args.tp = 2;
        assert_true(hash_of(args, 16, &right, &wrong) == without);
        args.tp = 1;
        args.stages = 2;
        assert_true(hash_of(args, 8, &right, &wrong) == without);
        print_message("temperature %g: %llu guesses right, %llu wrong\n", args.temperature,
                      (unsigned long long)right, (unsigned long long)wrong);
        assert_true(right > 0 && none == 0);
        all_wrong += wrong;
    }
    assert_true(all_wrong > 0);
    json_decref(ids);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_and_log_probabilities_are_those_without_guesses),
        cmocka_unit_test(test_every_kind_of_cache_gives_them_too),
        cmocka_unit_test(test_every_shape_of_the_real_model_gives_the_text_without_guesses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
