/* Weights that are packed as small as their files have them: nibbles with zero points give the bits
 * of the same values as bytes, e4m3 codes those of the same values as BF16, and neither takes more
 * memory than it must. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
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
    const char *levels[3];
    uint32_t n_levels = kernels_cpu_levels(levels);
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

static void test_nibbles_give_the_bits_of_bytes(void **state)
{
    (void)state;
    random_t random = {3};
    for (size_t s = 0; s < sizeof SHAPES / sizeof *SHAPES; s++) {
        const shape_t *shape = &SHAPES[s];
        size_t bytes, n_blocks = (size_t)shape->n * shape->k / QTYPE_Z4_VALUES;
        uint8_t *rows = make_rows(&random, QTYPE_Z4, shape->n, shape->k, &bytes);
        qtype_i8s_t *wide = MEM_NEW_ARRAY(qtype_i8s_t, n_blocks * 4);
        assert_int_equal(bytes, n_blocks * sizeof(qtype_z4_t));
        for (size_t b = 0; b < n_blocks; b++) {
            qtype_z4_t block;
            memcpy(&block, rows + b * sizeof block, sizeof block);
            for (size_t i = 0; i < QTYPE_Z4_VALUES; i++) {
                qtype_i8s_t *to = &wide[b * 4 + i / 32];
                to->d = qtype_f16_to_f32(block.d);
                to->q[i % 32] = (int8_t)((block.q[i / 2] >> (i % 2 * 4) & 15) - block.zero);
            }
        }
        check_twins(shape, QTYPE_Z4, rows, bytes, QTYPE_I8S, (const uint8_t *)wide,
                    n_blocks * 4 * sizeof *wide);
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
    const char *levels[3];
    uint32_t n_levels = kernels_cpu_levels(levels);
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

/* The down-projection of a 7B model, cut as it is: nibbles within 2 % of what the file has (4 bits a
 * value; for each 128 a half and 4 bits), e4m3 within 4 % (a scale for 32 x 128 in place of one for
 * 128 x 128). */
static void test_packed_weights_are_as_small_as_their_files(void **state)
{
    (void)state;
    shape_t shape = {.k = 1184 * 4, .n = 64, .rows = 1, .n_leaves = 4,
                     .edges = {0, 1184, 2368, 3552, 4736}};
    random_t random = {11};
    fixture_t f = open_fixture("ref", 1, KMODE_NATIVE, KQUEUE_NOW);
    static const qtype_t types[] = {QTYPE_Z4, QTYPE_F8S};
    size_t values = (size_t)shape.k * shape.n;
    double file[2] = {(double)values / 2 + (double)values / 128 * 2.5, (double)values};
    double most[2] = {1.02, 1.04};
    float *x = normals(&random, shape.k, 1);
    for (size_t t = 0; t < 2; t++) {
        size_t bytes, packed;
        uint8_t *rows = make_rows(&random, types[t], shape.n, shape.k, &bytes);
        free(multiply(&f, &shape, types[t], rows, bytes, x, &packed));
        print_message("%s: %.4f of the file\n", qtype_name(types[t]), (double)packed / file[t]);
        assert_true((double)packed <= most[t] * file[t]);
        free(rows);
    }
    free(x);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nibbles_give_the_bits_of_bytes),
        cmocka_unit_test(test_e4m3_codes_give_the_bits_of_bf16),
        cmocka_unit_test(test_a_code_that_is_no_number_makes_its_column_none),
        cmocka_unit_test(test_packed_weights_are_as_small_as_their_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
