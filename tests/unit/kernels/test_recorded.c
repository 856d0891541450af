/* Digests of ref's bits, recorded for NUMERICS_VERSION 2; 3 moved leaf edges alone, which are the
 * caller's (plan_slices_test.c has them). They go red when a definition changes for
 * all levels at once, which comparing levels cannot see; then either the change is wrong, or the
 * version is raised, docs/numerics.md says so, and the digests are recorded anew. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/internal.h"
#include "support.h"

static uint64_t fold(uint64_t digest, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        digest = (digest ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ull;
    return digest;
}

static void expect(const char *what, uint64_t found, uint64_t wanted)
{
    if (found != wanted)
        fail_test("%s: digest 0x%016llxull, recorded 0x%016llxull", what, (unsigned long long)found,
                  (unsigned long long)wanted);
}

/* One matmul of 3 rows: of one leaf, or over leaves that cut blocks and groups. */
static uint64_t matmul_digest(qtype_t type, kmode_t mode, bool one_leaf)
{
    enum { N = 37, ROWS = 3 };
    const uint32_t k = qtype_info(type)->block_values == 256 ? 1280 : 1056;
    const uint32_t cuts[] = {0, 200, 640, 1000, k}, whole[] = {0, k};
    random_t random = {type + 100u};
    fixture_t f = open_fixture("ref", 1, mode, KQUEUE_NOW);
    size_t bytes;
    uint8_t *data = make_rows(&random, type, N, k, &bytes);
    float *x = make_input(&random, ROWS, k);
    kweight_part_t part = {.qtype = type, .rows = data, .bytes = bytes, .n_rows = N};
    kweight_spec_t spec = {.name = "w",
                           .parts = &part,
                           .n_parts = 1,
                           .k_total = k,
                           .leaf_edges = one_leaf ? whole : cuts,
                           .n_leaves = one_leaf ? 1 : 4,
                           .leaf_end = one_leaf ? 1 : 4};
    kweight_t *weight = NULL;
    assert_ok(f.ops->weight_pack(f.device, &spec, &weight));
    kbatch_t *batch = NULL;
    assert_ok(f.ops->batch_new(f.device, ROWS, 0, &batch));
    assert_ok(f.ops->batch_set_plain(f.queue, batch, ROWS));
    kref_t in = ref_of(&f, x, ROWS * k * sizeof *x), out = new_ref(&f, ROWS * N * sizeof(float));
    kref_t input = new_ref(&f, ROWS * f.ops->weight_info(weight).input_row_bytes);
    assert_ok(f.ops->quantize(f.queue, batch, weight, in, k, input));
    assert_ok(f.ops->matmul(f.queue, batch, weight, input, out));
    wait_all(&f);
    uint64_t digest =
        fold(0xcbf29ce484222325ull, f.ops->buffer_host(out.buffer), ROWS * N * sizeof(float));
    f.ops->batch_release(batch);
    f.ops->weight_release(weight);
    release_ref(&f, in);
    release_ref(&f, out);
    release_ref(&f, input);
    close_fixture(&f);
    free(data);
    free(x);
    return digest;
}

static void test_matmul_has_the_bits_recorded_for_this_numerics_version(void **state)
{
    (void)state;
    static const struct {
        qtype_t type;
        kmode_t mode;
        uint64_t digest, one_leaf;
    } rows[] = {
        {QTYPE_Q8_0, KMODE_NATIVE, 0x9da255412e8177b0ull, 0x5d9c69de6c938106ull},
        {QTYPE_Q4_0, KMODE_NATIVE, 0xcbf78ed02fc05b0aull, 0xda0d72041530050bull},
        {QTYPE_Q4_1, KMODE_NATIVE, 0x2690e955bbf2f11aull, 0xfa6f9256d74dd88cull},
        {QTYPE_Q2_K, KMODE_NATIVE, 0x5557bacf17fea98dull, 0xcf7ba88cdfd01e39ull},
        {QTYPE_Q3_K, KMODE_NATIVE, 0x1a2475ada399575full, 0xd95a705cd115cbcfull},
        {QTYPE_Q4_K, KMODE_NATIVE, 0x62abb61592069cabull, 0xf6b73638d11d5288ull},
        {QTYPE_Q5_K, KMODE_NATIVE, 0x56d672f2a6862b18ull, 0xaebaca7651579708ull},
        {QTYPE_Q6_K, KMODE_NATIVE, 0x21eadc72772022aeull, 0x876ae08a8865fc91ull},
        {QTYPE_BF16, KMODE_NATIVE, 0x36ae405eb6b41a6cull, 0},
        {QTYPE_F16, KMODE_NATIVE, 0xa882631de128405full, 0},
        {QTYPE_F32, KMODE_NATIVE, 0x25649d7762e843f1ull, 0},
        {QTYPE_Q4_1, KMODE_F32, 0x7017ed4c1d7c50fcull, 0},
    };
    assert_int_equal(NUMERICS_VERSION, 3);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        expect(qtype_name(rows[i].type), matmul_digest(rows[i].type, rows[i].mode, false),
               rows[i].digest);
        if (rows[i].one_leaf != 0)
            expect(qtype_name(rows[i].type), matmul_digest(rows[i].type, rows[i].mode, true),
                   rows[i].one_leaf);
    }
}

/* Norm, rope, KV append, attention and the activation function over 530 tokens of one sequence. */
static uint64_t rows_digest(kmode_t mode)
{
    enum { TOKENS = 530, DIM = 32, HEADS = 3, WIDTH = (HEADS + 2) * DIM };
    random_t random = {77};
    fixture_t f = open_fixture("ref", 1, mode, KQUEUE_NOW);
    float *x = MEM_NEW_ARRAY(float, TOKENS *WIDTH);
    float ones[WIDTH];
    for (uint32_t i = 0; i < TOKENS * WIDTH; i++)
        x[i] = random_normal(&random);
    for (uint32_t i = 0; i < WIDTH; i++)
        ones[i] = 1.0f + 0.01f * (float)i;
    kref_t in = ref_of(&f, x, TOKENS * WIDTH * 4), weight = ref_of(&f, ones, sizeof ones);
    kref_t out = new_ref(&f, TOKENS * HEADS * DIM * 4), v = in, k = in;
    kref_t product = new_ref(&f, TOKENS * HEADS * DIM * 2);
    k.offset = HEADS * DIM * 4;
    v.offset = (HEADS + 1) * DIM * 4;
    kkv_shape_t shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = DIM, .n_blocks = 40};
    krope_spec_t spec = {.dim = DIM, .base = 10000.0, .position_scale = 1.0, .positions = TOKENS};
    kattention_t what = {.n_heads = HEADS,
                         .head_dim = DIM,
                         .kv_head_of = (uint16_t[]){0, 0, 0},
                         .scale = 0.17677669f};
    kkv_t *kv = NULL;
    krope_t *rope = NULL;
    kbatch_t *batch = NULL;
    kbatch_row_t rows[TOKENS];
    uint32_t blocks[40];
    for (uint32_t i = 0; i < 40; i++)
        blocks[i] = 39 - i;
    for (uint32_t i = 0; i < TOKENS; i++)
        rows[i] = (kbatch_row_t){.position = i};
    assert_ok(f.ops->kv_open(f.device, &shape, &kv));
    assert_ok(f.ops->rope_open(f.device, &spec, &rope));
    assert_ok(f.ops->batch_new(f.device, TOKENS, 40, &batch));
    assert_ok(f.ops->batch_set(f.queue, batch, rows, TOKENS, &(kbatch_table_t){blocks, 34}, 1));
    assert_ok(f.ops->rmsnorm(f.queue, batch, WIDTH, in, weight, 1e-5f, in));
    assert_ok(f.ops->rope(f.queue, batch, rope, in, WIDTH, HEADS + 1, DIM));
    assert_ok(f.ops->kv_append(f.queue, batch, kv, 0, k, v, WIDTH));
    assert_ok(f.ops->attention(f.queue, batch, kv, &what, in, WIDTH, out));
    assert_ok(f.ops->silu_mul(f.queue, batch, HEADS * DIM / 2, out, product));
    wait_all(&f);
    uint64_t digest =
        fold(0xcbf29ce484222325ull, f.ops->buffer_host(product.buffer), TOKENS * HEADS * DIM * 2);
    f.ops->batch_release(batch);
    f.ops->rope_close(rope);
    f.ops->kv_close(kv);
    release_ref(&f, in);
    release_ref(&f, weight);
    release_ref(&f, out);
    release_ref(&f, product);
    close_fixture(&f);
    free(x);
    return digest;
}

static void test_rows_and_attention_have_the_bits_recorded_for_this_numerics_version(void **state)
{
    (void)state;
    expect("native", rows_digest(KMODE_NATIVE), 0xb197d7ff90e0f909ull);
    expect("f32", rows_digest(KMODE_F32), 0xb15656896b9d8661ull);
}

/* The bytes that matrices of every form are packed into, leaves that cut blocks among them. */
static uint64_t image_digest(kmode_t mode)
{
    enum { N = 37 };
    static const qtype_t types[] = {
        QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_Q5_0, QTYPE_Q5_1,  QTYPE_Q8_0,   QTYPE_Q2_K,
        QTYPE_Q3_K, QTYPE_Q4_K, QTYPE_Q5_K, QTYPE_Q6_K,  QTYPE_I8S,    QTYPE_MXFP4,
        QTYPE_IQ4_NL, QTYPE_IQ4_XS, QTYPE_F8S, QTYPE_BF16, QTYPE_F16,  QTYPE_F32,
        QTYPE_Z4,   QTYPE_Z4_32, QTYPE_S4 + 3, QTYPE_S4_BF16};
    uint64_t digest = 0;
    fixture_t f = open_fixture("ref", 1, mode, KQUEUE_NOW);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        kmultiply_t multiply;
        if (!type_multiply(types[t], mode, &multiply))
            continue;
        const uint32_t k = qtype_info(types[t])->block_values == 256 ? 1280 : 1056;
        const uint32_t cuts[] = {0, 200, 640, 1000, k};
        random_t random = {types[t] + 300u};
        size_t bytes;
        uint8_t *data = make_rows(&random, types[t], N, k, &bytes);
        kweight_part_t part = {.qtype = types[t], .rows = data, .bytes = bytes, .n_rows = N};
        kweight_spec_t spec = {.name = "w",
                               .parts = &part,
                               .n_parts = 1,
                               .k_total = k,
                               .leaf_edges = cuts,
                               .n_leaves = 4,
                               .leaf_first = 1,
                               .leaf_end = 4};
        kweight_t *weight = NULL;
        assert_ok(f.ops->weight_pack(f.device, &spec, &weight));
        digest =
            fold(digest, f.ops->weight_image(weight), f.ops->weight_info(weight).packed_bytes);
        f.ops->weight_release(weight);
        free(data);
    }
    close_fixture(&f);
    return digest;
}

/* Kept weights are mapped as they lie there. Red: count LAYOUT up in weight_image.c, then record. */
static void test_panels_have_the_bytes_recorded_for_this_layout(void **state)
{
    (void)state;
    assert_string_equal(kernels_cpu()->weight_layout(KMODE_NATIVE), "cpu panels 6, native");
    expect("native panels", image_digest(KMODE_NATIVE), 0x476dd66a26a21242ull);
    expect("f32 panels", image_digest(KMODE_F32), 0xe1bebbc808faf725ull);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_has_the_bits_recorded_for_this_numerics_version),
        cmocka_unit_test(test_rows_and_attention_have_the_bits_recorded_for_this_numerics_version),
        cmocka_unit_test(test_panels_have_the_bytes_recorded_for_this_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
