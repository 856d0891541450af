/* Routers against their formulas in F64, ties, row errors; and the small weights of heads against
 * F64 and the plain matmul. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "support.h"

enum { ROWS = 41, EXPERTS = 24, LD = EXPERTS + 3, TOKENS = 50, TOP_MAX = 8 };

typedef struct {
    const char *name;
    uint32_t top_k;
    kroute_score_t score;
    bool after, bias;
    uint32_t groups, kept;
    bool top2, normalize;
    float factor;
    bool hash;
} router_t;

static const router_t ROUTERS[] = {
    {"softmax, normalized (Mixtral)", 2, KROUTE_SOFTMAX, false, false, 0, 0, false, true, 0, false},
    {"softmax (Qwen2-MoE)", 4, KROUTE_SOFTMAX, false, false, 0, 0, false, false, 0, false},
    {"softmax after (gpt-oss)", 4, KROUTE_SOFTMAX, true, false, 0, 0, false, false, 0, false},
    {"groups by their best (V2)", 6, KROUTE_SOFTMAX, false, false, 8, 3, false, false, 16, false},
    {"groups by two (V3)", 8, KROUTE_SIGMOID, false, true, 8, 4, true, true, 2.5f, false},
    {"sqrt softplus (V4)", 6, KROUTE_SQRT_SOFTPLUS, false, true, 0, 0, false, true, 1.5f, false},
    {"hash (V4)", 3, KROUTE_SQRT_SOFTPLUS, false, false, 0, 0, false, true, 1.5f, true},
};
enum { N_ROUTERS = sizeof ROUTERS / sizeof ROUTERS[0] };

typedef struct {
    float logits[ROWS][LD], bias[EXPERTS];
    uint32_t table[TOKENS][3], tokens[ROWS];
} data_t;

static data_t make_data(uint64_t seed)
{
    random_t random = {seed};
    data_t data;
    for (uint32_t i = 0; i < ROWS * LD; i++)
        data.logits[i / LD][i % LD] = random_normal(&random) * (i % 7 == 0 ? 12.0f : 2.0f);
    for (uint32_t i = 0; i < EXPERTS; i++)
        data.bias[i] = 1.0f + 0.3f * random_normal(&random);
    for (uint32_t i = 0; i < TOKENS * 3; i++)
        data.table[i / 3][i % 3] = random_below(&random, EXPERTS);
    for (uint32_t i = 0; i < ROWS; i++)
        data.tokens[i] = random_below(&random, TOKENS);
    return data;
}

static void run(const router_t *router, const data_t *data, kqueue_kind_t kind, uint32_t *ids,
                float *weights, uint8_t *errors)
{
    fixture_t f = open_fixture(NULL, 2, KMODE_NATIVE, kind);
    kbatch_t *batch = NULL;
    kbatch_row_t rows[ROWS];
    uint32_t blocks[ROWS] = {0};
    for (uint32_t i = 0; i < ROWS; i++)
        rows[i] = (kbatch_row_t){.token = data->tokens[i], .position = i};
    assert_ok(f.ops->batch_new(f.device, ROWS, 16, &batch));
    assert_ok(f.ops->batch_set(f.queue, batch, rows, ROWS, &(kbatch_table_t){blocks, 16}, 1));
    kref_t logits = ref_of(&f, data->logits, sizeof data->logits);
    kref_t bias = ref_of(&f, data->bias, sizeof data->bias);
    kref_t table = ref_of(&f, data->table, sizeof data->table);
    size_t bytes = (size_t)ROWS * router->top_k * 4;
    kref_t out = new_ref(&f, bytes), out_weights = new_ref(&f, bytes);
    kroute_spec_t spec = {.n_experts = EXPERTS,
                          .top_k = router->top_k,
                          .score = router->score,
                          .softmax_after = router->after,
                          .bias = router->bias ? bias : (kref_t){0},
                          .n_groups = router->groups,
                          .groups_kept = router->kept,
                          .group_sum_top2 = router->top2,
                          .normalize = router->normalize,
                          .factor = router->factor,
                          .hash = router->hash ? table : (kref_t){0},
                          .n_hash_rows = TOKENS};
    assert_ok(f.ops->route(f.queue, batch, &spec, logits, LD, out, out_weights));
    wait_all(&f);
    memcpy(ids, f.ops->buffer_host(out.buffer), bytes);
    memcpy(weights, f.ops->buffer_host(out_weights.buffer), bytes);
    (void)f.ops->batch_row_errors(batch, errors);
    release_ref(&f, logits);
    release_ref(&f, bias);
    release_ref(&f, table);
    release_ref(&f, out);
    release_ref(&f, out_weights);
    f.ops->batch_release(batch);
    close_fixture(&f);
}

static double exact_score(const router_t *router, const float *logits, uint32_t i)
{
    double x = (double)logits[i], total = 0, most = -INFINITY;
    if (router->score == KROUTE_SIGMOID)
        return 1 / (1 + exp(-x));
    if (router->score == KROUTE_SQRT_SOFTPLUS)
        return sqrt(x > 20 ? x : log1p(exp(x)));
    if (router->after)
        return x;
    for (uint32_t j = 0; j < EXPERTS; j++)
        most = fmax(most, (double)logits[j]);
    for (uint32_t j = 0; j < EXPERTS; j++)
        total += exp((double)logits[j] - most);
    return exp(x - most) / total;
}

/* How many of n values are above values[i], or equal to it and before it. */
static uint32_t rank_of(const double *values, uint32_t n, uint32_t i)
{
    uint32_t rank = 0;
    for (uint32_t j = 0; j < n; j++)
        rank += values[j] > values[i] || (values[j] == values[i] && j < i);
    return rank;
}

static void exact_choice(const router_t *router, const data_t *data, uint32_t row, bool *chosen)
{
    double choice[EXPERTS], groups[EXPERTS];
    uint32_t size = router->groups > 1 ? EXPERTS / router->groups : EXPERTS;
    for (uint32_t i = 0; i < EXPERTS; i++)
        choice[i] =
            exact_score(router, data->logits[row], i) + (router->bias ? (double)data->bias[i] : 0);
    for (uint32_t g = 0; g < EXPERTS / size; g++) {
        groups[g] = 0;
        for (uint32_t i = 0; i < size; i++)
            if (rank_of(choice + g * size, size, i) < (router->top2 ? 2 : 1))
                groups[g] += choice[g * size + i];
    }
    for (uint32_t i = 0; i < EXPERTS; i++)
        if (router->groups > 1 && rank_of(groups, EXPERTS / size, i / size) >= router->kept)
            choice[i] = -INFINITY;
    for (uint32_t i = 0; i < EXPERTS; i++)
        chosen[i] = rank_of(choice, EXPERTS, i) < router->top_k;
}

static void check_row(const router_t *router, const data_t *data, uint32_t row, const uint32_t *ids,
                      const float *weights)
{
    double exact[TOP_MAX], sum = 0, most = -INFINITY;
    if (router->hash) {
        uint32_t sums[2] = {0};
        for (uint32_t i = 0; i < 3; i++) {
            sums[0] += 1u << ids[i];
            sums[1] += 1u << data->table[data->tokens[row]][i];
        }
        assert_int_equal(sums[0], sums[1]);
        assert_true(ids[0] <= ids[1] && ids[1] <= ids[2]);
    } else {
        bool chosen[EXPERTS];
        exact_choice(router, data, row, chosen);
        for (uint32_t i = 0; i < router->top_k; i++)
            assert_true(chosen[ids[i]] && (i == 0 || ids[i] > ids[i - 1]));
    }
    for (uint32_t i = 0; i < router->top_k; i++) {
        exact[i] = exact_score(router, data->logits[row], ids[i]);
        most = fmax(most, exact[i]);
    }
    for (uint32_t i = 0; i < router->top_k; i++) {
        if (router->after)
            exact[i] = exp(exact[i] - most);
        sum += exact[i];
    }
    for (uint32_t i = 0; i < router->top_k; i++) {
        double wanted = exact[i] / (router->normalize || router->after ? sum : 1) *
                        (router->factor != 0 ? (double)router->factor : 1);
        if (!(fabs((double)weights[i] - wanted) <= 6e-6 * wanted))
            fail_test("%s: row %u weight %u is %g, exactly %g", router->name, row, i,
                      (double)weights[i], wanted);
    }
}

static void test_every_router_chooses_and_weighs_by_its_formula(void **state)
{
    (void)state;
    for (uint32_t r = 0; r < N_ROUTERS; r++)
        for (uint32_t seed = 0; seed < 4; seed++) {
            data_t data = make_data(70 + seed);
            uint32_t ids[ROWS * TOP_MAX];
            float weights[ROWS * TOP_MAX];
            uint8_t errors[ROWS];
            run(&ROUTERS[r], &data, seed % 2 ? KQUEUE_LATE : KQUEUE_NOW, ids, weights, errors);
            for (uint32_t row = 0; row < ROWS; row++) {
                assert_int_equal(errors[row], 0);
                check_row(&ROUTERS[r], &data, row, ids + (size_t)row * ROUTERS[r].top_k,
                          weights + (size_t)row * ROUTERS[r].top_k);
            }
        }
}

static void test_ties_go_to_the_lower_expert_and_the_lower_group(void **state)
{
    (void)state;
    uint32_t ids[ROWS * TOP_MAX];
    float weights[ROWS * TOP_MAX];
    uint8_t errors[ROWS];
    data_t data = make_data(1);
    for (uint32_t i = 0; i < LD; i++)
        data.logits[0][i] = data.logits[1][i] = 0.5f;
    for (uint32_t i = 0; i < EXPERTS; i++)
        data.bias[i] = 1.0f;
    data.logits[1][20] = 0.75f;
    run(&ROUTERS[0], &data, KQUEUE_NOW, ids, weights, errors);
    assert_true(ids[0] == 0 && ids[1] == 1 && ids[2] == 0 && ids[3] == 20);
    run(&ROUTERS[4], &data, KQUEUE_NOW, ids, weights, errors);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(ids[i], i);
    for (uint32_t i = 0; i < 8; i++) /* groups 0, 1, 2 and the one of expert 20 are kept */
        assert_int_equal(ids[8 + i], i < 7 ? i : 20);
}

static void test_a_logit_that_is_not_finite_is_a_row_error(void **state)
{
    (void)state;
    for (uint32_t r = 0; r < N_ROUTERS; r++) {
        uint32_t ids[ROWS * TOP_MAX];
        float weights[ROWS * TOP_MAX];
        uint8_t errors[ROWS];
        data_t data = make_data(2);
        data.logits[7][11] = r % 2 ? NAN : -INFINITY;
        run(&ROUTERS[r], &data, KQUEUE_NOW, ids, weights, errors);
        uint32_t k = ROUTERS[r].top_k;
        for (uint32_t row = 0; row < ROWS; row++) {
            assert_int_equal(errors[row], row == 7);
            if (row != 7)
                check_row(&ROUTERS[r], &data, row, ids + (size_t)row * k,
                          weights + (size_t)row * k);
            for (uint32_t i = 0; row == 7 && i < k; i++)
                assert_true(isnan(weights[7 * k + i]) && ids[7 * k + i] == i);
        }
    }
}

/* ---- heads ---- */

static void test_each_head_has_its_own_matrix_and_place(void **state)
{
    (void)state;
    enum { HEADS = 5, IN = 39, OUT = 50, N = 70, X_LD = HEADS * 45, OUT_LD = HEADS * 52 + 3 };
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    random_t random = {81};
    float *w = MEM_NEW_ARRAY(float, HEADS *OUT *IN), *x = MEM_NEW_ARRAY(float, N *X_LD);
    float *first = MEM_NEW_ARRAY(float, N *OUT_LD);
    for (uint32_t i = 0; i < HEADS * OUT * IN; i++)
        w[i] = random_normal(&random);
    for (uint32_t i = 0; i < N * X_LD; i++)
        x[i] = random_normal(&random);
    for (uint32_t i = 0; i < 2 * n_levels; i++) {
        kmode_t mode = i / n_levels ? KMODE_F32 : KMODE_NATIVE;
        fixture_t f =
            open_fixture(levels[i % n_levels], 1 + i % 3, mode, i % 2 ? KQUEUE_LATE : KQUEUE_NOW);
        kheads_spec_t spec = {.name = "w", .values = w, .n_heads = HEADS, .out_dim = OUT};
        spec.in_dim = IN;
        kheads_t *heads = NULL;
        kbatch_t *batch = NULL;
        assert_ok(f.ops->heads_pack(f.device, &spec, &heads));
        assert_ok(f.ops->batch_new(f.device, N, 0, &batch));
        assert_ok(f.ops->batch_set_plain(f.queue, batch, N));
        kref_t in = ref_of(&f, x, N * X_LD * 4), out = new_ref(&f, N * OUT_LD * 4);
        assert_ok(f.ops->head_matmul(f.queue, batch, heads, in, (kheads_at_t){X_LD, 45, 4}, out,
                                     (kheads_at_t){OUT_LD, 52, 1}));
        wait_all(&f);
        const float *y = f.ops->buffer_host(out.buffer);
        if (i % n_levels == 0)
            memcpy(first, y, N * OUT_LD * 4);
        assert_same_bits(y, first, N * OUT_LD, levels[i % n_levels]);
        for (uint32_t at = 0; at < N * OUT_LD; at++) {
            uint32_t column = at % OUT_LD - 1, h = column / 52, o = column % 52;
            double exact = 0;
            for (uint32_t k = 0; at % OUT_LD > 0 && h < HEADS && o < OUT && k < IN; k++)
                exact += (double)w[(h * OUT + o) * IN + k] *
                         (double)x[at / OUT_LD * X_LD + 4 + h * 45 + k];
            assert_true(fabs((double)y[at] - exact) <= (mode == KMODE_F32 ? 2e-5 : 0.2));
        }
        release_ref(&f, in);
        release_ref(&f, out);
        f.ops->heads_release(heads);
        f.ops->batch_release(batch);
        close_fixture(&f);
    }
    free(w);
    free(x);
    free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_router_chooses_and_weighs_by_its_formula),
        cmocka_unit_test(test_ties_go_to_the_lower_expert_and_the_lower_group),
        cmocka_unit_test(test_a_logit_that_is_not_finite_is_a_row_error),
        cmocka_unit_test(test_each_head_has_its_own_matrix_and_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
