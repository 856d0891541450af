/* What a traced queue writes about its ops. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "support.h"

enum { N = 96, K = 64, ROWS = 8 };

typedef struct {
    fixture_t f;
    kbatch_t *batch;
    kweight_t *weight;
    kref_t x, input, out;
} layer_t;

static layer_t open_layer(kqueue_kind_t kind, uint32_t threads)
{
    layer_t l = {.f = open_fixture(NULL, threads, KMODE_NATIVE, kind)};
    random_t random = {7};
    size_t bytes;
    uint8_t *rows = make_rows(&random, QTYPE_Q8_0, N, K, &bytes);
    uint32_t edges[] = {0, K};
    kweight_part_t part = {.qtype = QTYPE_Q8_0, .rows = rows, .bytes = bytes, .n_rows = N};
    kweight_spec_t spec = {.name = "w", .parts = &part, .n_parts = 1, .k_total = K,
                           .leaf_edges = edges, .n_leaves = 1, .leaf_end = 1};
    assert_ok(l.f.ops->weight_pack(l.f.device, &spec, &l.weight));
    free(rows);
    assert_ok(l.f.ops->batch_new(l.f.device, ROWS, 0, &l.batch));
    assert_ok(l.f.ops->batch_set_plain(l.f.queue, l.batch, ROWS));
    float *x = make_input(&random, ROWS, K);
    l.x = ref_of(&l.f, x, ROWS * K * sizeof *x);
    free(x);
    l.input = new_ref(&l.f, ROWS * l.f.ops->weight_info(l.weight).input_row_bytes);
    l.out = new_ref(&l.f, ROWS * N * sizeof(float));
    wait_all(&l.f);
    return l;
}

static void close_layer(layer_t *l)
{
    release_ref(&l->f, l->x);
    release_ref(&l->f, l->input);
    release_ref(&l->f, l->out);
    l->f.ops->weight_release(l->weight);
    l->f.ops->batch_release(l->batch);
    close_fixture(&l->f);
}

static status_t label_call(void *arg)
{
    trace_t *trace = arg;
    trace->label = "send of something";
    trace->label_bytes = 77;
    return STATUS_OK;
}

static void run_ops(layer_t *l, trace_t *trace)
{
    const kernel_ops_t *ops = l->f.ops;
    assert_ok(ops->quantize(l->f.queue, l->batch, l->weight, l->x, K, l->input));
    assert_ok(ops->matmul(l->f.queue, l->batch, l->weight, l->input, l->out));
    assert_ok(ops->host_call(l->f.queue, label_call, trace));
    wait_all(&l->f);
}

static void test_each_op_is_one_event_in_order_with_its_size(void **state)
{
    (void)state;
    for (int kind = KQUEUE_NOW; kind <= KQUEUE_LATE; kind++)
        for (uint32_t threads = 1; threads <= 2; threads++) {
            layer_t l = open_layer((kqueue_kind_t)kind, threads);
            trace_t *trace = trace_new(16);
            trace->step = 5;
            l.f.ops->queue_trace(l.f.queue, trace);
            uint64_t begin_ns = clock_ns();
            run_ops(&l, trace);
            uint64_t end_ns = clock_ns();
            const char *const names[] = {"quantize", "matmul", "send of something"};
            assert_int_equal(trace_count(trace), 3);
            for (uint32_t i = 0; i < 3; i++) {
                const trace_event_t *e = trace_at(trace, i);
                assert_string_equal(e->op, names[i]);
                assert_int_equal(e->step, 5);
                assert_true(begin_ns <= e->begin_ns && e->begin_ns <= e->end_ns);
                assert_in_range(e->threads, 1, threads);
                assert_true(e->busy_ns <= threads * (e->end_ns - e->begin_ns));
                begin_ns = e->end_ns;
            }
            assert_true(begin_ns <= end_ns);
            const trace_event_t *matmul = trace_at(trace, 1);
            assert_int_equal(matmul->rows, ROWS);
            assert_int_equal(matmul->n, N);
            assert_int_equal(matmul->k, K);
            assert_int_equal(matmul->operations, 2 * ROWS * N * K);
            assert_true(matmul->bytes >= N * K && matmul->busy_ns > 0);
            assert_int_equal(trace_at(trace, 2)->bytes, 77);
            l.f.ops->queue_trace(l.f.queue, NULL);
            run_ops(&l, trace);
            assert_int_equal(trace_count(trace), 3); /* nothing more is written */
            trace_free(trace);
            close_layer(&l);
        }
}

static void test_a_full_ring_keeps_the_newest_events_in_order(void **state)
{
    (void)state;
    trace_t *trace = trace_new(4);
    for (uint64_t i = 0; i < 11; i++) {
        trace_add(trace, &(trace_event_t){.op = "x", .begin_ns = i});
        assert_int_equal(trace_count(trace), i < 4 ? i + 1 : 4);
    }
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(trace_at(trace, i)->begin_ns, 7 + i);
    trace_free(trace);
}

static void test_peaks_are_measured_on_levels_with_vectors(void **state)
{
    (void)state;
    const char *names[KLEVELS_MAX];
    uint32_t n = kernels_cpu_levels(names);
    for (uint32_t i = 0; i < n; i++) {
        fixture_t f = open_fixture(names[i], 1, KMODE_NATIVE, KQUEUE_NOW);
        kpeak_t peak;
        assert_ok(f.ops->device_peak(f.device, &peak));
        bool plain = strcmp(names[i], "ref") == 0;
        assert_true(plain == (peak.int8_gops <= 0) && plain == (peak.read_gb <= 0));
        /* A unit of integers is never slower than one of F32. */
        assert_true(plain || peak.int8_gops > peak.bf16_gflops);
        close_fixture(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_op_is_one_event_in_order_with_its_size),
        cmocka_unit_test(test_a_full_ring_keeps_the_newest_events_in_order),
        cmocka_unit_test(test_peaks_are_measured_on_levels_with_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
