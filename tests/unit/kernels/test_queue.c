/* The asynchronous contract, the batch's checks and row errors. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { N = 40 };

static float read_float(const fixture_t *f, kref_t ref)
{
    return ((const float *)f->ops->buffer_host(ref.buffer))[ref.offset / 4];
}

static status_t count_call(void *arg)
{
    ++*(int *)arg;
    return STATUS_OK;
}

static void test_a_late_queue_does_nothing_before_the_wait_and_the_same_after_it(void **state)
{
    (void)state;
    float x[3 * N], ones[N];
    for (uint32_t i = 0; i < 3 * N; i++)
        x[i] = (float)i - 7.5f;
    for (uint32_t i = 0; i < N; i++)
        ones[i] = 1.0f;
    float wanted[3 * N], found[3 * N];
    for (int kind = KQUEUE_NOW; kind <= KQUEUE_LATE; kind++) {
        fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, (kqueue_kind_t)kind);
        kbatch_t *batch = NULL;
        assert_ok(f.ops->batch_new(f.device, 8, 0, &batch));
        assert_ok(f.ops->batch_set_plain(f.queue, batch, 3));
        kref_t in = ref_of(&f, x, sizeof x), weight = ref_of(&f, ones, sizeof ones);
        wait_all(&f);
        int calls = 0;
        tree_run_t run = {0, 1};
        ktree_add_t add = {.n_leaves = 1, .runs = &run, .partials = &in, .n_ranks = 1};
        /* In place, twice: what the buffer held before the poison must come back first. */
        assert_ok(f.ops->bias_add(f.queue, batch, N, in, N, weight));
        assert_ok(f.ops->tree_add(f.queue, batch, N, &add, in, in));
        assert_ok(f.ops->host_call(f.queue, count_call, &calls));
        assert_ok(f.ops->rmsnorm(f.queue, batch, N, in, weight, 1e-5f, in));
        assert_ok(f.ops->copy_out(f.queue, found, in, sizeof found));
        assert_int_equal(calls, kind == KQUEUE_NOW);
        if (kind == KQUEUE_LATE) {
            assert_true(isnan(read_float(&f, in)));
            assert_true(isnan(found[5]));
        }
        wait_all(&f);
        assert_int_equal(calls, 1);
        if (kind == KQUEUE_NOW)
            memcpy(wanted, found, sizeof wanted);
        assert_same_bits(found, wanted, 3 * N, "late");
        assert_true(isfinite(found[5]) && found[5] != x[5]);
        release_ref(&f, in);
        release_ref(&f, weight);
        f.ops->batch_release(batch);
        close_fixture(&f);
    }
}

static status_t failing_call(void *arg)
{
    (void)arg;
    return fail(STATUS_PEER_LOST, "rank 3 is gone");
}

static void test_a_failed_host_call_stops_the_queue_until_it_is_reset(void **state)
{
    (void)state;
    for (int kind = KQUEUE_NOW; kind <= KQUEUE_LATE; kind++) {
        fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, (kqueue_kind_t)kind);
        int calls = 0;
        kevent_t event;
        assert_ok(f.ops->host_call(f.queue, failing_call, NULL));
        assert_ok(f.ops->host_call(f.queue, count_call, &calls));
        assert_ok(f.ops->event_record(f.queue, &event));
        assert_int_equal(f.ops->event_wait(f.queue, event), STATUS_PEER_LOST);
        assert_string_equal(status_text(), "rank 3 is gone");
        assert_int_equal(f.ops->event_wait(f.queue, event), STATUS_PEER_LOST);
        assert_int_equal(calls, 0);
        f.ops->queue_reset(f.queue);
        assert_ok(f.ops->host_call(f.queue, count_call, &calls));
        wait_all(&f);
        assert_int_equal(calls, 1);
        assert_int_equal(f.ops->event_wait(f.queue, event + 5), STATUS_INVALID);
        close_fixture(&f);
    }
}

static void test_arrays_of_a_late_queue_are_copied_at_the_call(void **state)
{
    (void)state;
    fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_LATE);
    float x[] = {1, 2, 3, 4}, table[] = {10, 11, 20, 21, 30, 31};
    uint32_t rows[] = {3, 1}, blocks[] = {0};
    kref_t in = ref_of(&f, x, sizeof x), out = new_ref(&f, 8), embedded = new_ref(&f, 16);
    x[3] = x[1] = 0;
    assert_ok(f.ops->gather_rows(f.queue, out, in, rows, 2, 4));
    rows[0] = rows[1] = 0;
    ktable_t *lookup = NULL;
    assert_ok(f.ops->table_open(f.device, QTYPE_F32, table, sizeof table, 3, 2, &lookup));
    kbatch_t *batch = NULL;
    assert_ok(f.ops->batch_new(f.device, 4, 4, &batch));
    kbatch_row_t tokens[] = {{2, 0, 0}, {1, 1, 0}};
    kbatch_table_t one = {blocks, 1};
    assert_ok(f.ops->batch_set(f.queue, batch, tokens, 2, &one, 1));
    assert_ok(f.ops->embed(f.queue, batch, lookup, embedded));
    /* The same batch again: the earlier embed still means the earlier rows. */
    tokens[0].token = tokens[1].token = 0;
    assert_ok(f.ops->batch_set(f.queue, batch, tokens, 1, &one, 1));
    one.n_blocks = 0;
    wait_all(&f);
    const float *y = f.ops->buffer_host(out.buffer);
    assert_true(y[0] == 4 && y[1] == 2);
    const float *e = f.ops->buffer_host(embedded.buffer);
    assert_true(e[0] == 30 && e[1] == 31 && e[2] == 20 && e[3] == 21);
    f.ops->table_close(lookup);
    f.ops->batch_release(batch);
    release_ref(&f, in);
    release_ref(&f, out);
    release_ref(&f, embedded);
    close_fixture(&f);
}

static void test_wrong_arguments_are_refused_at_the_call(void **state)
{
    (void)state;
    fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
    kbatch_t *batch = NULL;
    assert_int_equal(f.ops->batch_new(f.device, 0, 1, &batch), STATUS_INVALID);
    assert_ok(f.ops->batch_new(f.device, 4, 4, &batch));
    uint32_t blocks[] = {0, 1, 2, 3, 4};
    kbatch_table_t table = {blocks, 1}, long_table = {blocks, 5};
    kbatch_row_t far = {0, 16, 0}, stranger = {0, 0, 1}, gap[] = {{0, 0, 0}, {0, 2, 0}};
    assert_int_equal(f.ops->batch_set(f.queue, batch, &far, 1, &table, 1), STATUS_INVALID);
    assert_int_equal(f.ops->batch_set(f.queue, batch, &stranger, 1, &table, 1), STATUS_INVALID);
    assert_int_equal(f.ops->batch_set(f.queue, batch, gap, 2, &table, 1), STATUS_INVALID);
    assert_int_equal(f.ops->batch_set(f.queue, batch, gap, 1, &long_table, 1), STATUS_INVALID);
    assert_int_equal(f.ops->batch_set_plain(f.queue, batch, 5), STATUS_INVALID);
    assert_ok(f.ops->batch_set_plain(f.queue, batch, 4));
    kref_t small = new_ref(&f, 4 * N * 4 - 4);
    kref_t none = {0};
    assert_int_equal(f.ops->rmsnorm(f.queue, batch, N, small, small, 1e-5f, small), STATUS_INVALID);
    assert_int_equal(f.ops->copy_in(f.queue, none, blocks, 4), STATUS_INVALID);
    small.offset = 1;
    assert_int_equal(f.ops->copy_in(f.queue, small, blocks, 4), STATUS_INVALID);
    ktable_t *lookup = NULL;
    assert_int_equal(f.ops->table_open(f.device, QTYPE_Q8_0, blocks, 20, 1, 32, &lookup),
                     STATUS_INVALID);
    assert_int_equal(f.ops->table_open(f.device, QTYPE_Q8_K, blocks, 20, 1, 256, &lookup),
                     STATUS_UNSUPPORTED);
    kkv_t *kv = NULL;
    kkv_shape_t shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 63, .n_blocks = 1};
    assert_int_equal(f.ops->kv_open(f.device, &shape, &kv), STATUS_UNSUPPORTED);
    kkv_shape_t latent = {.n_layers = 1, .n_kv_heads = 1, .key_dim = 64, .value_dim = 32,
                          .values_in_keys = true, .n_blocks = 1, .type = KKV_INT8};
    assert_int_equal(f.ops->kv_open(f.device, &latent, &kv), STATUS_UNSUPPORTED);
    release_ref(&f, small);
    f.ops->batch_release(batch);
    close_fixture(&f);
}

static void test_a_token_or_block_outside_its_range_fails_the_queue(void **state)
{
    (void)state;
    fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
    kbatch_t *batch = NULL;
    assert_ok(f.ops->batch_new(f.device, 4, 4, &batch));
    float table[] = {1, 2};
    ktable_t *lookup = NULL;
    assert_ok(f.ops->table_open(f.device, QTYPE_F32, table, sizeof table, 1, 2, &lookup));
    uint32_t blocks[] = {7};
    kbatch_table_t one = {blocks, 1};
    kbatch_row_t row = {1, 0, 0};
    kref_t out = new_ref(&f, 64);
    kevent_t event;
    assert_ok(f.ops->batch_set(f.queue, batch, &row, 1, &one, 1));
    assert_ok(f.ops->embed(f.queue, batch, lookup, out));
    assert_ok(f.ops->event_record(f.queue, &event));
    assert_int_equal(f.ops->event_wait(f.queue, event), STATUS_INVALID);
    f.ops->queue_reset(f.queue);
    kkv_t *kv = NULL;
    kkv_shape_t shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 2, .n_blocks = 7};
    assert_ok(f.ops->kv_open(f.device, &shape, &kv));
    assert_ok(f.ops->kv_append(f.queue, batch, kv, 0, out, out, 2));
    assert_ok(f.ops->event_record(f.queue, &event));
    assert_int_equal(f.ops->event_wait(f.queue, event), STATUS_INVALID);
    f.ops->kv_close(kv);
    f.ops->table_close(lookup);
    f.ops->batch_release(batch);
    release_ref(&f, out);
    close_fixture(&f);
}

static void test_a_row_error_spoils_its_own_row_wholly_and_no_other(void **state)
{
    (void)state;
    static const qtype_t types[] = {QTYPE_Q8_0, QTYPE_Q4_1, QTYPE_BF16, QTYPE_F32};
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    for (uint32_t v = 0; v < n_levels * 4; v++) {
        fixture_t f = open_fixture(levels[v / 4], 1, KMODE_NATIVE, KQUEUE_NOW);
        random_t random = {v};
        size_t bytes;
        uint8_t *data = make_rows(&random, types[v % 4], N, 64, &bytes);
        kweight_part_t part = {.qtype = types[v % 4], .rows = data, .bytes = bytes, .n_rows = N};
        uint32_t edges[] = {0, 64};
        kweight_spec_t spec = {.name = "w",
                               .parts = &part,
                               .n_parts = 1,
                               .k_total = 64,
                               .leaf_edges = edges,
                               .n_leaves = 1,
                               .leaf_end = 1};
        kweight_t *weight = NULL;
        assert_ok(f.ops->weight_pack(f.device, &spec, &weight));
        float x[3][64];
        for (uint32_t i = 0; i < 3 * 64; i++)
            x[i / 64][i % 64] = random_normal(&random);
        x[1][17] = v % 2 ? NAN : -INFINITY;
        kbatch_t *batch = NULL;
        assert_ok(f.ops->batch_new(f.device, 4, 0, &batch));
        assert_ok(f.ops->batch_set_plain(f.queue, batch, 3));
        kref_t in = ref_of(&f, x, sizeof x), out = new_ref(&f, 3 * N * 4);
        kref_t input = new_ref(&f, 3 * f.ops->weight_info(weight).input_row_bytes);
        assert_ok(f.ops->quantize(f.queue, batch, weight, in, 64, input));
        assert_ok(f.ops->matmul(f.queue, batch, weight, input, out));
        wait_all(&f);
        uint8_t flags[3];
        assert_int_equal(f.ops->batch_row_errors(batch, flags), 1);
        assert_int_equal(flags[1], 1);
        const float *y = f.ops->buffer_host(out.buffer);
        for (uint32_t i = 0; i < 3 * N; i++)
            assert_int_equal(isnan(y[i]) != 0, i / N == 1);
        assert_ok(f.ops->batch_set_plain(f.queue, batch, 3));
        assert_int_equal(f.ops->batch_row_errors(batch, NULL), 0);
        f.ops->weight_release(weight);
        f.ops->batch_release(batch);
        release_ref(&f, in);
        release_ref(&f, input);
        release_ref(&f, out);
        free(data);
        close_fixture(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_late_queue_does_nothing_before_the_wait_and_the_same_after_it),
        cmocka_unit_test(test_a_failed_host_call_stops_the_queue_until_it_is_reset),
        cmocka_unit_test(test_arrays_of_a_late_queue_are_copied_at_the_call),
        cmocka_unit_test(test_wrong_arguments_are_refused_at_the_call),
        cmocka_unit_test(test_a_token_or_block_outside_its_range_fails_the_queue),
        cmocka_unit_test(test_a_row_error_spoils_its_own_row_wholly_and_no_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
