/* Our own functions against libm (which only tests may call), and the row kernels against F64. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/double_math.h"
#include "kernels/cpu/numbers.h"
#include "support.h"

static void test_exp2_is_within_two_roundings_of_the_truth(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t i = 0; i <= 4000000; i++) {
        float x = -125.0f + 251.0f * (float)i / 4000000.0f;
        worst = fmax(worst, fabs((double)exp2_ref(x) / exp2((double)x) - 1));
    }
    assert_true(worst < 1.2e-7);
    assert_true(exp2_ref(0.0f) == 1.0f && exp2_ref(-0.0f) == 1.0f);
    for (int n = -125; n <= 126; n++)
        assert_true(exp2_ref((float)n) == ldexpf(1.0f, n));
}

static void test_exp2_clamps_and_keeps_nan(void **state)
{
    (void)state;
    assert_true(exp2_ref(-INFINITY) == 0x1p-125f);
    assert_true(exp2_ref(-1e30f) == 0x1p-125f);
    assert_true(exp2_ref(INFINITY) == 0x1p126f);
    assert_true(isnan(exp2_ref(NAN)));
}

static void test_double_functions_agree_with_libm(void **state)
{
    (void)state;
    random_t random = {5};
    for (uint32_t i = 0; i < 200000; i++) {
        double u = random_u32(&random) * 0x1p-32;
        double x = exp2(u * 40 - 20);
        assert_true(fabs(math_log2(x) - log2(x)) <= 1e-15 * (1 + fabs(log2(x))));
        double y = u * 200 - 100;
        assert_true(fabs(math_exp2(y) / exp2(y) - 1) < 1e-15);
        double angle = u * (i % 2 ? 1e6 : 10), s, c;
        math_sin_cos(angle, &s, &c);
        assert_true(fabs(s - sin(angle)) < 1e-15 && fabs(c - cos(angle)) < 1e-15);
    }
}

static void test_bf16_rounds_half_to_even(void **state)
{
    (void)state;
    assert_int_equal(bf16_round(bits_float(0x3f808000)), 0x3f80);
    assert_int_equal(bf16_round(bits_float(0x3f818000)), 0x3f82);
    assert_int_equal(bf16_round(bits_float(0x3f808001)), 0x3f81);
    assert_int_equal(bf16_round_finite(3.4e38f), 0x7f7f);
    assert_int_equal(bf16_round_finite(-3.4e38f), 0xff7f);
}

typedef struct {
    fixture_t f;
    kbatch_t *batch;
} rows_t;

static rows_t open_rows(const char *isa, uint32_t threads, uint32_t n_rows)
{
    rows_t r = {.f = open_fixture(isa, threads, KMODE_NATIVE, KQUEUE_NOW)};
    assert_ok(r.f.ops->batch_new(r.f.device, 64, 0, &r.batch));
    assert_ok(r.f.ops->batch_set_plain(r.f.queue, r.batch, n_rows));
    return r;
}

static void close_rows(rows_t *r)
{
    r->f.ops->batch_release(r->batch);
    close_fixture(&r->f);
}

static void test_rmsnorm_is_the_f64_norm_on_every_level_with_one_set_of_bits(void **state)
{
    (void)state;
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    static const uint32_t widths[] = {1, 15, 16, 20, 24, 40, 96, 576, 1408, 2880};
    random_t random = {6};
    for (uint32_t i = 0; i < 10; i++) {
        uint32_t n = widths[i];
        float *x = MEM_NEW_ARRAY(float, 9u * n), *w = MEM_NEW_ARRAY(float, n), *first = NULL;
        for (uint32_t j = 0; j < 9 * n; j++)
            x[j] = random_normal(&random);
        for (uint32_t j = 0; j < n; j++)
            w[j] = random_normal(&random);
        for (uint32_t v = 0; v < n_levels; v++) {
            rows_t r = open_rows(levels[v], 1 + v, 9);
            kref_t in = ref_of(&r.f, x, 9u * n * 4), weight = ref_of(&r.f, w, n * 4);
            assert_ok(r.f.ops->rmsnorm(r.f.queue, r.batch, n, in, weight, 1e-5f, in));
            wait_all(&r.f);
            const float *y = r.f.ops->buffer_host(in.buffer);
            if (v == 0) {
                first = MEM_NEW_ARRAY(float, 9u * n);
                memcpy(first, y, 9u * n * 4);
            }
            assert_same_bits(y, first, 9u * n, levels[v]);
            release_ref(&r.f, in);
            release_ref(&r.f, weight);
            close_rows(&r);
        }
        for (uint32_t row = 0; row < 9; row++) {
            double sum = 0;
            for (uint32_t j = 0; j < n; j++)
                sum += (double)x[row * n + j] * (double)x[row * n + j];
            for (uint32_t j = 0; j < n; j++) {
                double exact = (double)x[row * n + j] / sqrt(sum / n + 1e-5) * (double)w[j];
                assert_true(fabs((double)first[row * n + j] - exact) <= 1e-6 * fabs(exact) + 1e-12);
            }
        }
        free(x);
        free(w);
        free(first);
    }
}

static void test_silu_is_within_f32_noise_of_the_truth_with_one_set_of_bits(void **state)
{
    (void)state;
    enum { N = 1541 };
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    static float x[5][2 * N];
    for (uint32_t row = 0; row < 5; row++)
        for (uint32_t i = 0; i < 2 * N; i++)
            x[row][i] = i < N ? ((float)i - N / 2) * 0.03f * (float)(1 + row * row * row) : 1.5f;
    float *first = NULL;
    for (uint32_t v = 0; v < n_levels; v++) {
        rows_t r = open_rows(levels[v], 2, 5);
        kref_t in = ref_of(&r.f, x, sizeof x), out = new_ref(&r.f, 5 * N * 4);
        assert_ok(r.f.ops->silu_mul(r.f.queue, r.batch, N, in, out));
        wait_all(&r.f);
        const float *y = r.f.ops->buffer_host(out.buffer);
        if (v == 0) {
            first = MEM_NEW_ARRAY(float, 5 * N);
            memcpy(first, y, 5 * N * 4);
        }
        assert_same_bits(y, first, 5 * N, levels[v]);
        release_ref(&r.f, in);
        release_ref(&r.f, out);
        close_rows(&r);
    }
    for (uint32_t i = 0; i < 5 * N; i++) {
        double g = (double)x[i / N][i % N];
        double exact = g / (1 + exp(-g)) * 1.5;
        assert_true(fabs((double)first[i] - exact) <= 1e-5 * fabs(exact) + 1e-12);
    }
    free(first);
}

static void test_rope_turns_pairs_by_the_angles_of_their_position(void **state)
{
    (void)state;
    enum { DIM = 64, POSITIONS = 3000 };
    float factors[DIM / 2];
    for (uint32_t i = 0; i < DIM / 2; i++)
        factors[i] = 1.0f + 0.1f * (float)i;
    random_t random = {7};
    for (int pairs = KROPE_ADJACENT; pairs <= KROPE_HALVES; pairs++) {
        rows_t r = open_rows(NULL, 2, 5);
        krope_spec_t spec = {.dim = DIM,
                             .pairs = (krope_pairs_t)pairs,
                             .base = 10000.0,
                             .position_scale = 1.0,
                             .factors = pairs ? factors : NULL,
                             .positions = POSITIONS};
        krope_t *rope = NULL;
        assert_ok(r.f.ops->rope_open(r.f.device, &spec, &rope));
        kbatch_t *batch = NULL;
        assert_ok(r.f.ops->batch_new(r.f.device, 8, 400, &batch));
        kbatch_row_t rows[] = {{0, 0, 0}, {0, 1, 0}, {0, 17, 1}, {0, 2998, 2}, {0, 2999, 2}};
        uint32_t blocks[200] = {0};
        kbatch_table_t tables[] = {{blocks, 1}, {blocks, 2}, {blocks, 188}};
        assert_ok(r.f.ops->batch_set(r.f.queue, batch, rows, 5, tables, 3));
        float x[5][3 * DIM + 7];
        for (uint32_t row = 0; row < 5; row++)
            for (uint32_t i = 0; i < 3 * DIM + 7; i++)
                x[row][i] = random_normal(&random);
        kref_t in = ref_of(&r.f, x, sizeof x);
        assert_ok(r.f.ops->rope(r.f.queue, batch, rope, in, 3 * DIM + 7, 3, DIM));
        wait_all(&r.f);
        const float *y = r.f.ops->buffer_host(in.buffer);
        for (uint32_t row = 0; row < 5; row++)
            for (uint32_t i = 0; i < 3 * DIM / 2; i++) {
                uint32_t p = i % (DIM / 2), head = i / (DIM / 2) * DIM;
                uint32_t ia = head + (pairs ? p : 2 * p),
                         ib = head + (pairs ? p + DIM / 2 : 2 * p + 1);
                double step = pow(10000.0, -2.0 * p / DIM) / (pairs ? (double)factors[p] : 1.0);
                double angle = rows[row].position * step;
                double a = (double)x[row][ia], b = (double)x[row][ib];
                size_t at = (size_t)row * (3 * DIM + 7);
                assert_true(fabs((double)y[at + ia] - (a * cos(angle) - b * sin(angle))) < 1e-3);
                assert_true(fabs((double)y[at + ib] - (a * sin(angle) + b * cos(angle))) < 1e-3);
                if (row < 2) /* small angles: F32 noise alone */
                    assert_true(fabs((double)y[at + ia] - (a * cos(angle) - b * sin(angle))) <
                                2e-6);
            }
        release_ref(&r.f, in);
        r.f.ops->rope_close(rope);
        r.f.ops->batch_release(batch);
        close_rows(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp2_is_within_two_roundings_of_the_truth),
        cmocka_unit_test(test_exp2_clamps_and_keeps_nan),
        cmocka_unit_test(test_double_functions_agree_with_libm),
        cmocka_unit_test(test_bf16_rounds_half_to_even),
        cmocka_unit_test(test_rmsnorm_is_the_f64_norm_on_every_level_with_one_set_of_bits),
        cmocka_unit_test(test_silu_is_within_f32_noise_of_the_truth_with_one_set_of_bits),
        cmocka_unit_test(test_rope_turns_pairs_by_the_angles_of_their_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
