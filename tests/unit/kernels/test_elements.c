/* Ops on elements and heads against F64, on every level with one set of bits, at once and late. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "kernels/cpu/numbers.h"
#include "support.h"

enum { ROWS = 9, HEADS = 3, DIM = 44, LD = HEADS * DIM + 5 };

/* Buffers of one call: x and out begin with the same values, so ops in place use out alone. */
typedef struct {
    const fixture_t *f;
    kbatch_t *batch;
    kref_t x, other, bias, out;
} call_t;

typedef status_t (*call_fn)(const call_t *c, const void *arg);

typedef struct {
    const float *x, *other, *bias;
    size_t n_x, n_other, n_out;
} data_t;

static float *run(const char *isa, uint32_t threads, kqueue_kind_t kind, call_fn fn,
                  const void *arg, const data_t *data)
{
    fixture_t f = open_fixture(isa, threads, KMODE_NATIVE, kind);
    call_t c = {.f = &f};
    assert_ok(f.ops->batch_new(f.device, 64, 64, &c.batch));
    kbatch_row_t rows[ROWS];
    uint32_t blocks[64] = {0};
    for (uint32_t i = 0; i < ROWS; i++)
        rows[i] = (kbatch_row_t){.position = 700 + i};
    assert_ok(f.ops->batch_set(f.queue, c.batch, rows, ROWS, &(kbatch_table_t){blocks, 64}, 1));
    c.x = ref_of(&f, data->x, data->n_x * 4);
    c.other = ref_of(&f, data->other, data->n_other * 4);
    c.bias = ref_of(&f, data->bias, data->n_other * 4);
    c.out = new_ref(&f, data->n_out * 4);
    size_t n = data->n_out < data->n_x ? data->n_out : data->n_x;
    assert_ok(f.ops->copy_in(f.queue, c.out, data->x, n * 4));
    assert_ok(fn(&c, arg));
    wait_all(&f);
    float *found = MEM_NEW_ARRAY(float, data->n_out);
    memcpy(found, f.ops->buffer_host(c.out.buffer), data->n_out * 4);
    release_ref(&f, c.x);
    release_ref(&f, c.other);
    release_ref(&f, c.bias);
    release_ref(&f, c.out);
    f.ops->batch_release(c.batch);
    close_fixture(&f);
    return found;
}

/* What ref writes, after every level, threads and a late queue have written the same bits. */
static float *run_everywhere(const char *what, call_fn fn, const void *arg, const data_t *data)
{
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    float *wanted = run("ref", 1, KQUEUE_NOW, fn, arg, data);
    for (uint32_t v = 0; v < 2 * n_levels; v++) {
        float *found =
            run(levels[v / 2], 1 + v % 3, v % 2 ? KQUEUE_LATE : KQUEUE_NOW, fn, arg, data);
        char name[80];
        snprintf(name, sizeof name, "%s on %s", what, levels[v / 2]);
        assert_same_bits(found, wanted, data->n_out, name);
        free(found);
    }
    return wanted;
}

static void assert_near(float found, double wanted, double relative, double absolute,
                        const char *what, size_t at)
{
    if (!(fabs((double)found - wanted) <= relative * fabs(wanted) + absolute))
        fail_test("%s: element %zu is %.9g, exactly %.9g", what, at, (double)found, wanted);
}

static data_t make_data(random_t *random, size_t n_x, size_t n_other, size_t n_out, float factor)
{
    return (data_t){normals(random, n_x, factor),
                    normals(random, n_other, 1.0f),
                    normals(random, n_other, 1.0f),
                    n_x,
                    n_other,
                    n_out};
}

static void free_data(data_t *data)
{
    free((void *)(uintptr_t)data->x);
    free((void *)(uintptr_t)data->other);
    free((void *)(uintptr_t)data->bias);
}

/* ---- norms ---- */

static status_t norm_heads(const call_t *c, const void *arg)
{
    const bool *weighted = arg;
    return c->f->ops->norm_heads(c->f->queue, c->batch, HEADS, DIM, c->out, LD,
                                 *weighted ? c->other : (kref_t){0}, 1e-6f);
}

static void test_each_head_is_normed_by_itself_and_the_rest_of_the_row_stays(void **state)
{
    (void)state;
    random_t random = {21};
    for (uint32_t w = 0; w < 2; w++) {
        bool weighted = w == 1;
        data_t data = make_data(&random, ROWS * LD, DIM, ROWS * LD, 3.0f);
        float *found = run_everywhere("norm_heads", norm_heads, &weighted, &data);
        for (size_t row = 0; row < ROWS; row++)
            for (size_t i = 0; i < LD; i++) {
                size_t at = row * LD + i, head = row * LD + i / DIM * DIM;
                if (i >= HEADS * DIM) {
                    assert_true(found[at] == data.x[at]);
                    continue;
                }
                double sum = 0;
                for (size_t j = 0; j < DIM; j++)
                    sum += (double)data.x[head + j] * (double)data.x[head + j];
                double exact = (double)data.x[at] / sqrt(sum / DIM + 1e-6) *
                               (weighted ? (double)data.other[i % DIM] : 1.0);
                assert_near(found[at], exact, 1e-6, 1e-12, "norm_heads", at);
            }
        free(found);
        free_data(&data);
    }
}

static status_t layer_norm(const call_t *c, const void *arg)
{
    (void)arg;
    return c->f->ops->layer_norm(c->f->queue, c->batch, DIM, c->out, LD, c->other, c->bias, 1e-6f);
}

static void test_layer_norm_takes_the_mean_away(void **state)
{
    (void)state;
    random_t random = {22};
    data_t data = make_data(&random, ROWS * LD, DIM, ROWS * LD, 1.0f);
    float *found = run_everywhere("layer_norm", layer_norm, NULL, &data);
    for (size_t row = 0; row < ROWS; row++) {
        const float *x = data.x + row * LD;
        double mean = 0, squares = 0;
        for (size_t i = 0; i < DIM; i++)
            mean += (double)x[i] / DIM;
        for (size_t i = 0; i < DIM; i++)
            squares += ((double)x[i] - mean) * ((double)x[i] - mean) / DIM;
        for (size_t i = 0; i < LD; i++) {
            double exact =
                ((double)x[i] - mean) / sqrt(squares + 1e-6) * (double)data.other[i % DIM] +
                (double)data.bias[i % DIM];
            assert_near(found[row * LD + i], i < DIM ? exact : (double)x[i], 2e-6, 1e-6,
                        "layer_norm", i);
        }
    }
    free(found);
    free_data(&data);
}

/* ---- activations ---- */

static status_t activate(const call_t *c, const void *arg)
{
    return c->f->ops->activate(c->f->queue, c->batch, arg, DIM * 7, c->x, c->out);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double exact_activation(const kactivate_t *what, double gate, double up)
{
    double limit = (double)what->limit, alpha = (double)what->alpha;
    double clamped = fmax(-limit, fmin(up, limit));
    switch (what->kind) {
    case KACTIVATE_GELU_TANH:
        return 0.5 * gate * (1 + tanh(sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) *
               up;
    case KACTIVATE_CLAMP_GLU:
        gate = fmin(gate, limit);
        return (clamped + 1) * gate * sigmoid(alpha * gate);
    case KACTIVATE_SILU_LIMIT:
        gate = fmin(gate, limit);
        return gate * sigmoid(gate) * clamped;
    default:
        return gate * sigmoid(gate) * up;
    }
}

static void test_every_activation_is_its_formula_side_by_side_and_in_turns(void **state)
{
    (void)state;
    enum { N = DIM * 7 };
    random_t random = {23};
    for (uint32_t i = 0; i < 8; i++) {
        kactivate_t what = {.kind = (kactivate_kind_t)(i / 2),
                            .interleaved = i % 2 == 1,
                            .alpha = 1.702f,
                            .limit = 2.5f};
        data_t data = make_data(&random, ROWS * 2 * N, 1, ROWS * N, 3.0f);
        float *found = run_everywhere("activate", activate, &what, &data);
        for (size_t at = 0; at < ROWS * N; at++) {
            const float *row = data.x + at / N * 2 * N;
            size_t j = at % N;
            double gate = (double)row[what.interleaved ? 2 * j : j];
            double up = (double)row[what.interleaved ? 2 * j + 1 : N + j];
            assert_near(found[at], exact_activation(&what, gate, up), 4e-6, 1e-7, "activate", at);
        }
        free(found);
        free_data(&data);
    }
}

static status_t softcap(const call_t *c, const void *arg)
{
    return c->f->ops->softcap(c->f->queue, c->batch, HEADS * DIM, c->out, LD, *(const float *)arg);
}

static void test_softcap_is_a_tanh_without_lost_digits(void **state)
{
    (void)state;
    random_t random = {24};
    const float cap = 30.0f;
    for (uint32_t i = 0; i < 4; i++) {
        data_t data =
            make_data(&random, ROWS * LD, 1, ROWS * LD, i == 0 ? 1e-3f : (float)(i * i * 15));
        float *found = run_everywhere("softcap", softcap, &cap, &data);
        for (size_t at = 0; at < ROWS * LD; at++) {
            double exact = at % LD < HEADS * DIM
                               ? (double)cap * tanh((double)data.x[at] / (double)cap)
                               : (double)data.x[at];
            assert_near(found[at], exact, 4e-7, 0, "softcap", at);
        }
        free(found);
        free_data(&data);
    }
    assert_true(tanh_ref(INFINITY) == 1.0f && tanh_ref(-1e30f) == -1.0f && isnan(tanh_ref(NAN)));
    assert_true(tanh_ref(0.0f) == 0.0f);
}

/* ---- elements ---- */

static status_t elements(const call_t *c, const void *arg)
{
    (void)arg;
    const kernel_ops_t *ops = c->f->ops;
    kqueue_t *queue = c->f->queue;
    kref_t gate = {c->x.buffer, 8};
    TRY(ops->scale(queue, c->batch, HEADS * DIM, c->out, LD, 3.0f));
    TRY(ops->gate_rows(queue, c->batch, HEADS * DIM, c->out, LD, gate, LD));
    TRY(ops->add(queue, c->batch, LD, c->out, c->x, c->out));
    return ops->mul(queue, c->batch, LD, c->x, c->out, c->out);
}

static void test_scale_gate_add_and_mul_are_what_they_say(void **state)
{
    (void)state;
    random_t random = {25};
    data_t data = make_data(&random, ROWS * LD, 1, ROWS * LD, 1.0f);
    float *found = run_everywhere("elements", elements, NULL, &data);
    for (size_t at = 0; at < ROWS * LD; at++) {
        double x = (double)data.x[at], gate = sigmoid((double)data.x[at / LD * LD + 2]);
        double y = at % LD < HEADS * DIM ? x * 3 * gate : x;
        assert_near(found[at], x * (y + x), 2e-6, 1e-12, "elements", at);
    }
    free(found);
    free_data(&data);
}

static status_t copy_heads(const call_t *c, const void *arg)
{
    (void)arg;
    kheads_at_t from = {.ld = LD, .stride = DIM, .first = 7},
                to = {.ld = LD, .stride = 20, .first = 1};
    return c->f->ops->copy_heads(c->f->queue, c->batch, HEADS, 12, c->x, from, c->out, to);
}

static void test_copy_heads_moves_the_named_columns_alone(void **state)
{
    (void)state;
    random_t random = {26};
    data_t data = make_data(&random, ROWS * LD, 1, ROWS * LD, 1.0f);
    float *found = run_everywhere("copy_heads", copy_heads, NULL, &data);
    for (size_t at = 0; at < ROWS * LD; at++) {
        size_t column = at % LD, head = (column - 1) / 20, in = (column - 1) % 20;
        bool moved = column >= 1 && head < HEADS && in < 12;
        assert_true(found[at] == data.x[moved ? at - column + 7 + head * DIM + in : at]);
    }
    free(found);
    free_data(&data);
}

/* ---- rope ---- */

static status_t rope(const call_t *c, const void *arg)
{
    krope_t *made = NULL;
    TRY(c->f->ops->rope_open(c->f->device, arg, &made));
    status_t status = c->f->ops->rope(c->f->queue, c->batch, made, c->out, LD, HEADS, DIM);
    wait_all(c->f); /* the table must live until then */
    c->f->ops->rope_close(made);
    return status;
}

static void test_rope_turns_only_its_dimensions_by_its_magnitude_and_back(void **state)
{
    (void)state;
    random_t random = {27};
    for (uint32_t i = 0; i < 4; i++) {
        krope_spec_t spec = {.dim = 20,
                             .first = 24,
                             .pairs = i % 2 ? KROPE_HALVES : KROPE_ADJACENT,
                             .base = 10000.0,
                             .position_scale = 1.0,
                             .positions = 1000,
                             .magnitude = i < 2 ? 1.25f : 0.0f,
                             .inverse = i >= 2};
        data_t data = make_data(&random, ROWS * LD, 1, ROWS * LD, 1.0f);
        float *found = run_everywhere("rope", rope, &spec, &data);
        for (size_t at = 0; at < ROWS * LD; at++) {
            size_t in = at % LD % DIM, p = i % 2 ? (in - 24) % 10 : (in - 24) / 2;
            size_t partner = i % 2 ? (in < 34 ? at + 10 : at - 10) : (in % 2 ? at - 1 : at + 1);
            if (at % LD >= HEADS * DIM || in < 24) {
                assert_true(found[at] == data.x[at]);
                continue;
            }
            bool second = i % 2 ? in >= 34 : in % 2 == 1;
            double angle = (double)(700 + at / LD) * pow(10000.0, -2.0 * (double)p / 20);
            double sine = (i >= 2 ? -1 : 1) * sin(angle) * (second ? 1 : -1);
            double exact = (double)data.x[at] * cos(angle) + (double)data.x[partner] * sine;
            assert_near(found[at], exact * (i < 2 ? 1.25 : 1.0), 1e-5, 2e-4, "rope", at);
        }
        free(found);
        free_data(&data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_head_is_normed_by_itself_and_the_rest_of_the_row_stays),
        cmocka_unit_test(test_layer_norm_takes_the_mean_away),
        cmocka_unit_test(test_every_activation_is_its_formula_side_by_side_and_in_turns),
        cmocka_unit_test(test_softcap_is_a_tanh_without_lost_digits),
        cmocka_unit_test(test_scale_gate_add_and_mul_are_what_they_say),
        cmocka_unit_test(test_copy_heads_moves_the_named_columns_alone),
        cmocka_unit_test(test_rope_turns_only_its_dimensions_by_its_magnitude_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
