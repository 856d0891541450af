/* Attention over the paged cache: ref against an F64 softmax over the values as stored, every level
 * against ref bit by bit, and one row's bits whatever else is in its batch, its blocks or its
 * steps. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "support.h"

enum { BLOCKS = 160 };

/* A sequence of n tokens with q, k and v rows side by side: [n][(heads + 2 kv_heads) * dim]. */
typedef struct {
    uint32_t n, heads, kv_heads, dim, width;
    float *rows;
} sequence_t;

static sequence_t make_sequence(random_t *random, uint32_t n, uint32_t heads, uint32_t kv_heads,
                                uint32_t dim)
{
    sequence_t s = {n, heads, kv_heads, dim, (heads + 2 * kv_heads) * dim, NULL};
    s.rows = MEM_NEW_ARRAY(float, (size_t)n *s.width);
    for (size_t i = 0; i < (size_t)n * s.width; i++)
        s.rows[i] = random_normal(random) * 1.5f;
    return s;
}

static kkv_type_t cache_type; /* of caches that are opened */

typedef struct {
    fixture_t f;
    kkv_t *kv;
    kbatch_t *batch;
    uint16_t map[64];
    const sequence_t *shape;
} cache_t;

static cache_t open_cache(const char *isa, uint32_t threads, kmode_t mode, kqueue_kind_t kind,
                          const sequence_t *shape)
{
    cache_t c = {.f = open_fixture(isa, threads, mode, kind), .shape = shape};
    kkv_shape_t kv = {
        .n_layers = 2, .n_kv_heads = shape->kv_heads, .head_dim = shape->dim, .n_blocks = BLOCKS,
        .type = cache_type};
    assert_ok(c.f.ops->kv_open(c.f.device, &kv, &c.kv));
    assert_ok(c.f.ops->batch_new(c.f.device, 2048, 2048, &c.batch));
    for (uint32_t h = 0; h < shape->heads; h++)
        c.map[h] = (uint16_t)(h * shape->kv_heads / shape->heads);
    return c;
}

static void close_cache(cache_t *c)
{
    c->f.ops->batch_release(c->batch);
    c->f.ops->kv_close(c->kv);
    close_fixture(&c->f);
}

/* Runs tokens [first, end) of up to two sequences as one step in layer 1; out [rows][heads * dim].
 */
static void step(cache_t *c, const sequence_t *const *seqs, const kbatch_table_t *tables,
                 uint32_t n_seqs, const uint32_t *first, const uint32_t *end, float *out)
{
    const sequence_t *shape = c->shape;
    const kernel_ops_t *ops = c->f.ops;
    uint32_t n_rows = 0;
    kbatch_row_t *rows = MEM_NEW_ARRAY(kbatch_row_t, 2048);
    float *x = MEM_NEW_ARRAY(float, (size_t)2048 * shape->width);
    for (uint32_t s = 0; s < n_seqs; s++)
        for (uint32_t t = first[s]; t < end[s]; t++, n_rows++) {
            rows[n_rows] = (kbatch_row_t){.position = t, .sequence = s};
            memcpy(x + (size_t)n_rows * shape->width, seqs[s]->rows + (size_t)t * shape->width,
                   shape->width * sizeof *x);
        }
    size_t out_bytes = (size_t)n_rows * shape->heads * shape->dim * sizeof(float);
    kref_t in = ref_of(&c->f, x, (size_t)n_rows * shape->width * sizeof *x);
    kref_t k = in, v = in, result = new_ref(&c->f, out_bytes);
    k.offset = (size_t)shape->heads * shape->dim * 4;
    v.offset = (size_t)(shape->heads + shape->kv_heads) * shape->dim * 4;
    kattention_t what = {.layer = 1,
                         .n_heads = shape->heads,
                         .head_dim = shape->dim,
                         .kv_head_of = c->map,
                         .scale = 1.0f / sqrtf((float)shape->dim)};
    assert_ok(ops->batch_set(c->f.queue, c->batch, rows, n_rows, tables, n_seqs));
    assert_ok(ops->kv_append(c->f.queue, c->batch, c->kv, 1, k, v, shape->width));
    assert_ok(ops->attention(c->f.queue, c->batch, c->kv, &what, in, shape->width, result));
    assert_ok(ops->copy_out(c->f.queue, out, result, out_bytes));
    wait_all(&c->f);
    release_ref(&c->f, in);
    release_ref(&c->f, result);
    free(rows);
    free(x);
}

static void make_table(random_t *random, uint32_t n_blocks, uint32_t *blocks)
{
    bool used[BLOCKS] = {false};
    for (uint32_t i = 0; i < n_blocks; i++) {
        do
            blocks[i] = random_below(random, BLOCKS);
        while (used[blocks[i]]);
        used[blocks[i]] = true;
    }
}

/* All tokens of one sequence, `chunk` a step; out [n][heads * dim]. */
static float *run_alone(const char *isa, uint32_t threads, kmode_t mode, const sequence_t *s,
                        uint32_t chunk, random_t random)
{
    cache_t c = open_cache(isa, threads, mode, KQUEUE_NOW, s);
    uint32_t blocks[BLOCKS];
    kbatch_table_t table = {blocks, (s->n + 15) / 16};
    make_table(&random, table.n_blocks, blocks);
    float *out = MEM_NEW_ARRAY(float, (size_t)s->n * s->heads * s->dim);
    for (uint32_t at = 0; at < s->n; at += chunk) {
        uint32_t end = at + chunk < s->n ? at + chunk : s->n;
        step(&c, &s, &table, 1, &at, &end, out + (size_t)at * s->heads * s->dim);
    }
    close_cache(&c);
    return out;
}

static double stored(float x, kmode_t mode)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (mode == KMODE_F32)
        return (double)x;
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &bits, 4);
    return (double)x;
}

/* Softmax in F64 over q, k and v as the mode stores them. */
static void exact_row(const sequence_t *s, kmode_t mode, uint32_t row, uint32_t head, double *out)
{
    uint32_t kv = head * s->kv_heads / s->heads;
    double weights = 0;
    double *p = MEM_NEW_ARRAY(double, row + 1);
    for (uint32_t d = 0; d < s->dim; d++)
        out[d] = 0;
    for (uint32_t t = 0; t <= row; t++) {
        double dot = 0;
        for (uint32_t d = 0; d < s->dim; d++)
            dot += stored(s->rows[(size_t)row * s->width + head * s->dim + d], mode) *
                   stored(s->rows[(size_t)t * s->width + (s->heads + kv) * s->dim + d], mode);
        p[t] = exp(dot / sqrt(s->dim));
        weights += p[t];
    }
    for (uint32_t t = 0; t <= row; t++)
        for (uint32_t d = 0; d < s->dim; d++)
            out[d] +=
                p[t] / weights *
                stored(s->rows[(size_t)t * s->width + (s->heads + s->kv_heads + kv) * s->dim + d],
                       mode);
    free(p);
}

static void test_ref_is_an_exact_softmax_within_the_rounding_of_its_probabilities(void **state)
{
    (void)state;
    random_t random = {11};
    sequence_t s = make_sequence(&random, 600, 3, 1, 32);
    for (int mode = KMODE_NATIVE; mode <= KMODE_F32; mode++) {
        float *found = run_alone("ref", 1, (kmode_t)mode, &s, 600, random);
        /* A BF16 probability is off by 2^-9 of itself; the values are within about 6. */
        double bound = mode == KMODE_F32 ? 2e-5 : 6.0 * 0x1p-9;
        for (uint32_t row = 0; row < s.n; row += row < 70 ? 1 : 53)
            for (uint32_t head = 0; head < s.heads; head++) {
                double exact[32];
                exact_row(&s, (kmode_t)mode, row, head, exact);
                for (uint32_t d = 0; d < s.dim; d++) {
                    float y = found[((size_t)row * s.heads + head) * s.dim + d];
                    if (!(fabs((double)y - exact[d]) <= bound))
                        fail_test("mode %d row %u head %u: %g, exactly %g", mode, row, head,
                                  (double)y, exact[d]);
                }
            }
        free(found);
    }
    free(s.rows);
}

static void test_every_level_thread_count_and_chunk_gives_refs_bits(void **state)
{
    (void)state;
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    static const struct {
        uint32_t n, heads, kv_heads, dim;
    } shapes[] = {
        {700, 9, 3, 64}, {75, 4, 4, 20}, {130, 5, 1, 128}, {600, 2, 1, 16}, {40, 3, 2, 256}};
    static const uint32_t chunks[] = {1000, 64, 7};
    random_t random = {12};
    for (uint32_t i = 0; i < 10; i++) {
        kmode_t mode = i % 2 ? KMODE_F32 : KMODE_NATIVE;
        sequence_t s = make_sequence(&random, shapes[i / 2].n, shapes[i / 2].heads,
                                     shapes[i / 2].kv_heads, shapes[i / 2].dim);
        float *wanted = run_alone("ref", 1, mode, &s, 1000, random);
        for (uint32_t v = 0; v < n_levels * 3; v++) {
            char what[96];
            snprintf(what, sizeof what, "%s mode %d dim %u chunk %u", levels[v / 3], (int)mode,
                     s.dim, chunks[v % 3]);
            float *found = run_alone(levels[v / 3], 1 + v % 3, mode, &s, chunks[v % 3], random);
            assert_same_bits(found, wanted, (size_t)s.n * s.heads * s.dim, what);
            free(found);
        }
        free(wanted);
        free(s.rows);
    }
}

/* The second sequence takes over blocks in which the first has left its values, NaN rows among
 * them. */
static void neighbours_and_used_blocks(void)
{
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    random_t random = {13};
    sequence_t a = make_sequence(&random, 90, 9, 3, 64);
    sequence_t b = make_sequence(&random, 70, 9, 3, 64);
    float *wanted = run_alone("ref", 1, KMODE_NATIVE, &b, 70, random);
    size_t row = (size_t)b.heads * b.dim;
    for (uint32_t i = 0; i < a.width; i++)
        a.rows[(size_t)81 * a.width + i] = i % 2 ? NAN : INFINITY;
    for (uint32_t v = 0; v < n_levels; v++) {
        cache_t c = open_cache(levels[v], 2, KMODE_NATIVE, KQUEUE_NOW, &b);
        uint32_t blocks[2][8] = {{9, 1, 5, 2, 8, 0}, {2, 8, 0, 7, 5, 9}};
        kbatch_table_t tables[2] = {{blocks[0], 6}, {blocks[1], 6}};
        float *out = MEM_NEW_ARRAY(float, 256 * row);
        const sequence_t *first[] = {&a};
        step(&c, first, tables, 1, (uint32_t[]){0}, (uint32_t[]){90}, out);
        uint8_t flags[90];
        assert_int_equal(c.f.ops->batch_row_errors(c.batch, flags), 1);
        assert_int_equal(flags[81], 1);
        for (uint32_t i = 0; i < row; i++)
            assert_true(isnan(out[81 * row + i]));
        const sequence_t *both[] = {&b, &a};
        kbatch_table_t turned[2] = {tables[1], {(uint32_t[]){20, 21, 22, 23, 24, 25}, 6}};
        step(&c, both, turned, 2, (uint32_t[]){0, 0}, (uint32_t[]){33, 60}, out);
        assert_same_bits(out, wanted, 33 * row, levels[v]);
        step(&c, both, turned, 2, (uint32_t[]){33, 60}, (uint32_t[]){70, 61}, out);
        assert_same_bits(out, wanted + 33 * row, 37 * row, levels[v]);
        free(out);
        close_cache(&c);
    }
    free(wanted);
    free(a.rows);
    free(b.rows);
}

static void test_neighbours_and_used_blocks_change_no_bit_of_a_row(void **state)
{
    (void)state;
    for (cache_type = KKV_FP8; cache_type > KKV_BF16; cache_type--)
        neighbours_and_used_blocks();
    neighbours_and_used_blocks();
}

/* 9 heads on 2 ranks: 5 and 4, and the KV head that both need lies on both. */
static void test_heads_cut_over_ranks_give_the_bits_of_the_whole(void **state)
{
    (void)state;
    random_t random = {14};
    sequence_t s = make_sequence(&random, 80, 9, 3, 64);
    float *wanted = run_alone(NULL, 1, KMODE_NATIVE, &s, 80, random);
    static const uint32_t cuts[2][4] = {{0, 5, 0, 2}, {5, 9, 1, 3}}; /* heads, KV heads */
    for (uint32_t r = 0; r < 2; r++) {
        sequence_t part = {80, cuts[r][1] - cuts[r][0], cuts[r][3] - cuts[r][2], 64, 0, NULL};
        part.width = (part.heads + 2 * part.kv_heads) * 64;
        part.rows = MEM_NEW_ARRAY(float, (size_t)80 * part.width);
        for (uint32_t t = 0; t < 80; t++) {
            float *to = part.rows + (size_t)t * part.width;
            const float *from = s.rows + (size_t)t * s.width;
            memcpy(to, from + cuts[r][0] * 64, part.heads * 64 * sizeof *to);
            memcpy(to + part.heads * 64, from + (9 + cuts[r][2]) * 64,
                   part.kv_heads * 64 * sizeof *to);
            memcpy(to + (part.heads + part.kv_heads) * 64, from + (12 + cuts[r][2]) * 64,
                   part.kv_heads * 64 * sizeof *to);
        }
        cache_t c = open_cache(NULL, 1, KMODE_NATIVE, KQUEUE_NOW, &part);
        for (uint32_t h = 0; h < part.heads; h++)
            c.map[h] = (uint16_t)((h + cuts[r][0]) / 3 - cuts[r][2]);
        kbatch_table_t table = {(uint32_t[]){4, 3, 2, 1, 0}, 5};
        const sequence_t *seq = &part;
        float *out = MEM_NEW_ARRAY(float, (size_t)80 * part.heads * 64);
        step(&c, &seq, &table, 1, (uint32_t[]){0}, (uint32_t[]){80}, out);
        for (uint32_t t = 0; t < 80; t++)
            assert_same_bits(out + (size_t)t * part.heads * 64,
                             wanted + ((size_t)t * 9 + cuts[r][0]) * 64, part.heads * 64,
                             "cut heads");
        close_cache(&c);
        free(out);
        free(part.rows);
    }
    free(wanted);
    free(s.rows);
}

/* What is stored for such a row is zeros: its own output must tell. */
static void keys_and_values_that_are_not_finite(void)
{
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    random_t random = {17};
    sequence_t a = make_sequence(&random, 90, 9, 3, 64);
    size_t row = (size_t)a.heads * a.dim;
    for (uint32_t part = 0; part < 2; part++) { /* q, k and v lie side by side */
        size_t at = (size_t)81 * a.width + row + part * 3 * 64 + 70;
        float good = a.rows[at];
        a.rows[at] = part == 0 ? NAN : INFINITY;
        for (uint32_t v = 0; v < n_levels; v++) {
            cache_t c = open_cache(levels[v], 2, KMODE_NATIVE, KQUEUE_NOW, &a);
            uint32_t blocks[8] = {9, 1, 5, 2, 8, 0};
            kbatch_table_t table = {blocks, 6};
            float *out = MEM_NEW_ARRAY(float, 90 * row);
            const sequence_t *only[] = {&a};
            step(&c, only, &table, 1, (uint32_t[]){0}, (uint32_t[]){90}, out);
            uint8_t flags[90];
            assert_int_equal(c.f.ops->batch_row_errors(c.batch, flags), 1);
            assert_int_equal(flags[81], 1);
            for (uint32_t i = 0; i < row; i++)
                assert_true(isnan(out[81 * row + i]));
            for (uint32_t i = 0; i < 81 * row; i++)
                assert_true(isfinite(out[i]));
            free(out);
            close_cache(&c);
        }
        a.rows[at] = good;
    }
    free(a.rows);
}

static void test_a_key_or_a_value_that_is_not_finite_makes_its_row_an_error(void **state)
{
    (void)state;
    for (cache_type = KKV_FP8; cache_type > KKV_BF16; cache_type--)
        keys_and_values_that_are_not_finite();
    keys_and_values_that_are_not_finite();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref_is_an_exact_softmax_within_the_rounding_of_its_probabilities),
        cmocka_unit_test(test_every_level_thread_count_and_chunk_gives_refs_bits),
        cmocka_unit_test(test_neighbours_and_used_blocks_change_no_bit_of_a_row),
        cmocka_unit_test(test_a_key_or_a_value_that_is_not_finite_makes_its_row_an_error),
        cmocka_unit_test(test_heads_cut_over_ranks_give_the_bits_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
