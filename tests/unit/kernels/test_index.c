/* The indexer of sparse attention: its choice against F64 scores, behind position 8,192 too; every
 * level, thread count and chunking makes the same lists. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "support.h"

enum { HEADS = 6, DIM = 32, TOP_K = 50 };

typedef struct {
    uint32_t n;
    float *q, *w, *k; /* [n][HEADS * DIM], [n][HEADS], [n][DIM] */
} index_data_t;

static index_data_t make_index(uint32_t n, uint64_t seed)
{
    random_t random = {seed};
    index_data_t data = {n, normals(&random, (size_t)n * HEADS * DIM, 1),
                         normals(&random, (size_t)n * HEADS, 1),
                         normals(&random, (size_t)n * DIM, 1)};
    /* Equal keys make equal scores. */
    memcpy(data.k + 20 * DIM, data.k + 10 * DIM, DIM * sizeof(float));
    memset(data.k + 30 * DIM, 0, 9 * DIM * sizeof(float));
    return data;
}

static void free_index(index_data_t *data)
{
    free(data->q);
    free(data->w);
    free(data->k);
}

/* Lists of rows [from, n), `chunk` a step: [n - from][TOP_K + 1], the length first. */
static uint32_t *run_index(const char *isa, uint32_t threads, kmode_t mode,
                           const index_data_t *data, uint32_t from, uint32_t chunk)
{
    step_t s = open_step(isa, threads, mode);
    const kernel_ops_t *ops = s.f.ops;
    kkv_shape_t shape = {.n_layers = 2, .n_kv_heads = 1, .key_dim = DIM, .n_blocks = STEP_BLOCKS};
    kindex_t what = {.layer = 1, .n_heads = HEADS, .head_dim = DIM, .scale = 0.25f};
    what.weight_scale = 0.5f;
    what.top_k = TOP_K;
    kkv_t *kv = NULL;
    assert_ok(ops->kv_open(s.f.device, &shape, &kv));
    uint32_t *lists = MEM_NEW_ARRAY(uint32_t, (size_t)(data->n - from) * (TOP_K + 1));
    for (uint32_t first = 0, end; first < data->n; first = end) {
        end = first < from ? from : data->n - first < chunk ? data->n : first + chunk;
        uint32_t n = end - first;
        set_rows(&s, first, end);
        kref_t k = ref_of(&s.f, data->k + (size_t)first * DIM, (size_t)n * DIM * 4);
        assert_ok(ops->kv_append(s.f.queue, s.batch, kv, 1, k, (kref_t){0}, DIM));
        wait_all(&s.f);
        release_ref(&s.f, k);
        if (first < from)
            continue;
        kref_t q = ref_of(&s.f, data->q + (size_t)first * HEADS * DIM, (size_t)n * HEADS * DIM * 4);
        kref_t w = ref_of(&s.f, data->w + (size_t)first * HEADS, (size_t)n * HEADS * 4);
        kref_t out = new_ref(&s.f, (size_t)n * TOP_K * 4), lengths = new_ref(&s.f, n * 4);
        assert_ok(ops->index_select(s.f.queue, s.batch, kv, &what, q, HEADS * DIM, w, HEADS, out,
                                    lengths));
        wait_all(&s.f);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t *list = lists + (size_t)(first - from + i) * (TOP_K + 1);
            list[0] = ((const uint32_t *)ops->buffer_host(lengths.buffer))[i];
            assert_true(list[0] <= TOP_K);
            memcpy(list + 1, (const uint32_t *)ops->buffer_host(out.buffer) + (size_t)i * TOP_K,
                   list[0] * 4);
        }
        release_ref(&s.f, q);
        release_ref(&s.f, w);
        release_ref(&s.f, out);
        release_ref(&s.f, lengths);
    }
    ops->kv_close(kv);
    close_step(&s);
    return lists;
}

static double exact_index_score(const index_data_t *data, kmode_t mode, uint32_t row, uint32_t t)
{
    double score = 0;
    for (uint32_t h = 0; h < HEADS; h++) {
        double dot = 0;
        for (uint32_t d = 0; d < DIM; d++)
            dot += stored_as(data->q[((size_t)row * HEADS + h) * DIM + d], mode) *
                   stored_as(data->k[(size_t)t * DIM + d], mode);
        score += (double)data->w[row * HEADS + h] * 0.5 * fmax(0, dot * 0.25);
    }
    return score;
}

/* Every key that is in has a score that no key outside it beats by more than F32 noise. */
static void check_list(const index_data_t *data, kmode_t mode, uint32_t row, const uint32_t *list)
{
    uint32_t n = row + 1 < TOP_K ? row + 1 : TOP_K, at = 0;
    assert_int_equal(list[0], n);
    double worst_in = INFINITY, best_out = -INFINITY;
    for (uint32_t t = 0; t <= row; t++) {
        double score = exact_index_score(data, mode, row, t);
        if (at < n && list[1 + at] == t) {
            at++;
            worst_in = fmin(worst_in, score);
        } else {
            best_out = fmax(best_out, score);
        }
    }
    assert_int_equal(at, n); /* ascending, and all visible */
    assert_true(best_out <= worst_in + 1e-5);
}

static void test_the_indexer_selects_the_highest_scores_on_every_level(void **state)
{
    (void)state;
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    for (int mode = KMODE_NATIVE; mode <= KMODE_F32; mode++) {
        index_data_t data = make_index(333, 90 + (uint64_t)mode);
        uint32_t *wanted = run_index("ref", 1, (kmode_t)mode, &data, 0, 1000);
        for (uint32_t row = 0; row < data.n; row += 3)
            check_list(&data, (kmode_t)mode, row, wanted + (size_t)row * (TOP_K + 1));
        for (uint32_t v = 0; v < 2 * n_levels; v++) {
            uint32_t *found = run_index(levels[v / 2], 3, (kmode_t)mode, &data, 0, v % 2 ? 2 : 100);
            assert_memory_equal(found, wanted, (size_t)data.n * (TOP_K + 1) * 4);
            free(found);
        }
        free(wanted);
        free_index(&data);
    }
}

static void test_the_indexer_works_beyond_position_8192_and_prefers_lower_ties(void **state)
{
    (void)state;
    enum { N = 8700, FROM = N - 3 };
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    index_data_t data = make_index(N, 92);
    for (int mode = KMODE_NATIVE; mode <= KMODE_F32; mode++) {
        uint32_t *wanted = run_index("ref", 1, (kmode_t)mode, &data, FROM, 3);
        uint32_t *found = run_index(levels[n_levels - 1], 2, (kmode_t)mode, &data, FROM, 1);
        for (uint32_t i = 0; i < 3; i++)
            check_list(&data, (kmode_t)mode, FROM + i, wanted + i * (TOP_K + 1));
        assert_memory_equal(found, wanted, 3 * (TOP_K + 1) * 4);
        free(wanted);
        free(found);
    }
    free_index(&data);
    /* All scores alike: the first ones win. */
    data = make_index(200, 93);
    memset(data.k, 0, 200 * DIM * sizeof(float));
    uint32_t *list = run_index(NULL, 2, KMODE_NATIVE, &data, 199, 1);
    for (uint32_t i = 0; i < TOP_K; i++)
        assert_int_equal(list[1 + i], i);
    free(list);
    free_index(&data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_indexer_selects_the_highest_scores_on_every_level),
        cmocka_unit_test(test_the_indexer_works_beyond_position_8192_and_prefers_lower_ties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
