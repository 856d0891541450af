/* Session pointers, and which cluster a Redis belongs to, against a real Redis. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "tests/unit/jobs/rig.h"

#include <cmocka.h>

#define J1 "11111111111111111111111111111111"

static server_t server;
static jobs_store_t *store;
static answer_t a;

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

static void test_session_pointers_are_taken_by_one(void **state)
{
    (void)state;
    const uint8_t *x = (const uint8_t *)"x", *y = (const uint8_t *)"y";
    ASK(a, jobs_req_get(store, J1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_NOT_FOUND);
    ASK(a, jobs_req_put(store, J1, 1, x, 1, 60000, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    ASK(a, jobs_req_take(store, J1, 1, y, 1, 60000, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_OK);
    assert_int_equal(a.reply.number, 2);
    ASK(a, jobs_req_take(store, J1, 1, x, 1, 60000, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_CONFLICT);
    assert_int_equal(a.reply.number, 2);
    assert_memory_equal(a.reply.pointer, "y", 1);
    ASK(a, jobs_req_put(store, J1, 1, x, 1, 60000, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_STALE);
    ASK(a, jobs_req_drop(store, J1, 1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_STALE);
    ASK(a, jobs_req_get(store, J1, on_answer, &a));
    assert_int_equal(a.reply.number, 2);
    assert_true(REDIS(&server, "PTTL", "shoal:{test}:req:" J1) > 50000);
    uint8_t big[JOBS_POINTER_BYTES_MAX + 1] = {0};
    assert_int_equal(jobs_req_put(store, J1, 9, big, sizeof big, 1, on_answer, &a), STATUS_INVALID);
    ASK(a, jobs_req_drop(store, J1, 2, on_answer, &a));
    ASK(a, jobs_req_get(store, J1, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_NOT_FOUND);
}

static void test_a_strange_or_emptied_store_is_named_and_refused_until_adopted(void **state)
{
    (void)state;
    make_job(store, J1, 1, NULL);
    ASK(a, jobs_meta_check(store, UUID, 1, 99, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_WRONG_STORE);
    assert_non_null(strstr(a.reply.message, "etcd was restored"));
    ASK(a, jobs_meta_check(store, "ffff", 1, 200, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_WRONG_STORE);
    ASK(a, jobs_meta_check(store, UUID, 2, 200, on_answer, &a));
    assert_non_null(strstr(a.reply.message, "redis was restored"));
    ASK(a, jobs_meta_check(store, UUID, 1, 200, on_answer, &a));
    assert_int_equal(a.reply.meta.revision, 200);
    assert_true(a.reply.meta.confirmed);
    jobs_store_set_cluster(store, "ffffffffffffffffffffffffffffffff", 1);
    assert_int_equal(ASK(a, jobs_get(store, J1, on_answer, &a))->code, JOBS_WRONG_STORE);
    jobs_store_set_cluster(store, UUID, 1);
    REDIS(&server, "FLUSHALL");
    assert_int_equal(ASK(a, jobs_get(store, J1, on_answer, &a))->code, JOBS_WRONG_STORE);
    assert_non_null(strstr(a.reply.message, "emptied"));
    ASK(a, jobs_meta_check(store, UUID, 1, 300, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_WRONG_STORE);
    assert_non_null(strstr(a.reply.message, "shoal adopt redis"));
    for (int i = 0; i < 2; i++) {
        ASK(a, jobs_meta_adopt(store, UUID, 2, 300, on_answer, &a));
        assert_int_equal(a.reply.code, JOBS_OK);
    }
    ASK(a, jobs_meta_adopt(store, UUID, 1, 300, on_answer, &a));
    assert_int_equal(a.reply.code, JOBS_CONFLICT);
    assert_int_equal(ASK(a, jobs_get(store, J1, on_answer, &a))->code, JOBS_WRONG_STORE);
    jobs_store_set_cluster(store, UUID, 2);
    assert_int_equal(ASK(a, jobs_get(store, J1, on_answer, &a))->code, JOBS_NOT_FOUND);
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
        TEST(test_session_pointers_are_taken_by_one),
        TEST(test_a_strange_or_emptied_store_is_named_and_refused_until_adopted),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
