/* The job store while things die, fill up or are set wrong; against a real Redis that is killed. */
#include <hiredis/hiredis.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/net/redis_url.h"
#include "tests/unit/jobs/rig.h"

#include <cmocka.h>

#define J1 "11111111111111111111111111111111"
#define J2 "22222222222222222222222222222222"
#define ITEMS 1000

static const jobs_tokens_t no_tokens = {0, 0, 0};

/* ---- commits while Redis dies ---- */

typedef struct {
    jobs_code_t code;
    bool ended;
} commit_t;

typedef struct {
    commit_t of[ITEMS];
    atomic_uint n_ended;
} commits_t;

typedef struct {
    commits_t *all;
    commit_t *one;
} commit_user_t;

static void on_commit(void *user, const jobs_reply_t *reply)
{
    commit_user_t *it = user;
    CHECK(!it->one->ended);
    it->one->ended = true;
    it->one->code = reply->code;
    atomic_fetch_add(&it->all->n_ended, 1);
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
}

/* Commits every item that is not known to have ended; returns when all have been answered. */
static void commit_all(jobs_store_t *store, commits_t *all, int round, server_t *kill_midway)
{
    static commit_user_t users[ITEMS];
    unsigned sent = 0;
    atomic_store(&all->n_ended, 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        if (all->of[i].ended && all->of[i].code != JOBS_UNREACHABLE)
            continue;
        all->of[i].ended = false;
        users[i] = (commit_user_t){all, &all->of[i]};
        char record[48];
        snprintf(record, sizeof record, "item %d by round %d", (int)i, round);
        jobs_claim_t claim = {J1, i, {1, 5}, 1};
        assert_int_equal(jobs_complete(store, &claim, no_tokens, (uint8_t *)record,
                                       strlen(record), on_commit, &users[i]),
                         STATUS_OK);
        sent++;
        if (kill_midway && sent % 100 == 0)
            while (atomic_load(&all->n_ended) + 100 < sent)
                nap(); /* keeps the stream going, so that the kill meets calls under way */
        if (kill_midway && i == ITEMS / 2) {
            server_kill(kill_midway);
            kill_midway = NULL;
        }
    }
    uint64_t until = clock_ms() + 20000;
    while (atomic_load(&all->n_ended) < sent) {
        assert_true(clock_ms() < until);
        nap();
    }
}

static void test_a_redis_killed_amid_commits_keeps_one_result_an_item(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    jobs_store_t *store = store_open(&server, 0, 0);
    answer_t a = {0};
    make_job(store, J1, ITEMS, NULL);
    ASK(a, jobs_claim(store, "m", ITEMS, (jobs_process_t){1, 5}, 1, on_answer, &a));
    assert_int_equal(a.reply.n_items, ITEMS);
    static commits_t all;
    commit_all(store, &all, 1, &server);
    bool acknowledged[ITEMS];
    unsigned n_acknowledged = 0;
    for (size_t i = 0; i < ITEMS; i++) {
        acknowledged[i] = all.of[i].code == JOBS_OK;
        n_acknowledged += acknowledged[i];
        assert_true(acknowledged[i] || all.of[i].code == JOBS_UNREACHABLE);
    }
    assert_in_range(n_acknowledged, 300, ITEMS - 1); /* the kill did meet the stream */
    server_start(&server);
    store_wait(store, true, true);
    commit_all(store, &all, 2, NULL);
    for (size_t i = 0; i < ITEMS; i++)
        assert_true(all.of[i].code == JOBS_OK || all.of[i].code == JOBS_DUP);
    /* Read it all: each index once, and what was acknowledged is what the first round wrote. */
    static bool met[ITEMS];
    memset(met, 0, sizeof met);
    ASK(a, jobs_results(store, J1, 0, 1000, on_answer, &a));
    assert_int_equal(a.reply.n_results, ITEMS);
    assert_int_equal(a.reply.jobs[0].state, JOBS_STATE_SUCCEEDED);
    for (size_t i = 0; i < ITEMS; i++) {
        const jobs_result_t *r = &a.reply.results[i];
        assert_false(met[r->index]);
        met[r->index] = true;
        char right[48];
        snprintf(right, sizeof right, "item %d by round 1", (int)r->index);
        if (acknowledged[r->index])
            assert_memory_equal(r->record, right, r->record_bytes);
    }
    answer_end(&a);
    jobs_store_close(store);
    server_remove(&server);
}

/* ---- two coordinators that race ---- */

typedef struct {
    jobs_store_t *store;
    jobs_process_t process;
    unsigned n_ok, n_other;
} racer_t;

static void *race(void *user)
{
    racer_t *racer = user;
    answer_t a = {0}, b = {0};
    for (uint64_t nonce = 1;; nonce++) {
        answer_begin(&a);
        CHECK(jobs_claim(racer->store, "m", 7, racer->process, nonce, on_answer, &a) == STATUS_OK);
        answer_wait(&a);
        if (a.reply.code != JOBS_OK || !a.reply.n_items)
            break;
        for (size_t i = 0; i < a.reply.n_items; i++) {
            const jobs_item_t *item = &a.reply.items[i];
            jobs_claim_t claim = {item->job, item->index, racer->process, item->attempt};
            answer_begin(&b);
            /* Every ninth goes back once, to be fought for again. */
            if (item->index % 9 == 0 && item->attempt == 1)
                CHECK(jobs_release(racer->store, &claim, on_answer, &b) == STATUS_OK);
            else
                CHECK(jobs_complete(racer->store, &claim, no_tokens, NULL, 0, on_answer, &b) ==
                      STATUS_OK);
            answer_wait(&b);
            if (item->index % 9 || item->attempt != 1)
                *(b.reply.code == JOBS_OK ? &racer->n_ok : &racer->n_other) += 1;
        }
    }
    answer_end(&a);
    answer_end(&b);
    return NULL;
}

static void test_two_processes_that_race_share_the_items_and_repeat_none(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    racer_t racers[2] = {{store_open(&server, 0, 0), {1, 11}, 0, 0},
                         {store_open(&server, 0, 0), {1, 12}, 0, 0}};
    make_job(racers[0].store, J1, 300, NULL);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++)
        race(&racers[i]); /* what the other gave back after this one saw nothing left */
    assert_int_equal(racers[0].n_ok + racers[1].n_ok, 300);
    assert_int_equal(racers[0].n_other + racers[1].n_other, 0);
    for (int i = 0; i < 2; i++)
        jobs_store_close(racers[i].store);
    server_remove(&server);
}

/* ---- the gate, and space ---- */

static jobs_code_t put_one(jobs_store_t *store, const char *upload, size_t bytes, uint64_t reserve)
{
    static uint8_t body[JOBS_CHUNK_BYTES_MAX];
    answer_t a = {0};
    jobs_body_t b = {body, bytes};
    jobs_code_t code = ASK(a, jobs_put(store, upload, 0, 1, &b, reserve, on_answer, &a))->code;
    if (code == JOBS_NOT_DURABLE)
        assert_non_null(strstr(a.reply.message, "appendfsync is \"everysec\""));
    answer_end(&a);
    return code;
}

static void test_a_redis_set_to_lose_jobs_is_refused_by_the_settings_name(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    jobs_store_t *store = store_open(&server, 0, 50);
    assert_int_equal(put_one(store, J1, 10, 10), JOBS_OK);
    REDIS(&server, "CONFIG", "SET", "appendfsync", "everysec");
    store_wait(store, true, false);
    assert_int_equal(put_one(store, J2, 10, 10), JOBS_NOT_DURABLE);
    answer_t a = {0};
    ASK(a, jobs_list(store, 0, 1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK); /* intake alone is refused */
    answer_end(&a);
    REDIS(&server, "CONFIG", "SET", "appendfsync", "always");
    store_wait(store, true, true);
    assert_int_equal(put_one(store, J2, 10, 10), JOBS_OK);
    static const char *const wrong[][3] = {{"appendonly", "no", "yes"},
                                           {"maxmemory-policy", "allkeys-lru", "noeviction"}};
    for (size_t i = 0; i < 2; i++) {
        REDIS(&server, "CONFIG", "SET", wrong[i][0], wrong[i][1]);
        store_wait(store, true, false);
        char why[200];
        bool connected, durable;
        jobs_store_health(store, &connected, &durable, why, sizeof why);
        assert_non_null(strstr(why, wrong[i][0]));
        REDIS(&server, "CONFIG", "SET", wrong[i][0], wrong[i][2]);
        store_wait(store, true, true);
    }
    jobs_store_close(store);
    server_remove(&server);
}

static void test_space_is_bounded_and_commits_pass_without_memory(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    jobs_store_t *store = store_open(&server, 1000, 0);
    answer_t a = {0};
    assert_int_equal(put_one(store, J2, 10, 1001), JOBS_FULL);
    assert_int_equal(put_one(store, J2, 10, 500), JOBS_OK);
    assert_int_equal(put_one(store, J1, 10, 501), JOBS_FULL);
    ASK(a, jobs_drop(store, J2, on_answer, &a));
    make_job(store, J1, 3, NULL);
    ASK(a, jobs_claim(store, "m", 1, (jobs_process_t){1, 5}, 1, on_answer, &a));
    assert_int_equal(a.reply.n_items, 1);
    REDIS(&server, "CONFIG", "SET", "maxmemory", "1");
    assert_int_equal(put_one(store, J2, 10, 10), JOBS_FULL);
    ASK(a, jobs_claim(store, "m", 1, (jobs_process_t){1, 5}, 2, on_answer, &a));
    assert_int_equal(a.reply.n_items, 1);
    jobs_claim_t claim = {J1, 0, {1, 5}, 1};
    ASK(a, jobs_complete(store, &claim, no_tokens, (const uint8_t *)"r", 1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    ASK(a, jobs_delete(store, J1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    REDIS(&server, "CONFIG", "SET", "maxmemory", "0");
    assert_int_equal(put_one(store, J2, 10, 1000), JOBS_OK); /* the deleted job's space is free */
    answer_end(&a);
    jobs_store_close(store);
    server_remove(&server);
}

static void test_a_library_of_the_same_name_and_other_text_is_never_replaced(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    REDIS(&server, "FUNCTION", "LOAD",
          "#!lua name=" JOBS_LIBRARY
          "\nredis.register_function('shoal_jobs_v2_list', function() return {'OK', '', {}} end)");
    jobs_store_t *store;
    jobs_store_config_t config = {.url = server.url, .cluster = "test"};
    assert_int_equal(jobs_store_open(&config, &store), STATUS_OK);
    char why[200] = "";
    bool connected, durable;
    uint64_t until = clock_ms() + 10000;
    while (!strstr(why, "another text")) {
        assert_true(clock_ms() < until);
        jobs_store_health(store, &connected, &durable, why, sizeof why);
        nap();
    }
    assert_false(connected);
    answer_t a = {0};
    ASK(a, jobs_list(store, 0, 1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_UNREACHABLE);
    answer_end(&a);
    jobs_store_close(store);
    server_remove(&server);
}

static void test_a_flushed_library_is_loaded_again(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    jobs_store_t *store = store_open(&server, 0, 0);
    REDIS(&server, "FUNCTION", "FLUSH");
    answer_t a = {0};
    uint64_t until = clock_ms() + 10000;
    while (ASK(a, jobs_list(store, 0, 1, on_answer, &a))->code != JOBS_OK) {
        assert_int_equal(a.reply.code, JOBS_UNREACHABLE);
        assert_true(clock_ms() < until);
        nap();
    }
    answer_end(&a);
    jobs_store_close(store);
    server_remove(&server);
}

/* ---- the client alone ---- */

typedef struct {
    atomic_uint n;
    status_t last;
} tally_t;

static void on_reply(void *user, status_t status, const char *error, const struct redisReply *reply)
{
    (void)error;
    (void)reply;
    tally_t *tally = user;
    tally->last = status;
    atomic_fetch_add(&tally->n, 1);
}

static void await_tally(const tally_t *tally, unsigned n)
{
    uint64_t until = clock_ms() + 15000;
    while (atomic_load(&tally->n) < n) {
        assert_true(clock_ms() < until);
        nap();
    }
    assert_int_equal(atomic_load(&tally->n), n);
}

static void test_a_stopped_redis_is_given_up_in_time_and_found_again(void **state)
{
    (void)state;
    server_t server = {0};
    server_start(&server);
    redis_t *redis;
    redis_config_t config = {.url = server.url, .call_timeout_ms = 300, .calls_max = 50};
    assert_int_equal(redis_open(&config, &redis), STATUS_OK);
    uint64_t until = clock_ms() + 10000;
    while (!redis_connected(redis)) {
        assert_true(clock_ms() < until);
        nap();
    }
    static const char *const ping[] = {"PING"};
    tally_t tally = {0};
    kill(server.pid, SIGSTOP);
    uint64_t from = clock_ms();
    unsigned sent = 0;
    while (redis_call_text(redis, 1, ping, on_reply, &tally) == STATUS_OK)
        assert_true(++sent <= 50);
    assert_int_equal(sent, 50); /* the written maximum */
    await_tally(&tally, sent);
    assert_int_equal(tally.last, STATUS_UNREACHABLE);
    assert_in_range(clock_ms() - from, 250, 3000);
    kill(server.pid, SIGCONT);
    until = clock_ms() + 10000;
    tally.last = STATUS_UNREACHABLE;
    while (tally.last != STATUS_OK) {
        assert_true(clock_ms() < until);
        assert_int_equal(redis_call_text(redis, 1, ping, on_reply, &tally), STATUS_OK);
        await_tally(&tally, ++sent);
        nap();
    }
    /* Closing ends what is under way, each call once. */
    kill(server.pid, SIGSTOP);
    for (int i = 0; i < 20; i++)
        assert_int_equal(redis_call_text(redis, 1, ping, on_reply, &tally), STATUS_OK);
    redis_close(redis);
    assert_int_equal(atomic_load(&tally.n), sent + 20);
    kill(server.pid, SIGCONT);
    server_remove(&server);
}

static void test_an_unreachable_redis_answers_at_once_and_says_who(void **state)
{
    (void)state;
    jobs_store_t *store;
    jobs_store_config_t config = {.url = "unix:/nonexistent/redis", .cluster = "test"};
    assert_int_equal(jobs_store_open(&config, &store), STATUS_OK);
    answer_t a = {0};
    uint64_t from = clock_ms();
    ASK(a, jobs_list(store, 0, 1, on_answer, &a));
    assert_true(clock_ms() - from < 1000);
    assert_int_equal(a.reply.code, JOBS_UNREACHABLE);
    assert_non_null(strstr(a.reply.message, "redis"));
    answer_end(&a);
    jobs_store_close(store);
    config.cluster = "Not a name";
    assert_int_equal(jobs_store_open(&config, &store), STATUS_INVALID);
}

static void test_addresses_are_read_or_refused(void **state)
{
    (void)state;
    redis_url_t url;
    assert_int_equal(redis_url_parse("redis://:secret@10.0.0.1:6400/0", &url), STATUS_OK);
    assert_string_equal(url.host, "10.0.0.1");
    assert_string_equal(url.password, "secret");
    assert_int_equal(url.port, 6400);
    assert_null(strstr(url.shown, "secret"));
    redis_url_release(&url);
    assert_int_equal(redis_url_parse("[::1]:7", &url), STATUS_OK);
    assert_string_equal(url.host, "::1");
    redis_url_release(&url);
    assert_int_equal(redis_url_parse("localhost", &url), STATUS_OK);
    assert_int_equal(url.port, 6379);
    redis_url_release(&url);
    static const char *const wrong[] = {"",       "host:",        "host:0", "host:65536", ":1",
                                        "[::1",   "http://a:1",   "unix:",  "host:1x",    "[::1]x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(redis_url_parse(wrong[i], &url), STATUS_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_redis_killed_amid_commits_keeps_one_result_an_item),
        cmocka_unit_test(test_two_processes_that_race_share_the_items_and_repeat_none),
        cmocka_unit_test(test_a_redis_set_to_lose_jobs_is_refused_by_the_settings_name),
        cmocka_unit_test(test_space_is_bounded_and_commits_pass_without_memory),
        cmocka_unit_test(test_a_library_of_the_same_name_and_other_text_is_never_replaced),
        cmocka_unit_test(test_a_flushed_library_is_loaded_again),
        cmocka_unit_test(test_a_stopped_redis_is_given_up_in_time_and_found_again),
        cmocka_unit_test(test_an_unreachable_redis_answers_at_once_and_says_who),
        cmocka_unit_test(test_addresses_are_read_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
