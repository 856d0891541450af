/* Guesses of a draft model on models that compute: the text is the same bytes with one and without,
 * greedy and drawn, for every shape of replica, with preemption, and whether it is always right, often
 * or never. (That one which is never right is left alone, draft_cost_test shows.) A model that drafts
 * for itself is always right, because both compute the same numbers: that every guess is kept shows
 * that its own cache is never behind. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/model/model.h"
#include "eval_run.h"
#include "rank_rig.h"
#include "worker/engine/draft_model.h"

enum { N_TEXTS_MAX = 8, N_IDS = 60, N_PROMPT = 40 };
/* Guesses seem to pay whatever steps cost here. */
enum { FIXED_ROWS = 64 };

typedef struct {
    const char *model, *draft;
    uint32_t n_texts, kv_tokens;
    bool f32;
} case_t;

/* Ids that do not repeat themselves, so that nothing is looked up. */
static void admit(client_t *client, uint32_t number, uint32_t vocab)
{
    uint32_t prompt[N_PROMPT];
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (i * i * 37 + i * 101 + number * 977 + 5) % vocab;
    admission_t admission = {.owner = 1,
                             .prompt = prompt,
                             .n_prompt = N_PROMPT - number,
                             .sampling = sampling_default,
                             .max_tokens = N_IDS,
                             .logits_from = LOGITS_NONE};
    snprintf(admission.session, sizeof admission.session, "%u", number);
    admission.sampling.temperature = number % 2 ? 0.8f : 0;
    admission.sampling.top_p = number % 4 == 3 ? 0.9f : 1;
    admission.sampling.seed = number;
    admission.sampling.want_logprobs = true;
    admission.sampling.n_top = 3;
    leader_admit(client->epoch->leader, client->stream, &admission);
}

static rank_t *open_one(const case_t *c, bool with_draft)
{
    model_t *model;
    rank_t *rank;
    assert_int_equal(model_open(c->model, &model), STATUS_OK);
    rank_config_t config = {.model_path = c->model,
                            .tp = 1,
                            .stages = 1,
                            .layer_count = model_config(model)->n_layers,
                            .threads = 1,
                            .activations_f32 = c->f32,
                            .context_max = 128,
                            .kv_tokens_max = c->kv_tokens,
                            .speculate_max = with_draft ? 8 : 0,
                            .draft_path = with_draft ? c->draft : NULL,
                            .fixed_rows = FIXED_ROWS};
    model_close(model);
    if (rank_open(&config, &rank) != STATUS_OK)
        fail_msg("%s", status_text());
    return rank;
}

static void compare(const case_t *c, scheduler_load_t *load)
{
    static drawn_text_t without[N_TEXTS_MAX], with[N_TEXTS_MAX];
    scheduler_load_t load_without;
    rank_t *rank = open_one(c, false);
    rig_run_texts(rank, c->n_texts, admit, without, &load_without);
    rank_close(rank);
    rank = open_one(c, true);
    /* A second epoch finds the draft model with nothing of the first. */
    for (int epoch = 0; epoch < 2; epoch++) {
        rig_run_texts(rank, c->n_texts, admit, with, load);
        assert_memory_equal(without, with, c->n_texts * sizeof *without);
    }
    rank_close(rank);
    assert_int_equal(with[0].n, N_IDS);
    print_message("%u texts: %llu steps, %llu with %llu guesses of the draft model, %llu right; "
                  "%llu preemptions\n",
                  c->n_texts, (unsigned long long)load_without.steps,
                  (unsigned long long)load->steps, (unsigned long long)load->model_drafted_tokens,
                  (unsigned long long)load->model_accepted_tokens,
                  (unsigned long long)load->preemptions);
}

static void test_a_model_that_drafts_for_itself_is_always_right(void **state)
{
    (void)state;
    char *model = eval_real_model();
    if (!model)
        skip();
    for (uint32_t n = 1; n <= 8; n *= 8) {
        scheduler_load_t load;
        case_t c = {.model = model, .draft = model, .n_texts = n, .kv_tokens = 2048};
        compare(&c, &load);
        assert_int_equal(load.model_drafted_tokens, load.model_accepted_tokens);
        assert_true(load.model_accepted_tokens > 15 * n);
    }
    free(model);
}

/* Exact activations of the model, 8-bit ones of the draft: right often, and wrong now and then. */
static void test_other_numbers_of_the_same_model_are_right_often(void **state)
{
    (void)state;
    char *model = eval_real_model();
    if (!model)
        skip();
    scheduler_load_t load;
    case_t c = {.model = model, .draft = model, .n_texts = 4, .kv_tokens = 1024, .f32 = true};
    compare(&c, &load);
    assert_true(load.model_drafted_tokens > load.model_accepted_tokens);
    assert_true(load.model_accepted_tokens * 4 > load.model_drafted_tokens);
    free(model);
}

static void test_texts_that_are_preempted_are_the_same(void **state)
{
    (void)state;
    char *model = eval_real_model();
    if (!model)
        skip();
    scheduler_load_t load;
    case_t c = {.model = model, .draft = model, .n_texts = 8, .kv_tokens = 320};
    compare(&c, &load);
    assert_true(load.preemptions > 0 && load.model_accepted_tokens > 50);
    free(model);
}

/* Models that learnt nothing: another one of them is wrong all the time. */
static void test_a_draft_model_that_is_wrong_changes_no_byte(void **state)
{
    (void)state;
    char *model = eval_golden("gguf-llama-f32/model.gguf");
    char *draft = eval_golden("gguf-llama-kquants/model.gguf");
    scheduler_load_t load;
    case_t c = {.model = model, .draft = draft, .n_texts = 4, .kv_tokens = 1024};
    compare(&c, &load);
    assert_true(load.model_accepted_tokens * 2 < load.model_drafted_tokens);
    free(model);
    free(draft);
}

/* Windows, latent, indexed and compressed caches of a draft model: what a guess that was not kept left
 * there is never read. */
static void test_every_kind_of_cache_can_draft(void **state)
{
    (void)state;
    for (size_t i = 0; i < EVAL_CACHE_KINDS; i++) {
        char *model = eval_golden(eval_cache_kinds[i]);
        scheduler_load_t load;
        case_t c = {.model = model, .draft = model, .n_texts = 2, .kv_tokens = 1024};
        compare(&c, &load);
        assert_int_equal(load.model_drafted_tokens, load.model_accepted_tokens);
        assert_true(load.model_accepted_tokens > 20);
        c.f32 = true; /* of the model alone: then some are wrong */
        compare(&c, &load);
        free(model);
    }
}

/* ---- the draft model by itself ---- */

static draft_answer_t ask(draft_model_t *draft, uint64_t serial, const uint32_t *ids, uint32_t n,
                          uint32_t rows_max)
{
    const draft_answers_t *answers;
    draft_ask_t one = {.serial = serial, .ids = ids, .n_ids = n, .n_wanted = 6,
                       .rows_max = rows_max, .sampling = &sampling_default};
    draft_model_take(draft, &one, 1);
    assert_int_equal(draft_model_run(draft, &answers), STATUS_OK);
    assert_int_equal(answers->n, 1);
    return answers->answers[0];
}

/* Whatever became of its guesses before, it guesses as one that sees the text for the first time. */
static void test_guesses_follow_from_the_ids_alone(void **state)
{
    (void)state;
    static const char *const models[] = {"gguf-llama-q4_0/model.gguf", "mistral-swa", "deepseek-v4"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        char *path = eval_golden(models[m]);
        uint32_t ids[100];
        draft_model_t *draft;
        rank_config_t config = {.model_path = path, .draft_path = path, .threads = 1,
                                .context_max = 128};
        assert_int_equal(draft_model_open(&config, 320, &draft), STATUS_OK);
        for (uint32_t i = 0; i < 100; i++)
            ids[i] = (i * i * 31 + 7 * i + 3) % 320;
        for (uint32_t n = 20, serial = 2; n < 80; n += 1 + n % 4, serial++) {
            draft_answer_t went_on = ask(draft, 1, ids, n, 256);
            draft_answer_t fresh = ask(draft, serial, ids, n, 256);
            assert_int_equal(went_on.n, 6);
            assert_memory_equal(went_on.ids, fresh.ids, 6 * sizeof *fresh.ids);
            ids[n] = went_on.ids[0]; /* the first was right, what follows was not */
        }
        /* It sees a few rows at a time, and says nothing until it has seen all. */
        draft_answer_t whole = ask(draft, 1, ids, 90, 256), part = {0};
        for (uint32_t seen = 16; part.n == 0; seen += 16) {
            part = ask(draft, 100, ids, 90, 16);
            assert_int_equal(part.n_known, seen < 90 ? seen : 90);
        }
        assert_memory_equal(whole.ids, part.ids, sizeof whole.ids);
        draft_model_begin(draft, NULL);
        part = ask(draft, 1, ids, 90, 256);
        assert_memory_equal(whole.ids, part.ids, sizeof whole.ids);
        draft_model_close(draft);
        free(path);
    }
}

/* Four of them fill its cache before each of its places has had a text. */
static void test_long_texts_one_after_another_all_get_guesses(void **state)
{
    (void)state;
    enum { N_LONG = 2000 };
    char *path = eval_golden("mistral-swa");
    static uint32_t ids[N_LONG];
    draft_model_t *draft;
    rank_config_t config = {.model_path = path, .draft_path = path, .threads = 1,
                            .context_max = N_LONG + DRAFT_MAX};
    assert_int_equal(draft_model_open(&config, 320, &draft), STATUS_OK);
    assert_int_equal(draft_model_context_max(draft), N_LONG + DRAFT_MAX);
    for (uint32_t i = 0; i < N_LONG; i++)
        ids[i] = (i * i * 31 + 7 * i + 3) % 320;
    for (uint64_t serial = 1; serial <= 2 * DRAFT_SEQUENCES_MAX; serial++) {
        draft_answer_t answer = {0};
        for (uint32_t seen = 0; seen < N_LONG && answer.n == 0; seen += 256)
            answer = ask(draft, serial, ids, N_LONG, 256);
        assert_int_equal(answer.n, 6);
    }
    draft_model_close(draft);
    free(path);
}

static void test_a_rank_may_go_without_a_draft_model_that_is_gone(void **state)
{
    (void)state;
    model_t *model;
    rank_t *rank;
    char *path = eval_golden("mistral-swa");
    assert_int_equal(model_open(path, &model), STATUS_OK);
    rank_config_t config = {.model_path = path, .draft_path = "/nowhere/draft.gguf", .tp = 1,
                            .stages = 1, .layer_count = model_config(model)->n_layers,
                            .threads = 1, .context_max = 128, .speculate_max = 8,
                            .kv_tokens_max = 1024, .fixed_rows = FIXED_ROWS};
    model_close(model);
    assert_int_not_equal(rank_open(&config, &rank), STATUS_OK);
    config.draft_may_fail = true;
    assert_int_equal(rank_open(&config, &rank), STATUS_OK);
    static drawn_text_t texts[N_TEXTS_MAX];
    scheduler_load_t load;
    rig_run_texts(rank, 2, admit, texts, &load);
    assert_int_equal(texts[0].n, N_IDS);
    assert_int_equal(load.model_drafted_tokens, 0);
    rank_close(rank);
    free(path);
}

/* ---- replicas of every shape, in processes of their own ---- */

static json_t *prompts_of(uint32_t n, uint32_t vocab)
{
    json_t *prompts = json_array();
    for (uint32_t i = 0; i < n; i++) {
        json_t *ids = json_array();
        for (uint32_t k = 0; k < 30 + 5 * i; k++)
            json_array_append_new(ids, json_integer((k * k * 37 + k * 101 + i * 31 + 11) % vocab));
        json_array_append_new(prompts, ids);
    }
    return prompts;
}

static uint64_t hash_with(eval_args_t args, const char *draft, eval_guesses_t *sum)
{
    args.draft_model = draft;
    args.speculate = draft ? 8 : 0;
    args.fixed_rows = draft ? FIXED_ROWS : 0;
    return eval_run_hash(&args, sum);
}

static void test_slices_and_stages_give_the_text_without_a_draft_model(void **state)
{
    (void)state;
    char *model = eval_real_model();
    if (!model)
        skip();
    json_t *ids = prompts_of(3, 49152);
    for (int drawn = 0; drawn < 2; drawn++) {
        eval_guesses_t sum = {0};
        eval_args_t args = {.model = model, .ids = ids, .greedy = 30, .seed = 5,
                            .temperature = drawn * 0.8, .threads = 1, .last = true,
                            .no_sums = true};
        uint64_t without = hash_with(args, NULL, &sum);
        assert_int_equal(sum.guessed, 0);
        args.tp = 2;
        assert_true(hash_with(args, model, &sum) == without);
        args.tp = 1;
        args.stages = 2;
        assert_true(hash_with(args, model, &sum) == without);
        print_message("temperature %g: %llu guesses, %llu right\n", args.temperature,
                      (unsigned long long)sum.drafted, (unsigned long long)sum.drafted_right);
        /* Greedy texts repeat themselves, so most guesses are looked up: how many are not depends
         * on which of two batches is back first. */
        assert_true(sum.drafted_right > 20);
        assert_int_equal(sum.drafted, sum.drafted_right);
    }
    json_decref(ids);
    free(model);
}

static void check_refused(const char *model, const char *draft, const char *why)
{
    char words[4096];
    json_t *ids = prompts_of(1, 100);
    eval_args_t args = {.model = model, .ids = ids, .greedy = 4, .speculate = 8, .last = true,
                        .draft_model = draft};
    int code = eval_run_failing(&args, words, sizeof words);
    print_message("%s", words);
    assert_int_equal(code, 2);
    assert_non_null(strstr(words, "a draft model has the tokenizer of the model"));
    assert_non_null(strstr(words, draft));
    assert_non_null(strstr(words, why));
    json_decref(ids);
}

/* The same file but for one token: as many of them, and one that means something else. */
static char *with_another_token(const char *path)
{
    static const char token[] = "<|user|>";
    char *copy = strdup("/tmp/shoal-draft-XXXXXX"), *bytes = NULL;
    size_t n = 0;
    FILE *from = fopen(path, "rb"), *to = fdopen(mkstemp(copy), "wb");
    assert_true(from && to);
    for (size_t got = 1; got > 0; n += got) {
        bytes = realloc(bytes, n + 65536);
        assert_non_null(bytes);
        got = fread(bytes + n, 1, 65536, from);
    }
    uint32_t n_found = 0;
    for (char *at = bytes; (at = memmem(at, n - (size_t)(at - bytes), token, 8)); n_found++)
        at[5] = 'x';
    assert_true(n_found > 0);
    assert_int_equal(fwrite(bytes, 1, n, to), n);
    assert_int_equal(fclose(to), 0);
    fclose(from);
    free(bytes);
    return copy;
}

static void test_a_draft_model_with_another_tokenizer_is_refused_by_name(void **state)
{
    (void)state;
    char *model = eval_golden("gguf-llama-f32/model.gguf"), *other = with_another_token(model);
    char *real = eval_real_model();
    check_refused(model, other, "token ");
    if (real)
        check_refused(model, real, "49152");
    unlink(other);
    free(model);
    free(other);
    free(real);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_model_that_drafts_for_itself_is_always_right),
        cmocka_unit_test(test_other_numbers_of_the_same_model_are_right_often),
        cmocka_unit_test(test_texts_that_are_preempted_are_the_same),
        cmocka_unit_test(test_a_draft_model_that_is_wrong_changes_no_byte),
        cmocka_unit_test(test_every_kind_of_cache_can_draft),
        cmocka_unit_test(test_guesses_follow_from_the_ids_alone),
        cmocka_unit_test(test_long_texts_one_after_another_all_get_guesses),
        cmocka_unit_test(test_a_rank_may_go_without_a_draft_model_that_is_gone),
        cmocka_unit_test(test_slices_and_stages_give_the_text_without_a_draft_model),
        cmocka_unit_test(test_a_draft_model_with_another_tokenizer_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
