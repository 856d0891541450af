/* V4's parts: the compressor's entries against F64, attention over a window and compressed entries
 * together, and hyper-connections; every level and chunking with one set of bits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/pages.h"
#include "support.h"

/* ---- compressor, and attention over what it makes ---- */

enum { C_DIM = 48, C_HEADS = 3, ROPE_DIM = 16, C_WINDOW = 40 };

typedef struct {
    uint32_t n, rate;
    bool overlap, lists;
    float *x, *qkv; /* [n][2 width], [n][(C_HEADS + 1) * C_DIM] */
    float *bias, norm[C_DIM], sinks[C_HEADS];
} compress_data_t;

static uint32_t width_of(const compress_data_t *data)
{
    return data->overlap ? 2 * C_DIM : C_DIM;
}

static compress_data_t make_compress(uint32_t n, uint32_t rate, bool overlap, uint64_t seed)
{
    random_t random = {seed};
    compress_data_t data = {.n = n, .rate = rate, .overlap = overlap, .lists = overlap};
    data.x = normals(&random, (size_t)n * 2 * width_of(&data), 1.5f);
    data.qkv = normals(&random, (size_t)n * (C_HEADS + 1) * C_DIM, 1.5f);
    data.bias = normals(&random, (size_t)rate * width_of(&data), 1);
    for (uint32_t i = 0; i < C_DIM; i++)
        data.norm[i] = 1 + 0.2f * random_normal(&random);
    for (uint32_t i = 0; i < C_HEADS; i++)
        data.sinks[i] = random_normal(&random);
    return data;
}

static void free_compress(compress_data_t *data)
{
    free(data->x);
    free(data->qkv);
    free(data->bias);
}

typedef struct {
    float *entries, *out; /* [n / rate][C_DIM]; [n - from][C_HEADS * C_DIM] */
} compress_result_t;

typedef struct {
    step_t s;
    kkv_t *window, *inputs, *entries;
    krope_t *rope;
    kref_t bias, norm, sinks;
} compress_run_t;

static void open_run(compress_run_t *r, const compress_data_t *data)
{
    const kernel_ops_t *ops = r->s.f.ops;
    kkv_shape_t window = {.n_layers = 2, .n_kv_heads = 1, .key_dim = C_DIM, .value_dim = C_DIM};
    window.values_in_keys = true;
    window.n_blocks = STEP_BLOCKS;
    kkv_shape_t entries = window,
                inputs = {.n_layers = 2, .n_kv_heads = 1, .n_blocks = STEP_BLOCKS};
    entries.rate = data->rate;
    inputs.key_dim = 2 * width_of(data);
    inputs.exact = true;
    krope_spec_t rope = {.dim = ROPE_DIM, .first = C_DIM - ROPE_DIM, .base = 10000.0};
    rope.position_scale = 1.0;
    rope.positions = 16384;
    assert_ok(ops->kv_open(r->s.f.device, &window, &r->window));
    assert_ok(ops->kv_open(r->s.f.device, &inputs, &r->inputs));
    assert_ok(ops->kv_open(r->s.f.device, &entries, &r->entries));
    assert_ok(ops->rope_open(r->s.f.device, &rope, &r->rope));
    r->bias = ref_of(&r->s.f, data->bias, (size_t)data->rate * width_of(data) * 4);
    r->norm = ref_of(&r->s.f, data->norm, sizeof data->norm);
    r->sinks = ref_of(&r->s.f, data->sinks, sizeof data->sinks);
}

static void close_run(compress_run_t *r)
{
    const kernel_ops_t *ops = r->s.f.ops;
    ops->kv_close(r->window);
    ops->kv_close(r->inputs);
    ops->kv_close(r->entries);
    ops->rope_close(r->rope);
    release_ref(&r->s.f, r->bias);
    release_ref(&r->s.f, r->norm);
    release_ref(&r->s.f, r->sinks);
    close_step(&r->s);
}

/* Entries that a row selects where it selects: two of three. */
static bool selects(const compress_data_t *data, uint32_t row, uint32_t entry)
{
    return (entry + 1) * data->rate <= row + 1 && (!data->lists || (row + entry) % 3 > 0);
}

static void attend_chunk(compress_run_t *r, const compress_data_t *data, uint32_t first,
                         uint32_t end, kref_t qkv, float *out)
{
    const kernel_ops_t *ops = r->s.f.ops;
    uint32_t n = end - first, list_ld = end / data->rate + 1;
    uint32_t *lists = MEM_NEW_ARRAY(uint32_t, (size_t)n * list_ld),
             *lengths = MEM_NEW_ARRAY(uint32_t, n);
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t e = 0; e < end / data->rate; e++)
            if (selects(data, first + row, e))
                lists[(size_t)row * list_ld + lengths[row]++] = e;
    kref_t list_ref = ref_of(&r->s.f, lists, (size_t)n * list_ld * 4);
    kref_t lengths_ref = ref_of(&r->s.f, lengths, n * 4);
    kref_t result = new_ref(&r->s.f, (size_t)n * C_HEADS * C_DIM * 4);
    kattention_t what = {.layer = 1,
                         .n_heads = C_HEADS,
                         .head_dim = C_DIM,
                         .kv_head_of = (const uint16_t[C_HEADS]){0},
                         .scale = 1.0f / sqrtf(C_DIM),
                         .window = C_WINDOW,
                         .sinks = r->sinks,
                         .more = r->entries,
                         .more_layer = 1};
    if (data->lists) {
        what.selected = list_ref;
        what.n_selected = lengths_ref;
        what.selected_ld = list_ld;
    }
    assert_ok(ops->attention(r->s.f.queue, r->s.batch, r->window, &what, qkv, (C_HEADS + 1) * C_DIM,
                             result));
    assert_ok(ops->copy_out(r->s.f.queue, out, result, (size_t)n * C_HEADS * C_DIM * 4));
    wait_all(&r->s.f);
    release_ref(&r->s.f, list_ref);
    release_ref(&r->s.f, lengths_ref);
    release_ref(&r->s.f, result);
    free(lists);
    free(lengths);
}

static compress_result_t run_compress(const char *isa, uint32_t threads, kmode_t mode,
                                      const compress_data_t *data, uint32_t from, uint32_t chunk)
{
    compress_run_t r = {.s = open_step(isa, threads, mode)};
    const kernel_ops_t *ops = r.s.f.ops;
    open_run(&r, data);
    uint32_t x_ld = 2 * width_of(data), qkv_ld = (C_HEADS + 1) * C_DIM;
    compress_result_t result = {MEM_NEW_ARRAY(float, (size_t)data->n / data->rate * C_DIM),
                                MEM_NEW_ARRAY(float, (size_t)(data->n - from) * C_HEADS * C_DIM)};
    kcompress_t what = {.layer = 1,
                        .dim = C_DIM,
                        .rate = data->rate,
                        .overlap = data->overlap,
                        .position_bias = r.bias,
                        .norm = r.norm,
                        .eps = 1e-6f,
                        .rope = r.rope};
    for (uint32_t first = 0, end; first < data->n; first = end) {
        end = first < from ? from : data->n - first < chunk ? data->n : first + chunk;
        uint32_t n = end - first;
        set_rows(&r.s, first, end);
        kref_t x = ref_of(&r.s.f, data->x + (size_t)first * x_ld, (size_t)n * x_ld * 4);
        kref_t qkv = ref_of(&r.s.f, data->qkv + (size_t)first * qkv_ld, (size_t)n * qkv_ld * 4);
        kref_t k = {qkv.buffer, C_HEADS * C_DIM * 4};
        assert_ok(ops->kv_append(r.s.f.queue, r.s.batch, r.window, 1, k, k, qkv_ld));
        assert_ok(ops->compress(r.s.f.queue, r.s.batch, &what, r.inputs, r.entries, x, x_ld));
        if (first >= from)
            attend_chunk(&r, data, first, end, qkv,
                         result.out + (size_t)(first - from) * C_HEADS * C_DIM);
        wait_all(&r.s.f);
        release_ref(&r.s.f, x);
        release_ref(&r.s.f, qkv);
    }
    const kpages_t *pages = &r.entries->pages;
    for (uint32_t e = 0; e < data->n / data->rate; e++)
        for (uint32_t d = 0; d < C_DIM; d++)
            result.entries[(size_t)e * C_DIM + d] =
                page_key(pages, kv_page(pages, 1, r.s.blocks[entry_block(pages, e)], 0),
                         entry_slot(pages, e), d);
    close_run(&r);
    return result;
}

static void free_result(compress_result_t *result)
{
    free(result->entries);
    free(result->out);
}

static void exact_entry(const compress_data_t *data, uint32_t entry, double *out)
{
    uint32_t width = width_of(data), rate = data->rate;
    double squares = 0;
    for (uint32_t d = 0; d < C_DIM; d++) {
        double total = 0, sum = 0;
        for (uint32_t i = 0; i < 2 * rate; i++) {
            bool before = i < rate;
            if (before && (!data->overlap || entry == 0))
                continue;
            uint32_t column = data->overlap && !before ? C_DIM + d : d;
            uint32_t position = entry * rate + i - rate;
            const float *x = data->x + (size_t)position * 2 * width;
            double e =
                exp((double)x[width + column] + (double)data->bias[i % rate * width + column]);
            total += e;
            sum += e * (double)x[column];
        }
        out[d] = sum / total;
        squares += out[d] * out[d];
    }
    for (uint32_t d = 0; d < C_DIM; d++)
        out[d] *= (double)data->norm[d] / sqrt(squares / C_DIM + 1e-6);
    for (uint32_t i = 0; i < ROPE_DIM / 2; i++) {
        /* Frequencies are F32, as models are trained. */
        double angle = entry * rate * (double)(float)pow(10000.0, -2.0 * i / ROPE_DIM);
        double *a = out + C_DIM - ROPE_DIM + 2 * i, b = a[1];
        a[1] = a[0] * sin(angle) + b * cos(angle);
        a[0] = a[0] * cos(angle) - b * sin(angle);
    }
}

/* Over the window's keys and the entries as they are stored. */
static void exact_attention(const compress_data_t *data, kmode_t mode, const float *entries,
                            uint32_t row, uint32_t head, double *out)
{
    uint32_t ld = (C_HEADS + 1) * C_DIM, n_entries = data->n / data->rate;
    double total = exp((double)data->sinks[head]);
    memset(out, 0, C_DIM * sizeof *out);
    for (uint32_t i = 0; i <= row + n_entries; i++) {
        bool window = i <= row;
        if (window ? row - i >= C_WINDOW : !selects(data, row, i - row - 1))
            continue;
        const float *k = window ? data->qkv + (size_t)i * ld + C_HEADS * C_DIM
                                : entries + (size_t)(i - row - 1) * C_DIM;
        double dot = 0;
        for (uint32_t d = 0; d < C_DIM; d++)
            dot += stored_as(data->qkv[(size_t)row * ld + head * C_DIM + d], mode) *
                   stored_as(k[d], mode);
        double p = exp(dot / sqrt(C_DIM));
        total += p;
        for (uint32_t d = 0; d < C_DIM; d++)
            out[d] += p * stored_as(k[d], mode);
    }
    for (uint32_t d = 0; d < C_DIM; d++)
        out[d] /= total;
}

static void check_compressed(const compress_data_t *data, kmode_t mode, uint32_t from,
                             const compress_result_t *found)
{
    double exact[C_DIM];
    bool f32 = mode == KMODE_F32;
    for (uint32_t e = 0; e < data->n / data->rate; e++) {
        exact_entry(data, e, exact);
        for (uint32_t d = 0; d < C_DIM; d++) {
            double error = fabs((double)found->entries[(size_t)e * C_DIM + d] - exact[d]);
            if (!(error <= (f32 ? 1e-5 : 0x1p-8 * fabs(exact[d])) + 1e-5))
                fail_test("rate %u, entry %u, dimension %u is off by %g", data->rate, e, d, error);
        }
    }
    for (uint32_t row = from; row < data->n; row += 13)
        for (uint32_t h = 0; h < C_HEADS; h++) {
            exact_attention(data, mode, found->entries, row, h, exact);
            const float *y = found->out + ((size_t)(row - from) * C_HEADS + h) * C_DIM;
            for (uint32_t d = 0; d < C_DIM; d++)
                if (!(fabs((double)y[d] - exact[d]) <= (f32 ? 2e-5 : 6.0 * 0x1p-9)))
                    fail_test("rate %u, row %u, head %u: %g, exactly %g", data->rate, row, h,
                              (double)y[d], exact[d]);
        }
}

static void test_compressed_attention_is_exact_and_has_one_set_of_bits(void **state)
{
    (void)state;
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    static const struct {
        uint32_t rate;
        bool overlap;
    } kinds[] = {{4, true}, {128, false}, {2, false}, {16, true}};
    static const uint32_t chunks[] = {1000, 5, 61};
    for (uint32_t i = 0; i < 8; i++) {
        kmode_t mode = i % 2 ? KMODE_F32 : KMODE_NATIVE;
        compress_data_t data = make_compress(427, kinds[i / 2].rate, kinds[i / 2].overlap, 95 + i);
        compress_result_t wanted = run_compress("ref", 1, mode, &data, 0, 1000);
        check_compressed(&data, mode, 0, &wanted);
        for (uint32_t v = 1; v < 2 * n_levels; v++) {
            compress_result_t found =
                run_compress(levels[v / 2], 1 + v % 3, mode, &data, 0, chunks[v % 3]);
            assert_same_bits(found.entries, wanted.entries, data.n / data.rate * C_DIM, "entries");
            assert_same_bits(found.out, wanted.out, (size_t)data.n * C_HEADS * C_DIM,
                             levels[v / 2]);
            free_result(&found);
        }
        free_result(&wanted);
        free_compress(&data);
    }
}

static void test_compressed_attention_is_exact_beyond_position_8192(void **state)
{
    (void)state;
    enum { N = 8704, FROM = N - 20 };
    for (uint32_t i = 0; i < 4; i++) {
        kmode_t mode = i % 2 ? KMODE_F32 : KMODE_NATIVE;
        compress_data_t data = make_compress(N, i < 2 ? 4 : 128, i < 2, 120 + i);
        compress_result_t found = run_compress(NULL, 2, mode, &data, FROM, 7);
        check_compressed(&data, mode, FROM, &found);
        free_result(&found);
        free_compress(&data);
    }
}

/* ---- hyper-connections ---- */

enum { STREAMS = 4, HIDDEN = 150, H_ROWS = 7, MIXES = (2 + STREAMS) * STREAMS };

typedef struct {
    double pre[STREAMS], post[STREAMS], comb[STREAMS][STREAMS];
} mixture_t;

static mixture_t exact_mixture(const float *mixes, const float *base, const float *scale)
{
    mixture_t m;
    for (uint32_t i = 0; i < STREAMS; i++) {
        m.pre[i] = 1 / (1 + exp(-((double)mixes[i] * (double)scale[0] + (double)base[i]))) + 1e-6;
        uint32_t at = STREAMS + i;
        m.post[i] = 2 / (1 + exp(-((double)mixes[at] * (double)scale[1] + (double)base[at])));
        double sum = 0;
        for (uint32_t j = 0; j < STREAMS; j++) {
            at = 2 * STREAMS + i * STREAMS + j;
            m.comb[i][j] = exp((double)mixes[at] * (double)scale[2] + (double)base[at]);
            sum += m.comb[i][j];
        }
        for (uint32_t j = 0; j < STREAMS; j++)
            m.comb[i][j] = m.comb[i][j] / sum + 1e-6;
    }
    for (uint32_t round = 0; round < 9; round++) /* columns, then 4 times rows and columns */
        for (uint32_t i = 0; i < STREAMS; i++) {
            double sum = 1e-6;
            for (uint32_t j = 0; j < STREAMS; j++)
                sum += round % 2 ? m.comb[i][j] : m.comb[j][i];
            for (uint32_t j = 0; j < STREAMS; j++)
                *(round % 2 ? &m.comb[i][j] : &m.comb[j][i]) /= sum;
        }
    return m;
}

static void test_streams_collapse_and_mix_by_a_doubly_stochastic_matrix(void **state)
{
    (void)state;
    random_t random = {140};
    float *mixes = normals(&random, H_ROWS * MIXES, 1), *base = normals(&random, MIXES, 1);
    float scale[3] = {0.7f, 1.1f, 1.3f};
    float *streams = normals(&random, H_ROWS * STREAMS * HIDDEN, 1);
    float *y = normals(&random, H_ROWS * HIDDEN, 1);
    for (int kind = KQUEUE_NOW; kind <= KQUEUE_LATE; kind++) {
        fixture_t f = open_fixture(NULL, 2, KMODE_NATIVE, (kqueue_kind_t)kind);
        kbatch_t *batch = NULL;
        assert_ok(f.ops->batch_new(f.device, H_ROWS, 0, &batch));
        assert_ok(f.ops->batch_set_plain(f.queue, batch, H_ROWS));
        kref_t in = ref_of(&f, mixes, H_ROWS * MIXES * 4);
        kref_t x = ref_of(&f, streams, H_ROWS * STREAMS * HIDDEN * 4);
        kref_t block = ref_of(&f, y, H_ROWS * HIDDEN * 4), out = new_ref(&f, H_ROWS * HIDDEN * 4);
        kref_t weights = new_ref(&f, H_ROWS * (STREAMS + STREAMS * STREAMS) * 4);
        khyper_t what = {.n_streams = STREAMS, .hidden = HIDDEN, .iterations = 5, .eps = 1e-6f};
        what.base = ref_of(&f, base, MIXES * 4);
        what.scale = ref_of(&f, scale, sizeof scale);
        assert_ok(f.ops->hyper_pre(f.queue, batch, &what, in, x, out, weights));
        assert_ok(f.ops->hyper_post(f.queue, batch, &what, weights, block, x));
        wait_all(&f);
        const float *collapsed = f.ops->buffer_host(out.buffer),
                    *mixed = f.ops->buffer_host(x.buffer);
        for (uint32_t row = 0; row < H_ROWS; row++) {
            mixture_t m = exact_mixture(mixes + row * MIXES, base, scale);
            for (uint32_t d = 0; d < HIDDEN; d++) {
                const float *old = streams + (size_t)row * STREAMS * HIDDEN + d;
                double sum = 0;
                for (uint32_t i = 0; i < STREAMS; i++)
                    sum += m.pre[i] * (double)old[(size_t)i * HIDDEN];
                assert_true(fabs((double)collapsed[row * HIDDEN + d] - sum) < 2e-6);
                for (uint32_t i = 0; i < STREAMS; i++) {
                    sum = m.post[i] * (double)y[row * HIDDEN + d];
                    for (uint32_t j = 0; j < STREAMS; j++)
                        sum += m.comb[j][i] * (double)old[(size_t)j * HIDDEN];
                    float new = mixed[((size_t)row * STREAMS + i) * HIDDEN + d];
                    assert_true(fabs((double)new - sum) < 4e-6);
                }
            }
        }
        release_ref(&f, in);
        release_ref(&f, x);
        release_ref(&f, block);
        release_ref(&f, out);
        release_ref(&f, weights);
        release_ref(&f, what.base);
        release_ref(&f, what.scale);
        f.ops->batch_release(batch);
        close_fixture(&f);
    }
    free(mixes);
    free(base);
    free(streams);
    free(y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compressed_attention_is_exact_and_has_one_set_of_bits),
        cmocka_unit_test(test_compressed_attention_is_exact_beyond_position_8192),
        cmocka_unit_test(test_streams_collapse_and_mix_by_a_doubly_stochastic_matrix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
