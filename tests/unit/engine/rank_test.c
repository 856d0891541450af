/* A rank and its leader in one process: several streams at once, epochs one after another on the
 * same weights, a stop, a failure, and sampling that goes on elsewhere with the same text. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/failpoint.h"
#include "worker/engine/rank.h"

enum { N_IDS = 40, N_CLIENTS = 4, N_EACH = 6 };

static rank_t *rank;

typedef struct {
    leader_t *leader;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool active;
    status_t status;
    char text[STATUS_TEXT_MAX];
    rank_pulse_t pulse;
} epoch_t;

static void on_active(void *context, const char *identity, uint64_t kv_tokens, uint32_t context_max)
{
    epoch_t *epoch = context;
    assert_string_equal(identity, rank_text_identity(rank));
    assert_true(kv_tokens >= context_max);
    pthread_mutex_lock(&epoch->lock);
    epoch->active = true;
    pthread_cond_broadcast(&epoch->changed);
    pthread_mutex_unlock(&epoch->lock);
}

static uint32_t n_flying_most;

static void on_planned(void *context, uint64_t step, uint32_t n,
                       const char (*sessions)[SESSION_BYTES])
{
    (void)context;
    assert_true(step > 0 && n > 0 && sessions[n - 1][0] != 0);
    n_flying_most = n > n_flying_most ? n : n_flying_most;
}

static void *run_epoch(void *argument)
{
    epoch_t *epoch = argument;
    rank_callbacks_t callbacks = {
        .context = epoch, .active = on_active, .planned = on_planned, .pulse = &epoch->pulse};
    epoch->status = rank_run(rank, NULL, epoch->leader, &callbacks);
    snprintf(epoch->text, sizeof epoch->text, "%s", status_text());
    return NULL;
}

/* One thread at a time owns the rank: the epoch's, from here to end_epoch(). */
static void begin_epoch(epoch_t *epoch)
{
    memset(epoch, 0, sizeof *epoch);
    epoch->leader = leader_new();
    pthread_mutex_init(&epoch->lock, NULL);
    pthread_cond_init(&epoch->changed, NULL);
    assert_int_equal(leader_stream_open(epoch->leader, NULL, NULL), 0); /* not active yet */
    assert_int_equal(pthread_create(&epoch->thread, NULL, run_epoch, epoch), 0);
    pthread_mutex_lock(&epoch->lock);
    while (!epoch->active)
        pthread_cond_wait(&epoch->changed, &epoch->lock);
    pthread_mutex_unlock(&epoch->lock);
}

static void end_epoch(epoch_t *epoch)
{
    leader_stop(epoch->leader);
    pthread_join(epoch->thread, NULL);
    leader_free(epoch->leader);
    pthread_mutex_destroy(&epoch->lock);
    pthread_cond_destroy(&epoch->changed);
}

/* ---- a coordinator's side ---- */

typedef struct {
    epoch_t *epoch;
    uint32_t stream;
    pthread_mutex_t lock;
    pthread_cond_t rung;
    bool news;
} client_t;

static void ring(void *context)
{
    client_t *client = context;
    pthread_mutex_lock(&client->lock);
    client->news = true;
    pthread_cond_signal(&client->rung);
    pthread_mutex_unlock(&client->lock);
}

static void open_client(client_t *client, epoch_t *epoch)
{
    *client = (client_t){.epoch = epoch};
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->rung, NULL);
    client->stream = leader_stream_open(epoch->leader, ring, client);
}

static void close_client(client_t *client)
{
    leader_stream_close(client->epoch->leader, client->stream);
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->rung);
}

static void next_output(client_t *client, sequence_output_t *out, sampled_t *drawn)
{
    while (!leader_take(client->epoch->leader, client->stream, out, drawn)) {
        pthread_mutex_lock(&client->lock);
        while (!client->news)
            pthread_cond_wait(&client->rung, &client->lock);
        client->news = false;
        pthread_mutex_unlock(&client->lock);
    }
}

typedef struct {
    uint32_t n;
    uint32_t ids[N_IDS];
    float logprobs[N_IDS];
    end_reason_t end;
} text_t;

static void request(admission_t *admission, const char *session, uint32_t salt, uint32_t *prompt)
{
    for (uint32_t i = 0; i < 9; i++)
        prompt[i] = (salt * 31 + i * 17) % 320;
    *admission = (admission_t){.owner = 1,
                               .prompt = prompt,
                               .n_prompt = 9,
                               .sampling = sampling_default,
                               .max_tokens = N_IDS,
                               .logits_from = LOGITS_NONE};
    admission->sampling.temperature = salt % 2 ? 0.8f : 0;
    admission->sampling.repetition_penalty = 1.1f;
    admission->sampling.seed = salt;
    admission->sampling.want_logprobs = true;
    admission->sampling.n_top = 2;
    snprintf(admission->session, sizeof admission->session, "%s", session);
}

/* Follows one session to its end; n ids are there already. */
static void follow(client_t *client, text_t *text)
{
    sequence_output_t out;
    sampled_t drawn[SCHEDULER_OUTPUT_IDS_MAX];
    do {
        next_output(client, &out, drawn);
        for (uint32_t i = 0; i < out.n_ids; i++) {
            assert_true(out.first_position + i < N_IDS);
            text->ids[out.first_position + i] = out.ids[i];
            text->n = out.first_position + i + 1;
            if (out.has_logprobs) {
                assert_int_equal(out.drawn[i].id, out.ids[i]);
                assert_int_equal(out.drawn[i].n_top, 2);
                assert_true(out.drawn[i].logprob <= 0);
                assert_true(out.drawn[i].top[0].logprob >= out.drawn[i].top[1].logprob);
                text->logprobs[out.first_position + i] = out.drawn[i].logprob;
            }
        }
        text->end = out.end;
    } while (out.end == END_NONE);
}

static void run_one(epoch_t *epoch, const char *session, uint32_t salt, text_t *text)
{
    client_t client;
    admission_t admission;
    uint32_t prompt[9];
    open_client(&client, epoch);
    request(&admission, session, salt, prompt);
    if (text->n > 0) {
        admission.produced = text->ids;
        admission.n_produced = admission.from_n = text->n;
    }
    leader_admit(epoch->leader, client.stream, &admission);
    follow(&client, text);
    close_client(&client);
}

/* ---- tests ---- */

static void test_a_text_is_the_same_alone_and_in_a_later_epoch(void **state)
{
    (void)state;
    epoch_t epoch;
    text_t first = {0}, second = {0};
    begin_epoch(&epoch);
    run_one(&epoch, "a", 1, &first);
    end_epoch(&epoch);
    assert_int_equal(epoch.status, STATUS_OK);
    assert_int_equal(first.n, N_IDS);
    assert_int_equal(first.end, END_FINISHED);
    begin_epoch(&epoch);
    run_one(&epoch, "a", 1, &second);
    assert_true(atomic_load(&epoch.pulse.beats) > 0);
    end_epoch(&epoch);
    assert_memory_equal(&first, &second, sizeof first);
}

static void test_a_continuation_from_any_id_gives_the_same_text(void **state)
{
    (void)state;
    epoch_t epoch;
    begin_epoch(&epoch);
    for (uint32_t salt = 0; salt < 2; salt++) {
        text_t whole = {0};
        run_one(&epoch, salt ? "w1" : "w0", salt, &whole);
        for (uint32_t n = 1; n < N_IDS; n += 13) {
            char session[16];
            text_t rest = whole;
            snprintf(session, sizeof session, "r%u.%u", salt, n);
            memset(rest.ids + n, 0, (N_IDS - n) * sizeof *rest.ids);
            rest.n = n;
            run_one(&epoch, session, salt, &rest);
            assert_memory_equal(rest.ids, whole.ids, sizeof whole.ids);
        }
    }
    end_epoch(&epoch);
}

typedef struct {
    epoch_t *epoch;
    uint32_t number;
    text_t texts[N_EACH];
} worker_t;

static void *work(void *argument)
{
    worker_t *worker = argument;
    for (uint32_t i = 0; i < N_EACH; i++) {
        char session[16];
        snprintf(session, sizeof session, "%u.%u", worker->number, i);
        run_one(worker->epoch, session, i, &worker->texts[i]);
    }
    return NULL;
}

static void test_many_streams_at_once_each_get_their_texts(void **state)
{
    (void)state;
    epoch_t epoch;
    static worker_t workers[N_CLIENTS];
    pthread_t threads[N_CLIENTS];
    begin_epoch(&epoch);
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        workers[i] = (worker_t){.epoch = &epoch, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        pthread_join(threads[i], NULL);
    scheduler_load_t load;
    leader_load(epoch.leader, &load);
    assert_true(load.sequences_max_in_step > 1);
    assert_int_equal(n_flying_most, load.sequences_max_in_step);
    end_epoch(&epoch);
    for (uint32_t i = 1; i < N_CLIENTS; i++)
        assert_memory_equal(workers[i].texts, workers[0].texts, sizeof workers[0].texts);
    assert_memory_not_equal(workers[0].texts[0].ids, workers[0].texts[1].ids,
                            sizeof workers[0].texts[0].ids);
}

static void test_a_failed_step_loses_the_replica_and_names_the_suspects(void **state)
{
    (void)state;
    epoch_t epoch;
    text_t text = {0};
    setenv("SHOAL_FAILPOINTS", "rank.step.begin=error@5", 1);
    failpoint_start();
    begin_epoch(&epoch);
    run_one(&epoch, "suspect", 1, &text);
    char suspects[4][SESSION_BYTES];
    assert_int_equal(leader_suspects(epoch.leader, suspects, 4), 1);
    assert_string_equal(suspects[0], "suspect");
    assert_int_equal(leader_stream_open(epoch.leader, NULL, NULL), 0);
    end_epoch(&epoch);
    unsetenv("SHOAL_FAILPOINTS");
    failpoint_start();
    assert_int_equal(epoch.status, STATUS_INTERNAL);
    assert_int_equal(text.end, END_REPLICA_LOST);
    assert_int_equal(text.n, 4);
    /* The next epoch on the same rank goes on from what the coordinator has. */
    text_t whole = {0};
    begin_epoch(&epoch);
    run_one(&epoch, "suspect", 1, &text);
    run_one(&epoch, "whole", 1, &whole);
    end_epoch(&epoch);
    assert_int_equal(text.end, END_FINISHED);
    assert_memory_equal(text.ids, whole.ids, sizeof text.ids);
}

static void test_a_configuration_that_does_not_fit_the_model_is_refused(void **state)
{
    (void)state;
    const char *path = SHOAL_TEST_DATA "/gguf-llama-q4_0/model.gguf";
    rank_config_t config = {.model_path = path, .tp = 1, .stages = 1, .layer_count = 2};
    rank_t *refused;
    assert_int_equal(rank_open(&config, &refused), STATUS_INVALID);
    config.layer_count = 3;
    config.context_max = 1 << 20;
    assert_int_equal(rank_open(&config, &refused), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "context_max"));
    config.context_max = 1024;
    config.kv_tokens_max = 512;
    assert_int_equal(rank_open(&config, &refused), STATUS_REFUSED);
    config.kv_tokens_max = 0;
    config.slice = 1;
    assert_int_equal(rank_open(&config, &refused), STATUS_INVALID);
}

static int open_rank(void **state)
{
    (void)state;
    rank_config_t config = {.model_path = SHOAL_TEST_DATA "/gguf-llama-q4_0/model.gguf",
                            .tp = 1,
                            .stages = 1,
                            .layer_count = 3,
                            .threads = 1,
                            .context_max = 256,
                            .kv_tokens_max = 1024,
                            .prefill_tokens_max = 32,
                            .batch_max = 4};
    return rank_open(&config, &rank) == STATUS_OK ? 0 : -1;
}

static int close_rank(void **state)
{
    (void)state;
    rank_close(rank);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_text_is_the_same_alone_and_in_a_later_epoch),
        cmocka_unit_test(test_a_continuation_from_any_id_gives_the_same_text),
        cmocka_unit_test(test_many_streams_at_once_each_get_their_texts),
        cmocka_unit_test(test_a_failed_step_loses_the_replica_and_names_the_suspects),
        cmocka_unit_test(test_a_configuration_that_does_not_fit_the_model_is_refused),
    };
    return cmocka_run_group_tests(tests, open_rank, close_rank);
}
