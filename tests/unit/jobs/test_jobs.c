/* Every transition of the job library, and the repeat of every call, against a real Redis. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/unit/jobs/rig.h"

#include <cmocka.h>

#define J1 "11111111111111111111111111111111"
#define J2 "22222222222222222222222222222222"
#define J3 "33333333333333333333333333333333"

static server_t server;
static jobs_store_t *store;
static answer_t a;
static const jobs_process_t p1 = {1, 501}, p2 = {1, 502};
static const jobs_tokens_t tokens = {10, 5, 2};

/* Each test begins with an empty store that it then makes its own. */
static int fresh(void **state)
{
    (void)state;
    REDIS(&server, "FLUSHALL");
    store = store_open(&server, 0, 0);
    return 0;
}

static int finish(void **state)
{
    (void)state;
    jobs_store_close(store);
    answer_end(&a);
    a = (answer_t){0};
    return 0;
}

static jobs_code_t complete(const char *job, uint64_t index, jobs_process_t process,
                            uint64_t attempt, const char *record)
{
    jobs_claim_t claim = {job, index, process, attempt};
    return ASK(a, jobs_complete(store, &claim, tokens, (const uint8_t *)record, strlen(record),
                                on_answer, &a))
        ->code;
}

static jobs_code_t release(const char *job, uint64_t index, jobs_process_t process,
                           uint64_t attempt)
{
    jobs_claim_t claim = {job, index, process, attempt};
    return ASK(a, jobs_release(store, &claim, on_answer, &a))->code;
}

static size_t claim(jobs_process_t process, uint64_t nonce, size_t n)
{
    ASK(a, jobs_claim(store, "m", n, process, nonce, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    return a.reply.n_items;
}

static jobs_job_t get(const char *job)
{
    ASK(a, jobs_get(store, job, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    return a.reply.jobs[0];
}

static void test_a_job_runs_from_submission_to_its_last_result(void **state)
{
    (void)state;
    make_job(store, J1, 3, &(jobs_submit_t){.priority = -5, .display_name = "tale", .seed = 99});
    jobs_job_t job = get(J1);
    assert_int_equal(job.state, JOBS_STATE_QUEUED);
    assert_int_equal(job.total, 3);
    assert_int_equal(job.priority, -5);
    assert_string_equal(job.display_name, "tale");
    assert_true(job.create_ms > 1600000000000);
    assert_int_equal(claim(p1, 1, 2), 2);
    assert_int_equal(a.reply.items[1].index, 1);
    assert_int_equal(a.reply.items[1].attempt, 1);
    assert_int_equal(a.reply.items[1].priority, -5);
    assert_string_equal(a.reply.items[1].job, J1);
    assert_memory_equal(a.reply.items[1].body, "body 1", 6);
    assert_true(a.reply.items[1].seed == jobs_item_seed(99, 1));
    job = get(J1);
    assert_int_equal(job.state, JOBS_STATE_RUNNING);
    assert_int_equal(job.running, 2);
    assert_int_equal(claim(p1, 2, 9), 1);
    assert_int_equal(claim(p1, 3, 9), 0);
    assert_int_equal(complete(J1, 2, p1, 1, "last first"), JOBS_OK);
    assert_int_equal(complete(J1, 0, p1, 1, "zero"), JOBS_OK);
    jobs_claim_t failing = {J1, 1, p1, 1};
    ASK(a, jobs_fail(store, &failing, tokens, (const uint8_t *)"bad", 3, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    job = get(J1);
    assert_int_equal(job.state, JOBS_STATE_SUCCEEDED);
    assert_int_equal(job.succeeded, 2);
    assert_int_equal(job.failed, 1);
    assert_int_equal(job.running, 0);
    assert_int_equal(job.completion_tokens, 15);
    ASK(a, jobs_results(store, J1, 0, 2, on_answer, &a));
    assert_int_equal(a.reply.n_results, 2);
    assert_int_equal(a.reply.results[0].index, 2);
    assert_memory_equal(a.reply.results[0].record, "last first", 10);
    ASK(a, jobs_results(store, J1, 2, 100, on_answer, &a));
    assert_int_equal(a.reply.n_results, 1);
    assert_int_equal(a.reply.results[0].completion, 3);
    assert_int_equal(a.reply.results[0].end, JOBS_END_ERROR);
    ASK(a, jobs_mine(store, p1, 0, on_answer, &a));
    assert_int_equal(a.reply.n_items, 0);
}

static uint64_t queued(void)
{
    ASK(a, jobs_queued(store, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    return a.reply.number;
}

static void test_the_number_of_queued_jobs_follows_each_of_their_ways_out(void **state)
{
    (void)state;
    assert_int_equal(queued(), 0);
    for (int i = 0; i < 4; i++) {
        char id[] = "0000000000000000000000000000000a";
        id[31] = (char)('a' + i);
        make_job(store, id, 2, &(jobs_submit_t){.deadline_ms = i == 3 ? 1 : 0});
        if (i < 3)
            assert_int_equal(queued(), i + 1);
    }
    ASK(a, jobs_submit(store, &(jobs_submit_t){.job = "0000000000000000000000000000000a",
                                               .upload = J1, .total = 2, .deployment = "m"},
                       on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_DUP);
    while (queued() == 4)
        ASK(a, jobs_expire(store, on_answer, &a)); /* the fourth */
    assert_int_equal(queued(), 3);
    assert_int_equal(claim(p1, 1, 1), 1); /* the first begins */
    assert_int_equal(queued(), 2);
    ASK(a, jobs_release(store, &(jobs_claim_t){"0000000000000000000000000000000a", 0, p1, 1},
                        on_answer, &a));
    assert_int_equal(queued(), 2); /* begun is begun */
    ASK(a, jobs_cancel(store, "0000000000000000000000000000000b", on_answer, &a));
    ASK(a, jobs_cancel(store, "0000000000000000000000000000000b", on_answer, &a));
    assert_int_equal(queued(), 1);
    ASK(a, jobs_delete(store, "0000000000000000000000000000000c", on_answer, &a));
    assert_int_equal(queued(), 0);
}

static void test_a_repeated_put_adds_nothing_and_a_gap_is_refused(void **state)
{
    (void)state;
    jobs_body_t body[2] = {{(const uint8_t *)"a", 1}, {(const uint8_t *)"b", 1}};
    for (int i = 0; i < 2; i++) {
        ASK(a, jobs_put(store, J1, 0, 2, body, 10, on_answer, &a));
        assert_int_equal(a.reply.code, JOBS_OK);
    }
    ASK(a, jobs_put(store, J1, 3, 1, body, 10, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_CONFLICT);
    char bytes[32];
    ask_redis(&server, bytes, sizeof bytes, 3,
              (const char *[]){"HGET", "shoal:{test}:meta", "bytes"});
    assert_string_equal(bytes, "10");
    ASK(a, jobs_list(store, 0, 10, on_answer, &a));
    assert_int_equal(a.reply.n_jobs, 0); /* nobody sees an upload */
    jobs_submit_t submit = {.job = J2, .upload = J1, .total = 3, .deployment = "m"};
    ASK(a, jobs_submit(store, &submit, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_CONFLICT);
    submit.total = 2;
    ASK(a, jobs_submit(store, &submit, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    ASK(a, jobs_submit(store, &submit, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_DUP);
    assert_string_equal(a.reply.jobs[0].id, J2);
    submit.job = J3;
    ASK(a, jobs_submit(store, &submit, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_NOT_FOUND);
}

static void test_an_idempotency_key_stands_for_one_job(void **state)
{
    (void)state;
    jobs_submit_t how = {.idempotency_key = "k", .body_hash = "aaa", .tenant = "t"};
    make_job(store, J1, 1, &how);
    jobs_body_t body = {(const uint8_t *)"x", 1};
    ASK(a, jobs_put(store, J2, 0, 1, &body, 5, on_answer, &a));
    how.job = J2;
    how.upload = J2;
    how.total = 1;
    how.deployment = "m";
    how.body_hash = "bbb";
    ASK(a, jobs_submit(store, &how, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_CONFLICT);
    how.body_hash = "aaa";
    ASK(a, jobs_submit(store, &how, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_DUP);
    assert_string_equal(a.reply.jobs[0].id, J1);
    /* The second upload is forgotten with its reservation. */
    assert_int_equal(REDIS(&server, "EXISTS", "shoal:{test}:items:" J2), 0);
    /* Another tenant's key is another key, and so is the same one after the job is deleted. */
    ASK(a, jobs_delete(store, J1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    how.upload = how.job = NULL;
    make_job(store, J3, 1, &how);
}

static void test_a_claim_repeated_with_its_nonce_returns_the_same_items(void **state)
{
    (void)state;
    make_job(store, J1, 10, NULL);
    assert_int_equal(claim(p1, 5, 4), 4);
    assert_int_equal(claim(p1, 5, 4), 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(a.reply.items[i].index, i);
    assert_int_equal(complete(J1, 1, p1, 1, "r"), JOBS_OK);
    assert_int_equal(claim(p1, 5, 4), 3); /* the finished one is no longer held */
    ASK(a, jobs_claim(store, "m", 4, p1, 4, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_STALE);
    assert_int_equal(claim(p2, 1, 100), 6);
}

static void test_returned_items_come_first_with_a_higher_attempt(void **state)
{
    (void)state;
    make_job(store, J1, 6, NULL);
    assert_int_equal(claim(p1, 1, 3), 3);
    assert_int_equal(release(J1, 1, p1, 1), JOBS_OK);
    assert_int_equal(release(J1, 1, p1, 1), JOBS_OK);
    assert_int_equal(get(J1).running, 2);
    assert_int_equal(complete(J1, 1, p1, 1, "late"), JOBS_STALE);
    assert_int_equal(claim(p2, 1, 2), 2);
    assert_int_equal(a.reply.items[0].index, 1);
    assert_int_equal(a.reply.items[0].attempt, 2);
    assert_int_equal(a.reply.items[1].index, 3);
    assert_int_equal(release(J1, 1, p1, 1), JOBS_STALE);
    assert_int_equal(complete(J1, 1, p1, 1, "late"), JOBS_STALE);
    assert_int_equal(complete(J1, 1, p1, 2, "guess"), JOBS_STALE);
    assert_int_equal(complete(J1, 1, p2, 2, "right"), JOBS_OK);
    assert_int_equal(complete(J1, 1, p2, 2, "again"), JOBS_DUP);
    assert_int_equal(a.reply.n_results, 1);
    assert_memory_equal(a.reply.results[0].record, "right", 5);
    assert_int_equal(a.reply.results[0].attempts, 2);
    assert_int_equal(complete(J1, 1, p1, 1, "late"), JOBS_DUP);
    assert_int_equal(release(J1, 1, p2, 2), JOBS_DUP);
    assert_int_equal(complete(J1, 77, p1, 1, "none"), JOBS_INVALID);
    /* Not even the same process may commit an earlier attempt of its own. */
    assert_int_equal(release(J1, 3, p2, 1), JOBS_OK);
    assert_int_equal(claim(p2, 7, 1), 1);
    assert_int_equal(a.reply.items[0].attempt, 2);
    assert_int_equal(complete(J1, 3, p2, 1, "earlier"), JOBS_STALE);
    /* The last returned item of a job whose cursor is at the end is still found. */
    assert_int_equal(claim(p2, 8, 100), 2);
    assert_int_equal(release(J1, 5, p2, 1), JOBS_OK);
    assert_int_equal(claim(p1, 2, 100), 1);
    assert_int_equal(a.reply.items[0].index, 5);
}

static void test_cancel_ends_every_item_at_one_stroke_and_once(void **state)
{
    (void)state;
    make_job(store, J1, 5, NULL);
    assert_int_equal(claim(p1, 1, 3), 3);
    assert_int_equal(complete(J1, 1, p1, 1, "done"), JOBS_OK);
    uint64_t version = get(J1).version;
    for (int i = 0; i < 2; i++) {
        ASK(a, jobs_cancel(store, J1, on_answer, &a));
        assert_int_equal(a.reply.code, JOBS_OK);
        assert_int_equal(a.reply.jobs[0].state, JOBS_STATE_CANCELLED);
        assert_int_equal(a.reply.jobs[0].cancelled, 4);
        assert_int_equal(a.reply.jobs[0].succeeded, 1);
        assert_int_equal(a.reply.jobs[0].running, 0);
    }
    jobs_seen_t seen[] = {{J1, version}, {J2, 0}};
    ASK(a, jobs_poll(store, 2, seen, on_answer, &a));
    assert_int_equal(a.reply.n_jobs, 2);
    assert_int_equal(a.reply.jobs[0].state, JOBS_STATE_CANCELLED);
    assert_int_equal(a.reply.jobs[1].state, JOBS_STATE_NONE);
    assert_int_equal(complete(J1, 0, p1, 1, "too late"), JOBS_DUP);
    assert_int_equal(a.reply.results[0].end, JOBS_END_CANCELLED);
    assert_int_equal(release(J1, 2, p1, 1), JOBS_DUP);
    assert_int_equal(claim(p1, 2, 9), 0);
    /* Each of the five items has exactly one record over pages of two. */
    unsigned met = 0;
    uint64_t after = 0;
    for (int page = 0; page < 3; page++) {
        ASK(a, jobs_results(store, J1, after, 2, on_answer, &a));
        for (size_t i = 0; i < a.reply.n_results; i++) {
            const jobs_result_t *r = &a.reply.results[i];
            assert_int_equal(r->completion, ++after);
            assert_false(met & 1u << r->index);
            met |= 1u << r->index;
            assert_int_equal(r->end, r->index == 1 ? JOBS_END_OK : JOBS_END_CANCELLED);
            assert_true(r->index == 1 || r->body_bytes == 6);
        }
    }
    assert_int_equal(met, 31);
    ASK(a, jobs_results(store, J1, 5, 2, on_answer, &a));
    assert_int_equal(a.reply.n_results, 0);
    assert_int_equal(a.reply.jobs[0].cancelled, 4);
}

static void test_a_deadline_ends_a_job_by_redis_own_clock(void **state)
{
    (void)state;
    make_job(store, J1, 2, &(jobs_submit_t){.deadline_ms = 60});
    make_job(store, J2, 2, &(jobs_submit_t){.deadline_ms = 3600000});
    make_job(store, J3, 1, &(jobs_submit_t){.deadline_ms = 60});
    assert_int_equal(claim(p1, 1, 1), 1);
    assert_true(a.reply.items[0].deadline_left_ms <= 60);
    while (get(J1).deadline_ms >= (uint64_t)time(NULL) * 1000)
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    /* Nobody has called expire: the commit itself judges, and so does the claim. */
    assert_int_equal(complete(J1, 0, p1, 1, "late"), JOBS_DUP);
    assert_int_equal(a.reply.results[0].end, JOBS_END_EXPIRED);
    assert_int_equal(get(J1).state, JOBS_STATE_EXPIRED);
    assert_int_equal(get(J1).expired, 2);
    ASK(a, jobs_expire(store, on_answer, &a));
    assert_int_equal(a.reply.number, 1);
    assert_int_equal(get(J3).state, JOBS_STATE_EXPIRED);
    ASK(a, jobs_cancel(store, J3, on_answer, &a));
    assert_int_equal(a.reply.jobs[0].state, JOBS_STATE_EXPIRED);
    assert_int_equal(claim(p1, 2, 9), 2);
    assert_string_equal(a.reply.items[0].job, J2);
}

static void test_a_dead_process_gives_back_all_and_claims_no_more(void **state)
{
    (void)state;
    make_job(store, J1, 1500, NULL);
    assert_int_equal(claim(p1, 1, 1000), 1000);
    assert_int_equal(claim(p1, 2, 500), 500);
    ASK(a, jobs_processes(store, on_answer, &a));
    assert_int_equal(a.reply.n_processes, 1);
    assert_int_equal(a.reply.processes[0].revision, 501);
    ASK(a, jobs_release_process(store, 40, p1, on_answer, &a));
    assert_int_equal(a.reply.number, 500);
    ASK(a, jobs_claim(store, "m", 1, p1, 3, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_STALE);
    ASK(a, jobs_release_process(store, 39, p1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_FENCED);
    ASK(a, jobs_release_process(store, 41, p1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    assert_int_equal(a.reply.number, 0);
    assert_int_equal(get(J1).running, 0);
    ASK(a, jobs_processes(store, on_answer, &a));
    assert_int_equal(a.reply.n_processes, 0);
    assert_int_equal(claim(p2, 1, 1000), 1000);
    assert_int_equal(a.reply.items[0].attempt, 2);
    uint64_t index = a.reply.items[0].index;
    assert_int_equal(complete(J1, index, p1, 1, "ghost"), JOBS_STALE);
}

static void test_an_adopting_process_keeps_its_attempts(void **state)
{
    (void)state;
    make_job(store, J1, 3, NULL);
    assert_int_equal(claim(p1, 1, 3), 3);
    for (int i = 0; i < 2; i++) {
        ASK(a, jobs_adopt(store, p1, p2, on_answer, &a));
        assert_int_equal(a.reply.code, JOBS_OK);
        assert_int_equal(a.reply.number, 0);
    }
    ASK(a, jobs_release_process(store, 40, p1, on_answer, &a));
    assert_int_equal(get(J1).running, 3);
    ASK(a, jobs_mine(store, p2, 0, on_answer, &a));
    assert_int_equal(a.reply.n_items, 3);
    assert_memory_equal(a.reply.items[0].body, "body ", 5);
    assert_int_equal(complete(J1, 0, p1, 1, "old name"), JOBS_STALE);
    assert_int_equal(complete(J1, 0, p2, 1, "new name"), JOBS_OK);
    ASK(a, jobs_adopt(store, p2, p1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_STALE); /* p1 ended by being adopted away */
}

static void test_deaths_count_once_for_each_epoch_over_all_attempts(void **state)
{
    (void)state;
    make_job(store, J1, 1, NULL);
    assert_int_equal(claim(p1, 1, 1), 1);
    jobs_claim_t c = {J1, 0, p1, 1};
    for (int i = 0; i < 2; i++)
        assert_int_equal(ASK(a, jobs_note_death(store, &c, 77, on_answer, &a))->number, 1);
    assert_int_equal(ASK(a, jobs_note_death(store, &c, 78, on_answer, &a))->number, 2);
    assert_int_equal(release(J1, 0, p1, 1), JOBS_OK);
    assert_int_equal(ASK(a, jobs_note_death(store, &c, 79, on_answer, &a))->code, JOBS_STALE);
    assert_int_equal(claim(p2, 1, 1), 1);
    assert_int_equal(a.reply.items[0].deaths, 2);
    c = (jobs_claim_t){J1, 0, p2, 2};
    assert_int_equal(ASK(a, jobs_note_death(store, &c, 79, on_answer, &a))->number, 3);
}

static void test_the_queue_goes_by_priority_then_by_tokens_served(void **state)
{
    (void)state;
    make_job(store, J1, 10, &(jobs_submit_t){.tenant = "a", .item_tokens = 10});
    make_job(store, J2, 10, &(jobs_submit_t){.tenant = "b", .item_tokens = 10});
    make_job(store, J3, 2, &(jobs_submit_t){.tenant = "a", .priority = 7});
    assert_int_equal(claim(p1, 1, 6), 6);
    size_t of[4] = {0};
    for (size_t i = 0; i < 6; i++)
        of[a.reply.items[i].job[0] - '0']++;
    assert_string_equal(a.reply.items[0].job, J3);
    assert_int_equal(of[3], 2);
    assert_int_equal(of[1], 2);
    assert_int_equal(of[2], 2); /* charged as they are claimed, so one claim is fair already */
    /* A long answer is charged when it is known: the other tenant then catches up. */
    jobs_claim_t c = {J1, 0, p1, 1};
    ASK(a, jobs_complete(store, &c, (jobs_tokens_t){20, 40, 0}, NULL, 0, on_answer, &a));
    assert_int_equal(claim(p1, 2, 5), 5);
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(a.reply.items[i].job, J2);
}

static void test_deleting_a_job_leaves_no_key_and_frees_its_space(void **state)
{
    (void)state;
    long long before = REDIS(&server, "DBSIZE");
    make_job(store, J1, 5, &(jobs_submit_t){.idempotency_key = "k", .deadline_ms = 100000});
    assert_int_equal(claim(p1, 1, 3), 3);
    assert_int_equal(release(J1, 0, p1, 1), JOBS_OK);
    assert_int_equal(complete(J1, 1, p1, 1, "r"), JOBS_OK);
    ASK(a, jobs_delete(store, J1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    ASK(a, jobs_delete(store, J1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_NOT_FOUND);
    assert_int_equal(complete(J1, 2, p1, 1, "r"), JOBS_NOT_FOUND);
    assert_int_equal(release(J1, 2, p1, 1), JOBS_NOT_FOUND);
    ASK(a, jobs_release_process(store, 9, p1, on_answer, &a));
    assert_int_equal(a.reply.number, 0);
    char bytes[32];
    ask_redis(&server, bytes, sizeof bytes, 3,
              (const char *[]){"HGET", "shoal:{test}:meta", "bytes"});
    assert_string_equal(bytes, "0");
    /* What is left: the mark that p1 ended, and what its tenant was served. */
    assert_int_equal(REDIS(&server, "DBSIZE"), before + 2);
}

static void test_lists_are_newest_first_and_paged(void **state)
{
    (void)state;
    make_job(store, J1, 1, NULL);
    make_job(store, J2, 1, NULL);
    make_job(store, J3, 1, NULL);
    ASK(a, jobs_list(store, 0, 2, on_answer, &a));
    assert_int_equal(a.reply.n_jobs, 2);
    assert_string_equal(a.reply.jobs[0].id, J3);
    uint64_t before = a.reply.jobs[1].sequence;
    ASK(a, jobs_list(store, before, 2, on_answer, &a));
    assert_int_equal(a.reply.n_jobs, 1);
    assert_string_equal(a.reply.jobs[0].id, J1);
}

static int group_begin(void **state)
{
    (void)state;
    server_start(&server);
    return 0;
}

static int group_end(void **state)
{
    (void)state;
    server_remove(&server);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fresh, finish)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_job_runs_from_submission_to_its_last_result),
        TEST(test_the_number_of_queued_jobs_follows_each_of_their_ways_out),
        TEST(test_a_repeated_put_adds_nothing_and_a_gap_is_refused),
        TEST(test_an_idempotency_key_stands_for_one_job),
        TEST(test_a_claim_repeated_with_its_nonce_returns_the_same_items),
        TEST(test_returned_items_come_first_with_a_higher_attempt),
        TEST(test_cancel_ends_every_item_at_one_stroke_and_once),
        TEST(test_a_deadline_ends_a_job_by_redis_own_clock),
        TEST(test_a_dead_process_gives_back_all_and_claims_no_more),
        TEST(test_an_adopting_process_keeps_its_attempts),
        TEST(test_deaths_count_once_for_each_epoch_over_all_attempts),
        TEST(test_the_queue_goes_by_priority_then_by_tokens_served),
        TEST(test_deleting_a_job_leaves_no_key_and_frees_its_space),
        TEST(test_lists_are_newest_first_and_paged),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
