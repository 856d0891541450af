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

static void run_texts(const char *path, uint32_t speculate, drawn_text_t *texts,
                      scheduler_load_t *load)
{
    model_t *model;
    assert_int_equal(model_open(path, &model), STATUS_OK);
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
    assert_int_equal(rank_open(&config, &rank), STATUS_OK);
    rig_run_texts(rank, N_TEXTS, admit, texts, load);
    rank_close(rank);
}

static void compare(const char *model, uint32_t speculate, bool some_wrong)
{
    static drawn_text_t without[N_TEXTS], with[N_TEXTS];
    scheduler_load_t load, load_with;
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
    for (size_t i = 0; i < EVAL_CACHE_KINDS; i++) {
        char *model = eval_golden(eval_cache_kinds[i]);
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

static uint64_t hash_with(eval_args_t args, uint32_t speculate, eval_guesses_t *sum)
{
    args.speculate = speculate;
    return eval_run_hash(&args, sum);
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
        eval_guesses_t sum = {0}, none = {0};
        eval_args_t args = {.model = model,
                            .ids = ids,
                            .greedy = 50,
                            .seed = 5,
                            .temperature = drawn * 0.8,
                            .threads = 1,
                            .last = true,
                            .no_sums = true};
        uint64_t without = hash_with(args, 0, &none);
        assert_true(hash_with(args, 8, &sum) == without);
        args.tp = 2;
        assert_true(hash_with(args, 16, &sum) == without);
        args.tp = 1;
        args.stages = 2;
        assert_true(hash_with(args, 8, &sum) == without);
        uint64_t wrong = sum.guessed - sum.guessed_right;
        print_message("temperature %g: %llu guesses right, %llu wrong\n", args.temperature,
                      (unsigned long long)sum.guessed_right, (unsigned long long)wrong);
        assert_true(sum.guessed_right > 0 && none.guessed == 0);
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
