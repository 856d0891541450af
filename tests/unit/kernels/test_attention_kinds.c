/* Every kind of attention, over caches of BF16, F32 and codes: windows, sinks, soft caps, latent
 * keys that are values too, selected keys. Ref against an F64 softmax over what the cache holds,
 * also behind position 8,192; every level, thread count and chunking against ref bit by bit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "support.h"

enum { BLOCKS = 700, LIST_MAX = 4096 };

typedef struct {
    const char *name;
    uint32_t heads, kv_heads, key_dim, value_dim;
    bool values_in_keys, sinks;
    uint32_t window;
    float softcap;
    uint32_t selected; /* one of so many visible keys is selected, and the first and own one */
} kind_t;

static const kind_t KINDS[] = {
    {"plain", 4, 2, 32, 32, false, false, 0, 0, 0},
    {"keys wider than values", 3, 1, 48, 20, false, false, 0, 0, 0},
    {"window", 4, 2, 32, 32, false, false, 100, 0, 0},
    {"window of one", 2, 1, 16, 16, false, false, 1, 0, 0},
    {"sinks", 4, 2, 32, 32, false, true, 0, 0, 0},
    {"sinks and window", 4, 1, 64, 64, false, true, 128, 0, 0},
    {"softcap", 4, 2, 32, 32, false, false, 0, 4.0f, 0},
    {"latent", 9, 1, 72, 64, true, false, 0, 0, 0},
    {"latent, as large as they come", 5, 1, 576, 512, true, false, 0, 0, 0},
    {"selected", 4, 2, 32, 32, false, false, 0, 0, 3},
    {"selected latent", 6, 1, 72, 64, true, false, 0, 0, 5},
};
enum { N_KINDS = sizeof KINDS / sizeof KINDS[0] };

typedef struct {
    const kind_t *kind;
    kkv_type_t type; /* of the cache in native mode */
    uint32_t n, width, k_at, v_at;
    float *rows;
    double *kept; /* the same as a cache of codes keeps it; NULL without codes */
    float sinks[16];
} sequence_t;

static sequence_t make_sequence(const kind_t *kind, uint32_t n, uint64_t seed)
{
    random_t random = {seed};
    sequence_t s = {.kind = kind, .n = n};
    s.k_at = kind->heads * kind->key_dim;
    s.v_at = s.k_at + kind->kv_heads * kind->key_dim;
    s.width = s.v_at + kind->kv_heads * kind->value_dim;
    s.rows = MEM_NEW_ARRAY(float, (size_t)n *s.width);
    for (size_t i = 0; i < (size_t)n * s.width; i++)
        s.rows[i] = random_normal(&random) * 1.5f;
    for (uint32_t i = 0; i < 16; i++)
        s.sinks[i] = random_normal(&random) * 2.0f;
    return s;
}

/* What is nearest to x, half to even: an integer, or an e4m3 value. */
static double nearest_code(kkv_type_t type, double x)
{
    int exponent;
    frexp(x, &exponent);
    double step = type == KKV_INT8 ? 1.0 : ldexp(1.0, (exponent - 1 > -6 ? exponent - 1 : -6) - 3);
    return rint(x / step) * step;
}

/* One head of a key or a value, by the definition: a scale from the largest size, and codes. */
static void keep_head(kkv_type_t type, const float *x, uint32_t n, double *out)
{
    float most = 0, largest = type == KKV_INT8 ? 127.0f : 448.0f;
    for (uint32_t d = 0; d < n; d++)
        most = fmaxf(most, fabsf(x[d]));
    for (uint32_t d = 0; d < n; d++)
        out[d] = nearest_code(type, (double)(x[d] * (largest / most))) * (double)(most / largest);
}

static void keep_codes(sequence_t *s, kkv_type_t type)
{
    const kind_t *kind = s->kind;
    s->type = type;
    s->kept = MEM_NEW_ARRAY(double, (size_t)s->n * s->width);
    for (uint32_t t = 0; t < s->n; t++)
        for (uint32_t h = 0; h < kind->kv_heads; h++) {
            size_t k = (size_t)t * s->width + s->k_at + h * kind->key_dim;
            size_t v = (size_t)t * s->width + s->v_at + h * kind->value_dim;
            keep_head(type, s->rows + k, kind->key_dim, s->kept + k);
            keep_head(type, s->rows + v, kind->value_dim, s->kept + v);
        }
}

static bool has_codes(const kind_t *kind)
{
    return !kind->values_in_keys && kind->selected == 0;
}

/* Whether key t is one of row p's: a window's, or a list's. */
static bool is_seen(const kind_t *kind, uint32_t p, uint32_t t)
{
    if (t > p || (kind->window > 0 && p - t >= kind->window))
        return false;
    return kind->selected == 0 || t == p || t == 0 ||
           (t * 2654435761u ^ p * 40503u) % 7919 % kind->selected == 0;
}

static uint32_t list_of(const kind_t *kind, uint32_t p, uint32_t *list)
{
    uint32_t n = 0;
    for (uint32_t t = 0; t <= p; t++)
        if (is_seen(kind, p, t))
            list[n++] = t;
    assert_true(n <= LIST_MAX);
    return n;
}

typedef struct {
    fixture_t f;
    kkv_t *kv;
    kbatch_t *batch;
    kref_t sinks;
    uint32_t blocks[BLOCKS];
    uint16_t map[16];
} cache_t;

static cache_t open_cache(const char *isa, uint32_t threads, kmode_t mode, const sequence_t *s)
{
    const kind_t *kind = s->kind;
    cache_t c = {.f = open_fixture(isa, threads, mode, KQUEUE_NOW)};
    kkv_shape_t shape = {.n_layers = 2,
                         .n_kv_heads = kind->kv_heads,
                         .key_dim = kind->key_dim,
                         .value_dim = kind->value_dim,
                         .values_in_keys = kind->values_in_keys,
                         .type = s->type,
                         .n_blocks = BLOCKS};
    assert_ok(c.f.ops->kv_open(c.f.device, &shape, &c.kv));
    assert_ok(c.f.ops->batch_new(c.f.device, 16384, BLOCKS, &c.batch));
    c.sinks = ref_of(&c.f, s->sinks, sizeof s->sinks);
    for (uint32_t i = 0; i < BLOCKS; i++)
        c.blocks[i] = (i * 37 + 5) % BLOCKS;
    for (uint32_t h = 0; h < kind->heads; h++)
        c.map[h] = (uint16_t)(h * kind->kv_heads / kind->heads);
    return c;
}

static void close_cache(cache_t *c)
{
    release_ref(&c->f, c->sinks);
    c->f.ops->batch_release(c->batch);
    c->f.ops->kv_close(c->kv);
    close_fixture(&c->f);
}

/* Appends tokens [first, end); writes the attention of those from `from` on to out. */
static void step(cache_t *c, const sequence_t *s, uint32_t first, uint32_t end, uint32_t from,
                 float *out)
{
    const kind_t *kind = s->kind;
    const kernel_ops_t *ops = c->f.ops;
    uint32_t n = end - first;
    kbatch_row_t *rows = MEM_NEW_ARRAY(kbatch_row_t, n);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (kbatch_row_t){.position = first + i};
    kbatch_table_t table = {c->blocks, (end + 15) / 16};
    kref_t in = ref_of(&c->f, s->rows + (size_t)first * s->width, (size_t)n * s->width * 4);
    kref_t k = {in.buffer, s->k_at * 4}, v = {in.buffer, s->v_at * 4};
    assert_ok(ops->batch_set(c->f.queue, c->batch, rows, n, &table, 1));
    assert_ok(ops->kv_append(c->f.queue, c->batch, c->kv, 1, k, v, s->width));
    if (end > from) {
        size_t row_bytes = (size_t)kind->heads * kind->value_dim * 4;
        kref_t result = new_ref(&c->f, n * row_bytes);
        kattention_t what = {.layer = 1,
                             .n_heads = kind->heads,
                             .head_dim = kind->key_dim,
                             .kv_head_of = c->map,
                             .scale = 1.0f / sqrtf((float)kind->key_dim),
                             .window = kind->window,
                             .softcap = kind->softcap,
                             .sinks = kind->sinks ? c->sinks : (kref_t){0}};
        uint32_t *lists = MEM_NEW_ARRAY(uint32_t, (size_t)n * LIST_MAX);
        uint32_t *lengths = MEM_NEW_ARRAY(uint32_t, n);
        if (kind->selected > 0) {
            for (uint32_t i = 0; i < n; i++)
                lengths[i] = list_of(kind, first + i, lists + (size_t)i * LIST_MAX);
            what.selected = ref_of(&c->f, lists, (size_t)n * LIST_MAX * 4);
            what.n_selected = ref_of(&c->f, lengths, n * 4);
            what.selected_ld = LIST_MAX;
        }
        assert_ok(ops->attention(c->f.queue, c->batch, c->kv, &what, in, s->width, result));
        wait_all(&c->f);
        uint32_t skip = from > first ? from - first : 0;
        const uint8_t *found = ops->buffer_host(result.buffer);
        memcpy((uint8_t *)out + (first + skip - from) * row_bytes, found + skip * row_bytes,
               (n - skip) * row_bytes);
        ops->buffer_release(what.selected.buffer);
        ops->buffer_release(what.n_selected.buffer);
        release_ref(&c->f, result);
        free(lists);
        free(lengths);
    }
    wait_all(&c->f);
    release_ref(&c->f, in);
    free(rows);
}

static float *run(const char *isa, uint32_t threads, kmode_t mode, const sequence_t *s,
                  uint32_t from, uint32_t chunk)
{
    cache_t c = open_cache(isa, threads, mode, s);
    float *out = MEM_NEW_ARRAY(float, (size_t)(s->n - from) * s->kind->heads * s->kind->value_dim);
    for (uint32_t first = 0; first < s->n;) {
        uint32_t end = first < from ? from : s->n; /* what is not looked at goes in at once */
        end = end - first < chunk || first < from ? end : first + chunk;
        step(&c, s, first, end, from, out);
        first = end;
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

static double kept_at(const sequence_t *s, kmode_t mode, size_t at)
{
    return s->kept != NULL ? s->kept[at] : stored(s->rows[at], mode);
}

static void exact_row(const sequence_t *s, kmode_t mode, uint32_t row, uint32_t head, double *out)
{
    const kind_t *kind = s->kind;
    uint32_t kv = head * kind->kv_heads / kind->heads;
    double *p = MEM_NEW_ARRAY(double, row + 1), most = -INFINITY, total = 0;
    double sink = kind->sinks ? (double)s->sinks[head] : -INFINITY;
    const float *q = s->rows + (size_t)row * s->width + head * kind->key_dim;
    for (uint32_t t = 0; t <= row; t++) {
        size_t k = (size_t)t * s->width + s->k_at + kv * kind->key_dim;
        double dot = 0;
        p[t] = -INFINITY;
        if (!is_seen(kind, row, t))
            continue;
        for (uint32_t d = 0; d < kind->key_dim; d++)
            dot += stored(q[d], mode) * kept_at(s, mode, k + d);
        p[t] = dot / sqrt(kind->key_dim);
        if (kind->softcap > 0)
            p[t] = (double)kind->softcap * tanh(p[t] / (double)kind->softcap);
        most = fmax(most, p[t]);
    }
    most = fmax(most, sink);
    for (uint32_t t = 0; t <= row; t++)
        total += p[t] = exp(p[t] - most);
    total += exp(sink - most);
    for (uint32_t d = 0; d < kind->value_dim; d++) {
        out[d] = 0;
        for (uint32_t t = 0; t <= row; t++) {
            size_t v = (size_t)t * s->width + (kind->values_in_keys
                                                   ? s->k_at + kv * kind->key_dim
                                                   : s->v_at + kv * kind->value_dim);
            out[d] += p[t] > 0 ? p[t] / total * kept_at(s, mode, v + d) : 0;
        }
    }
    free(p);
}

static void assert_exact(const sequence_t *s, kmode_t mode, uint32_t from, uint32_t every,
                         const float *found)
{
    const kind_t *kind = s->kind;
    /* A BF16 probability is off by 2^-9 of itself; the values are within about 6. */
    double bound = mode == KMODE_F32 ? 2e-5 : 6.0 * 0x1p-9;
    for (uint32_t row = from; row < s->n; row += every)
        for (uint32_t head = 0; head < kind->heads; head++) {
            double exact[KHEAD_DIM_MAX];
            exact_row(s, mode, row, head, exact);
            for (uint32_t d = 0; d < kind->value_dim; d++) {
                float y = found[((size_t)(row - from) * kind->heads + head) * kind->value_dim + d];
                if (!(fabs((double)y - exact[d]) <= bound))
                    fail_test("%s: mode %d row %u head %u: %g, exactly %g", kind->name, (int)mode,
                              row, head, (double)y, exact[d]);
            }
        }
}

static void test_every_kind_is_its_softmax_and_has_one_set_of_bits(void **state)
{
    (void)state;
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    static const uint32_t chunks[] = {1000, 64, 7};
    for (uint32_t i = 0; i < 4 * N_KINDS; i++) {
        const kind_t *kind = &KINDS[i / 4];
        kmode_t mode = i % 4 == 1 ? KMODE_F32 : KMODE_NATIVE;
        if (i % 4 > 1 && !has_codes(kind))
            continue;
        /* The largest ones take their share of a second. */
        sequence_t s = make_sequence(kind, kind->key_dim > 500 ? 75 : 590, 100 + i);
        if (i % 4 > 1)
            keep_codes(&s, i % 4 == 2 ? KKV_INT8 : KKV_FP8);
        float *wanted = run("ref", 1, mode, &s, 0, 1000);
        assert_exact(&s, mode, 0, 59, wanted);
        for (uint32_t v = 0; v < n_levels * 2; v++) {
            char what[96];
            uint32_t chunk = chunks[(v + i) % 3];
            snprintf(what, sizeof what, "%s on %s, mode %d, type %d, chunk %u", kind->name,
                     levels[v / 2], (int)mode, (int)s.type, chunk);
            if (v / 2 == 0 && v % 2 == 0)
                continue; /* ref again would only take time */
            float *found = run(levels[v / 2], 1 + v % 3, mode, &s, 0, chunk);
            assert_same_bits(found, wanted, (size_t)s.n * kind->heads * kind->value_dim, what);
            free(found);
        }
        free(wanted);
        free(s.rows);
        free(s.kept);
    }
}

static void test_every_kind_is_its_softmax_beyond_position_8192(void **state)
{
    (void)state;
    enum { N = 8300, FROM = N - 3 };
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    for (uint32_t i = 0; i < 3 * N_KINDS; i++) {
        kind_t few = KINDS[i / 3];
        const kind_t *kind = &few;
        kmode_t mode = i % 3 == 1 ? KMODE_F32 : KMODE_NATIVE;
        if (i % 3 == 2 && !has_codes(kind))
            continue;
        if (few.key_dim > 500)
            few.heads = 2; /* so long a sequence of the largest heads takes its time to make */
        sequence_t s = make_sequence(kind, N, 200 + i);
        if (i % 3 == 2)
            keep_codes(&s, i / 3 % 2 ? KKV_FP8 : KKV_INT8);
        float *wanted = run("ref", 2, mode, &s, FROM, 1000);
        assert_exact(&s, mode, FROM, 1, wanted);
        /* Few rows over many chunks and more threads: these share each row's keys. */
        const char *level = levels[n_levels - 1 - (n_levels > 2 ? (i / 3 + i) % 2 : 0)];
        float *found = run(level, 5 + i % 2, mode, &s, FROM, 1 + i % 2);
        assert_same_bits(found, wanted, 3u * kind->heads * kind->value_dim, kind->name);
        free(found);
        free(wanted);
        free(s.rows);
        free(s.kept);
    }
}

static void test_a_list_that_is_not_ascending_or_visible_is_refused(void **state)
{
    (void)state;
    const kind_t *kind = &KINDS[9];
    sequence_t s = make_sequence(kind, 20, 1);
    static const uint32_t bad[][2] = {{4, 4}, {5, 3}, {3, 20}, {3, UINT32_MAX}};
    for (uint32_t i = 0; i < 4; i++) {
        cache_t c = open_cache(NULL, 1, KMODE_NATIVE, &s);
        const kernel_ops_t *ops = c.f.ops;
        kbatch_row_t row = {.position = 19};
        kref_t q = ref_of(&c.f, s.rows, s.width * 4), list = ref_of(&c.f, bad[i], 8);
        kref_t n = ref_of(&c.f, &(uint32_t){2}, 4), out = new_ref(&c.f, 4 * 32 * 4);
        kattention_t what = {.n_heads = 4, .head_dim = 32, .kv_head_of = c.map, .scale = 1.0f};
        what.selected = list;
        what.n_selected = n;
        what.selected_ld = 2;
        kevent_t event;
        assert_ok(ops->batch_set(c.f.queue, c.batch, &row, 1, &(kbatch_table_t){c.blocks, 2}, 1));
        assert_ok(ops->attention(c.f.queue, c.batch, c.kv, &what, q, s.width, out));
        assert_ok(ops->event_record(c.f.queue, &event));
        assert_int_equal(ops->event_wait(c.f.queue, event), STATUS_INVALID);
        ops->queue_reset(c.f.queue);
        release_ref(&c.f, q);
        release_ref(&c.f, list);
        release_ref(&c.f, n);
        release_ref(&c.f, out);
        close_cache(&c);
    }
    free(s.rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_is_its_softmax_and_has_one_set_of_bits),
        cmocka_unit_test(test_every_kind_is_its_softmax_beyond_position_8192),
        cmocka_unit_test(test_a_list_that_is_not_ascending_or_visible_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
