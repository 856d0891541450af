/* A rank and its leader in one process: several streams at once, epochs one after another on the
 * same weights, a stop, a failure, and sampling that goes on elsewhere with the same text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/failpoint.h"
#include "rank_rig.h"

enum { N_PROMPT = 9, N_IDS = 40, N_CLIENTS = 4, N_EACH = 6 };

static rank_t *rank;

static void run_one(epoch_t *epoch, const char *session, uint32_t salt, text_t *text)
{
    client_t client;
    admission_t admission;
    uint32_t prompt[N_PROMPT];
    client_open(&client, epoch);
    rig_request(&admission, session, salt, N_PROMPT, N_IDS, prompt);
    if (text->n > 0) {
        admission.produced = text->ids;
        admission.n_produced = admission.from_n = text->n;
    }
    leader_admit(epoch->leader, client.stream, &admission);
    rig_follow(&client, text);
    client_close(&client);
}

/* ---- tests ---- */

static void test_a_text_is_the_same_alone_and_in_a_later_epoch(void **state)
{
    (void)state;
    epoch_t epoch;
    text_t first = {0}, second = {0};
    epoch_begin(&epoch, rank);
    run_one(&epoch, "a", 1, &first);
    epoch_end(&epoch);
    assert_int_equal(epoch.status, STATUS_OK);
    assert_int_equal(first.n, N_IDS);
    assert_int_equal(first.end, END_FINISHED);
    epoch_begin(&epoch, rank);
    run_one(&epoch, "a", 1, &second);
    assert_true(atomic_load(&epoch.pulse.beats) > 0);
    epoch_end(&epoch);
    assert_memory_equal(&first, &second, sizeof first);
}

static void test_a_continuation_from_any_id_gives_the_same_text(void **state)
{
    (void)state;
    epoch_t epoch;
    epoch_begin(&epoch, rank);
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
    epoch_end(&epoch);
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
    epoch_begin(&epoch, rank);
    for (uint32_t i = 0; i < N_CLIENTS; i++) {
        workers[i] = (worker_t){.epoch = &epoch, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < N_CLIENTS; i++)
        pthread_join(threads[i], NULL);
    scheduler_load_t load;
    leader_load(epoch.leader, &load);
    assert_true(load.sequences_max_in_step > 1);
    assert_int_equal(epoch.n_flying_most, load.sequences_max_in_step);
    epoch_end(&epoch);
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
    epoch_begin(&epoch, rank);
    run_one(&epoch, "suspect", 1, &text);
    char suspects[4][SESSION_BYTES];
    assert_int_equal(leader_suspects(epoch.leader, suspects, 4), 1);
    assert_string_equal(suspects[0], "suspect");
    assert_int_equal(leader_stream_open(epoch.leader, NULL, NULL), 0);
    epoch_end(&epoch);
    unsetenv("SHOAL_FAILPOINTS");
    failpoint_start();
    assert_int_equal(epoch.status, STATUS_INTERNAL);
    assert_int_equal(text.end, END_REPLICA_LOST);
    assert_int_equal(text.n, 4);
    /* The next epoch on the same rank goes on from what the coordinator has. */
    text_t whole = {0};
    epoch_begin(&epoch, rank);
    run_one(&epoch, "suspect", 1, &text);
    run_one(&epoch, "whole", 1, &whole);
    epoch_end(&epoch);
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
