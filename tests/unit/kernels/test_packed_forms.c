/* Weights that are packed as small as their files have them: nibbles with zero points or tables
 * give the bits of the same values as bytes, e4m3 codes those of the same values as BF16, and
 * neither takes more memory than it must. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/internal.h"
#include "support.h"

enum { EDGES_MAX = 8 };

typedef struct {
    uint32_t k, n, rows;
    uint32_t edges[EDGES_MAX + 1], n_leaves;
} shape_t;

/* The partials of all leaves apart, [leaf][rows][n]; *packed_out has the weight's bytes. */
static float *multiply(const fixture_t *f, const shape_t *shape, qtype_t type, const uint8_t *data,
                       size_t bytes, const float *x, size_t *packed_out)
{
    kweight_part_t part = {.qtype = type, .rows = data, .bytes = bytes, .n_rows = shape->n};
    kweight_spec_t spec = {.name = "w", .parts = &part, .n_parts = 1, .k_total = shape->k,
                           .leaf_edges = shape->edges, .n_leaves = shape->n_leaves,
                           .leaf_end = shape->n_leaves, .leaves_apart = true};
    kweight_t *weight;
    kbatch_t *batch;
    assert_ok(f->ops->weight_pack(f->device, &spec, &weight));
    assert_ok(f->ops->batch_new(f->device, shape->rows, 0, &batch));
    assert_ok(f->ops->batch_set_plain(f->queue, batch, shape->rows));
    kweight_info_t info = f->ops->weight_info(weight);
    size_t out_bytes = (size_t)info.n_partials * shape->rows * shape->n * sizeof(float);
    kref_t in = ref_of(f, x, (size_t)shape->rows * shape->k * sizeof *x);
    kref_t input = new_ref(f, shape->rows * info.input_row_bytes), out = new_ref(f, out_bytes);
    assert_ok(f->ops->quantize(f->queue, batch, weight, in, shape->k, input));
    assert_ok(f->ops->matmul(f->queue, batch, weight, input, out));
    wait_all(f);
    float *found = mem_new(1, out_bytes);
    memcpy(found, f->ops->buffer_host(out.buffer), out_bytes);
    *packed_out = info.packed_bytes;
    release_ref(f, in);
    release_ref(f, input);
    release_ref(f, out);
    f->ops->batch_release(batch);
    f->ops->weight_release(weight);
    return found;
}

/* Both forms on every level, every number of rows that has kernels of its own. */
static void check_twins(const shape_t *shape, qtype_t small, const uint8_t *small_rows,
                        size_t small_bytes, qtype_t large, const uint8_t *large_rows,
                        size_t large_bytes)
{
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    random_t random = {77};
    for (uint32_t rows = 1; rows <= 11; rows++) {
        shape_t with = *shape;
        with.rows = rows;
        float *x = make_input(&random, rows, shape->k);
        for (uint32_t v = 0; v < n_levels; v++) {
            size_t packed[2];
            fixture_t f = open_fixture(levels[v], 1, KMODE_NATIVE, KQUEUE_NOW);
            float *a = multiply(&f, &with, small, small_rows, small_bytes, x, &packed[0]);
            float *b = multiply(&f, &with, large, large_rows, large_bytes, x, &packed[1]);
            assert_same_bits(a, b, (size_t)shape->n_leaves * rows * shape->n, levels[v]);
            assert_true(packed[0] < packed[1]);
            free(a);
            free(b);
            close_fixture(&f);
        }
        free(x);
    }
}

static const shape_t SHAPES[] = {
    {.k = 512, .n = 70, .n_leaves = 1, .edges = {0, 512}},
    {.k = 384, .n = 33, .n_leaves = 5, .edges = {0, 96, 130, 130, 256, 384}},
    {.k = 640, .n = 32, .n_leaves = 4, .edges = {0, 160, 320, 480, 640}},
};

static float z4_scale(qtype_t type, const uint8_t *block)
{
    uint16_t half;
    memcpy(&half, block, sizeof half);
    return qtype_z4_is_bf16(type) ? qtype_bf16_to_f32(half) : qtype_f16_to_f32(half);
}

/* Groups of every size, scales of both kinds, zero points of their own and without. */
static void test_nibbles_give_the_bits_of_bytes(void **state)
{
    (void)state;
    random_t random = {3};
    for (uint32_t t = QTYPE_Z4; t < QTYPE_OWN_END; t++) {
        const shape_t *shape = &SHAPES[t % (sizeof SHAPES / sizeof *SHAPES)];
        const qtype_info_t *info = qtype_info(t);
        size_t bytes, n_blocks = (size_t)shape->n * shape->k / 32;
        uint8_t *rows = make_rows(&random, (qtype_t)t, shape->n, shape->k, &bytes);
        qtype_i8s_t *wide = MEM_NEW_ARRAY(qtype_i8s_t, n_blocks);
        for (size_t b = 0; b < n_blocks; b++) {
            size_t k = b * 32 % shape->k, row = b * 32 / shape->k, at = k % info->block_values;
            const uint8_t *block = rows + row * (bytes / shape->n) +
                                   k / info->block_values * info->block_bytes;
            wide[b].d = z4_scale((qtype_t)t, block);
            for (size_t i = 0; i < 32; i++, at++)
                wide[b].q[i] = (int8_t)((block[3 + at / 2] >> (at % 2 * 4) & 15) - block[2]);
        }
        check_twins(shape, (qtype_t)t, rows, bytes, QTYPE_I8S, (const uint8_t *)wide,
                    n_blocks * sizeof *wide);
        free(rows);
        free(wide);
    }
}

/* Tables of 16 integers name what is in the dequantized values, whose scales are floats. */
static void test_codes_of_tables_give_the_bits_of_bytes(void **state)
{
    (void)state;
    static const int8_t iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
    static const qtype_t types[] = {QTYPE_IQ4_NL, QTYPE_IQ4_XS, QTYPE_MXFP4};
    random_t random = {21};
    const shape_t shape = {.k = 768, .n = 70, .n_leaves = 5, .edges = {0, 96, 130, 130, 416, 768}};
    for (size_t t = 0; t < 3; t++) {
        size_t bytes, n_blocks = (size_t)shape.n * shape.k / 32;
        uint8_t *rows = make_rows(&random, types[t], shape.n, shape.k, &bytes);
        qtype_i8s_t *wide = MEM_NEW_ARRAY(qtype_i8s_t, n_blocks);
        for (size_t b = 0; b < n_blocks; b++) {
            const uint8_t *block, *q;
            uint16_t half;
            if (types[t] == QTYPE_IQ4_XS) {
                block = rows + b / 8 * 136, q = block + 8 + b % 8 * 16;
                uint32_t high = block[2] | (uint32_t)block[3] << 8;
                int scale = (block[4 + b % 8 / 2] >> (b % 2 * 4) & 15) |
                            (int)(high >> (b % 8 * 2) & 3) << 4;
                memcpy(&half, block, 2);
                wide[b].d = qtype_f16_to_f32(half) * (float)(scale - 32);
            } else if (types[t] == QTYPE_IQ4_NL) {
                block = rows + b * 18, q = block + 2;
                memcpy(&half, block, 2);
                wide[b].d = qtype_f16_to_f32(half);
            } else {
                block = rows + b * 17, q = block + 1;
                wide[b].d = ldexpf(1, (int)block[0] - 128);
            }
            for (size_t i = 0; i < 32; i++) {
                uint32_t code = q[i % 16] >> (i / 16 * 4) & 15;
                static const int8_t e2m1[8] = {0, 1, 2, 3, 4, 6, 8, 12};
                wide[b].q[i] = types[t] != QTYPE_MXFP4 ? iq4[code]
                               : (int8_t)(code < 8 ? e2m1[code] : -e2m1[code - 8]);
            }
        }
        check_twins(&shape, types[t], rows, bytes, QTYPE_I8S, (const uint8_t *)wide,
                    n_blocks * sizeof *wide);
        free(rows);
        free(wide);
    }
}

/* The fifth bits of Q5_0 stand in lines of their own; a leaf that cuts a block has some of them. */
static void test_fifth_bits_give_the_bits_of_bytes(void **state)
{
    (void)state;
    random_t random = {31};
    for (size_t t = 0; t < sizeof SHAPES / sizeof *SHAPES; t++) {
        size_t bytes, n_blocks = (size_t)SHAPES[t].n * SHAPES[t].k / 32;
        uint8_t *rows = make_rows(&random, QTYPE_Q5_0, SHAPES[t].n, SHAPES[t].k, &bytes);
        qtype_i8s_t *wide = MEM_NEW_ARRAY(qtype_i8s_t, n_blocks);
        for (size_t b = 0; b < n_blocks; b++) {
            const uint8_t *block = rows + b * 22;
            uint16_t half;
            uint32_t high;
            memcpy(&half, block, sizeof half);
            memcpy(&high, block + 2, sizeof high);
            wide[b].d = qtype_f16_to_f32(half);
            for (size_t i = 0; i < 32; i++) {
                uint32_t nibble = block[6 + i % 16] >> (i / 16 * 4) & 15;
                wide[b].q[i] = (int8_t)((int)(nibble | (high >> i & 1) << 4) - 16);
            }
        }
        check_twins(&SHAPES[t], QTYPE_Q5_0, rows, bytes, QTYPE_I8S, (const uint8_t *)wide,
                    n_blocks * sizeof *wide);
        free(rows);
        free(wide);
    }
}

/* Powers of two in the place of a half d and dmin, so that their products with 6 bits are halves. */
static void tame_halves(random_t *random, uint8_t *halves, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint16_t half = (uint16_t)((5 + random_below(random, 5)) << 10);
        memcpy(halves + 2 * (size_t)i, &half, sizeof half);
    }
}

static uint16_t half_of(float value)
{
    uint16_t half = qtype_f32_to_f16(value);
    assert_true(qtype_f16_to_f32(half) == value);
    return half;
}

/* One block of 32 as Q4_1 and Q5_1 have it. */
static void put_block(bool five, const kcodes_t *codes, uint8_t *to)
{
    uint16_t halves[2] = {half_of(codes->d), half_of(codes->m)};
    uint32_t high = 0;
    memcpy(to, halves, sizeof halves);
    for (uint32_t i = 0; i < 32; i++)
        high |= (uint32_t)(codes->q[i] >> 4) << i;
    if (five)
        memcpy(to + 4, &high, sizeof high);
    for (uint32_t i = 0; i < 16; i++)
        to[(five ? 8 : 4) + i] = (uint8_t)((codes->q[i] & 15) | codes->q[i + 16] << 4);
}

/* Scales and minimums of 6 bits under two halves are those products:
 * the same integers under one half each give the same bits. Leaves cut the blocks
 * of 256. */
static void test_scales_of_runs_give_the_bits_of_their_products(void **state)
{
    (void)state;
    static const struct {
        qtype_t small, large;
        size_t bytes, large_bytes; /* of a block */
    } twins[] = {{QTYPE_Q4_K, QTYPE_Q4_1, 144, 20}, {QTYPE_Q5_K, QTYPE_Q5_1, 176, 24}};
    static const shape_t shapes[] = {
        {.k = 768, .n = 70, .n_leaves = 5, .edges = {0, 96, 130, 130, 416, 768}},
        {.k = 1024, .n = 33, .n_leaves = 1, .edges = {0, 1024}}};
    random_t random = {41};
    for (size_t t = 0; t < 4; t++) {
        const shape_t *shape = &shapes[t / 2];
        qtype_t small = twins[t % 2].small, large = twins[t % 2].large;
        size_t bytes, n_blocks = (size_t)shape->n * shape->k / 32;
        size_t large_bytes = n_blocks * twins[t % 2].large_bytes;
        uint8_t *rows = make_rows(&random, small, shape->n, shape->k, &bytes);
        uint8_t *wide = mem_new(large_bytes, 1);
        kmultiply_t multiply;
        assert_true(type_multiply(small, KMODE_NATIVE, &multiply));
        for (size_t b = 0; b < n_blocks / 8; b++)
            tame_halves(&random, rows + b * twins[t % 2].bytes, 2);
        for (size_t b = 0; b < n_blocks; b++) {
            kcodes_t codes;
            multiply.codes(rows, (uint32_t)b, &codes);
            put_block(large == QTYPE_Q5_1, &codes, wide + b * twins[t % 2].large_bytes);
        }
        check_twins(shape, small, rows, bytes, large, wide, large_bytes);
        free(rows);
        free(wide);
    }
}

/* Under a scale of one, sums of a run of 128 are those of BF16; leaves are single runs here. */
static void test_e4m3_codes_give_the_bits_of_bf16(void **state)
{
    (void)state;
    random_t random = {5};
    const shape_t shape = {.k = 320, .n = 45, .n_leaves = 4, .edges = {0, 128, 200, 256, 320}};
    size_t bytes, n = (size_t)shape.n * shape.k;
    uint8_t *rows = make_rows(&random, QTYPE_F8S, shape.n, shape.k, &bytes);
    uint16_t *halves = MEM_NEW_ARRAY(uint16_t, n);
    const float one = 1;
    for (uint32_t r = 0; r < shape.n; r++)
        for (uint32_t k = 0; k < shape.k; k++) {
            uint8_t *block = rows + bytes / shape.n * r + k / QTYPE_F8S_VALUES * sizeof(qtype_f8s_t);
            memcpy(block, &one, sizeof one);
            /* Every code but NaN turns up. */
            block[4 + k % QTYPE_F8S_VALUES] = (uint8_t)((r * shape.k + k) % 127 | (k & 1) << 7);
            float value = qtype_e4m3_to_f32(block[4 + k % QTYPE_F8S_VALUES]);
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            assert_int_equal(bits & 0xffff, 0); /* exact in BF16 */
            halves[(size_t)r * shape.k + k] = (uint16_t)(bits >> 16);
        }
    check_twins(&shape, QTYPE_F8S, rows, bytes, QTYPE_BF16, (const uint8_t *)halves, 2 * n);
    free(rows);
    free(halves);
}

/* A value that is no number stays none on every level. */
static void test_a_code_that_is_no_number_makes_its_column_none(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    shape_t shape = {.k = 128, .n = 40, .rows = 2, .n_leaves = 1, .edges = {0, 128}};
    random_t random = {9};
    size_t bytes, packed;
    uint8_t *rows = make_rows(&random, QTYPE_F8S, shape.n, shape.k, &bytes);
    rows[7 * sizeof(qtype_f8s_t) + 4 + 33] = 0x7f;
    rows[36 * sizeof(qtype_f8s_t) + 4 + 2] = 0xff;
    float *x = normals(&random, 2 * 128, 1);
    for (uint32_t v = 0; v < n_levels; v++) {
        fixture_t f = open_fixture(levels[v], 1, KMODE_NATIVE, KQUEUE_NOW);
        float *found = multiply(&f, &shape, QTYPE_F8S, rows, bytes, x, &packed);
        for (uint32_t i = 0; i < 2 * shape.n; i++) {
            bool none = found[i] != found[i];
            assert_int_equal(none, i % shape.n == 7 || i % shape.n == 36);
        }
        free(found);
        close_fixture(&f);
    }
    free(x);
    free(rows);
}

/* Gives all rows of a panel the scales of its first. */
static void share_scales(uint8_t *rows, uint32_t n, size_t row_bytes)
{
    for (uint32_t r = 0; r < n; r++)
        for (size_t at = 0; at < row_bytes; at += sizeof(qtype_f8s_t))
            memcpy(rows + r * row_bytes + at, rows + r / 32 * 32 * row_bytes + at, sizeof(float));
}

static const uint32_t CUT_EDGES[] = {0, 90, 200, 200, 330, 520};

static kweight_t *pack_e4(fixture_t *f, const uint8_t *rows, size_t bytes, const void *image,
                          size_t image_bytes)
{
    kweight_part_t part = {.qtype = QTYPE_F8S, .rows = rows, .bytes = bytes, .row_first = 1,
                           .n_rows = 75};
    kweight_spec_t spec = {.name = "e4", .parts = &part, .n_parts = 1, .k_total = 520,
                           .leaf_edges = CUT_EDGES, .n_leaves = 5, .leaf_first = 1, .leaf_end = 5};
    kweight_t *weight;
    if (image == NULL)
        assert_ok(f->ops->weight_pack(f->device, &spec, &weight));
    else
        assert_ok(f->ops->weight_open_image(f->device, &spec, image, image_bytes, &weight));
    return weight;
}

static float *run_e4(fixture_t *f, const kweight_t *weight, const float *x, uint32_t rows,
                     uint32_t *n_out)
{
    kweight_info_t info = f->ops->weight_info(weight);
    kbatch_t *batch;
    *n_out = info.n_partials * rows * info.n;
    assert_ok(f->ops->batch_new(f->device, rows, 0, &batch));
    assert_ok(f->ops->batch_set_plain(f->queue, batch, rows));
    kref_t in = ref_of(f, x, (size_t)rows * info.k * sizeof *x);
    kref_t input = new_ref(f, rows * info.input_row_bytes);
    kref_t out = new_ref(f, *n_out * sizeof(float));
    assert_ok(f->ops->quantize(f->queue, batch, weight, in, info.k, input));
    assert_ok(f->ops->matmul(f->queue, batch, weight, input, out));
    wait_all(f);
    float *found = MEM_NEW_ARRAY(float, *n_out);
    memcpy(found, f->ops->buffer_host(out.buffer), *n_out * sizeof(float));
    release_ref(f, in);
    release_ref(f, input);
    release_ref(f, out);
    f->ops->batch_release(batch);
    return found;
}

/* One row of another scale makes all columns keep theirs; it multiplies no column that is compared.
 * The cut begins inside a block of K and has an empty leaf. */
static void test_scales_that_columns_share_change_no_bit(void **state)
{
    (void)state;
    const char *levels[TEST_LEVELS_MAX];
    uint32_t n_levels = test_levels(levels);
    random_t random = {31};
    size_t bytes;
    uint8_t *rows = make_rows(&random, QTYPE_F8S, 76, 520, &bytes);
    size_t row_bytes = bytes / 76;
    share_scales(rows + row_bytes, 75, row_bytes);
    uint8_t *lone = mem_new(bytes, 1);
    memcpy(lone, rows, bytes);
    const float other = 1.5f;
    memcpy(lone + 75 * row_bytes + 4 * sizeof(qtype_f8s_t), &other, sizeof other);
    for (uint32_t v = 0; v < n_levels; v++) {
        fixture_t f = open_fixture(levels[v], 1, KMODE_NATIVE, KQUEUE_NOW);
        kweight_t *small = pack_e4(&f, rows, bytes, NULL, 0);
        kweight_t *large = pack_e4(&f, lone, bytes, NULL, 0);
        size_t sizes[2] = {f.ops->weight_info(small).packed_bytes,
                           f.ops->weight_info(large).packed_bytes};
        assert_true(sizes[0] < sizes[1]);
        /* Either image is known by its size. */
        kweight_t *images[2] = {
            pack_e4(&f, NULL, bytes, f.ops->weight_image(small), sizes[0]),
            pack_e4(&f, NULL, bytes, f.ops->weight_image(large), sizes[1])};
        for (uint32_t m = 1; m <= 20; m += m < 9 ? 1 : 11) {
            uint32_t n;
            float *x = make_input(&random, m, 430);
            float *a = run_e4(&f, small, x, m, &n), *b = run_e4(&f, large, x, m, &n);
            float *c = run_e4(&f, images[0], x, m, &n), *d = run_e4(&f, images[1], x, m, &n);
            assert_memory_equal(a, c, n * sizeof *a);
            assert_memory_equal(b, d, n * sizeof *b);
            for (uint32_t i = 0; i < n; i++)
                assert_true(i % 75 == 74 || memcmp(a + i, b + i, sizeof *a) == 0);
            free(x);
            free(a);
            free(b);
            free(c);
            free(d);
        }
        f.ops->weight_release(images[0]);
        f.ops->weight_release(images[1]);
        f.ops->weight_release(small);
        f.ops->weight_release(large);
        close_fixture(&f);
    }
    free(rows);
    free(lone);
}

/* The down-projection of a 7B model, cut as it is: within 2 % of what the file has (Z4: 4 bits a
 * value and for each group a half and 4 bits, of which groups of 32 need 3 %), e4m3 of blocks of
 * 128 x 128 within 1 %, of rows with scales of their own within 4 % of its codes. The leaves cut
 * blocks of 256, whose scale both sides then have. Three times their files take Q2_K, held as
 * nibbles, and Q3_K, held as bytes, under F32 scales. */
static void test_packed_weights_are_as_small_as_their_files(void **state)
{
    (void)state;
    shape_t shape = {.k = 4864, .n = 64, .rows = 1, .n_leaves = 4,
                     .edges = {0, 1216, 2432, 3648, 4864}};
    static const struct {
        qtype_t type;
        double bits, most;
    } rows[] = {
        {QTYPE_Z4, 4 + 20.0 / 128, 1.02},   {QTYPE_F8S, 8, 1.04},
        {QTYPE_F8S, 8 + 32.0 / 16384, 1.01},
        {QTYPE_Z4_32, 4 + 20.0 / 32, 1.03}, {QTYPE_Z4_64, 4 + 20.0 / 64, 1.02},
        {QTYPE_Z4_ROW, 4, 1.02},            {QTYPE_S4_BF16, 4 + 16.0 / 128, 1.02},
        {QTYPE_S4 + 1, 4 + 16.0 / 32, 1.0}, {QTYPE_S4 + 2, 4 + 16.0 / 64, 1.02},
        {QTYPE_S4 + 3, 4, 1.02},
        {QTYPE_IQ4_NL, 18.0 / 4, 1.02},     {QTYPE_IQ4_XS, 136.0 / 32, 1.02},
        {QTYPE_MXFP4, 17.0 / 4, 1.02},      {QTYPE_Q4_0, 18.0 / 4, 1.02},
        {QTYPE_Q4_1, 20.0 / 4, 1.02},       {QTYPE_Q8_0, 34.0 / 4, 1.02},
        {QTYPE_BF16, 16, 1.02},             {QTYPE_Q5_0, 22.0 / 4, 1.0},
        {QTYPE_Q5_1, 24.0 / 4, 1.0},        {QTYPE_Q4_K, 4.5, 1.02},
        {QTYPE_Q5_K, 5.5, 1.02},            {QTYPE_Q6_K, 210.0 / 32, 1.02},
        {QTYPE_I8S, 36.0 / 4, 1.02},        {QTYPE_F16, 16, 1.02},
        {QTYPE_F32, 32, 1.02},              {QTYPE_Q2_K, 84.0 / 32, 3.05},
        {QTYPE_Q3_K, 110.0 / 32, 2.91},
    };
    random_t random = {11};
    fixture_t f = open_fixture("ref", 1, KMODE_NATIVE, KQUEUE_NOW);
    float *x = normals(&random, shape.k, 1);
    for (size_t t = 0; t < sizeof rows / sizeof *rows; t++) {
        size_t bytes, packed;
        uint8_t *data = make_rows(&random, rows[t].type, shape.n, shape.k, &bytes);
        if (rows[t].type == QTYPE_F8S && rows[t].bits > 8)
            share_scales(data, shape.n, bytes / shape.n);
        free(multiply(&f, &shape, rows[t].type, data, bytes, x, &packed));
        double file = (double)shape.k * shape.n * rows[t].bits / 8;
        print_message("%s: %.4f of the file\n", qtype_name(rows[t].type), (double)packed / file);
        assert_true((double)packed <= rows[t].most * file);
        free(data);
    }
    /* What the planner counts of rows that end inside a block of 1,024. */
    for (shape.n_leaves = 1, shape.k = 768; shape.k <= 1536; shape.k += 768)
        for (uint32_t t = QTYPE_Z4_ROW; t <= QTYPE_S4 + 3; t += QTYPE_S4 + 3 - QTYPE_Z4_ROW) {
            size_t bytes, packed;
            shape.edges[1] = shape.k;
            uint8_t *data = make_rows(&random, (qtype_t)t, shape.n, shape.k, &bytes);
            free(multiply(&f, &shape, (qtype_t)t, data, bytes, x, &packed));
            double held = (double)qtype_held_bytes(t, shape.k, bytes / shape.n) * shape.n;
            print_message("%s, K %u: %.4f of what is counted\n", qtype_name(t), shape.k,
                          (double)packed / held);
            assert_true((double)packed >= 0.99 * held && (double)packed <= 1.02 * held);
            free(data);
        }
    free(x);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nibbles_give_the_bits_of_bytes),
        cmocka_unit_test(test_codes_of_tables_give_the_bits_of_bytes),
        cmocka_unit_test(test_fifth_bits_give_the_bits_of_bytes),
        cmocka_unit_test(test_scales_of_runs_give_the_bits_of_their_products),
        cmocka_unit_test(test_e4m3_codes_give_the_bits_of_bf16),
        cmocka_unit_test(test_a_code_that_is_no_number_makes_its_column_none),
        cmocka_unit_test(test_scales_that_columns_share_change_no_bit),
        cmocka_unit_test(test_packed_weights_are_as_small_as_their_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
