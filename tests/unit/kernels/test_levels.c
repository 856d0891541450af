/* Which kernels run: forced levels, refusals by name, and a self-check that finds what is planted.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/fpmode.h"
#include "kernels/cpu/selfcheck.h"
#include "support.h"

static const klevel_t *best_level(void)
{
    const char *levels[KLEVELS_MAX];
    uint32_t n = kernels_cpu_levels(levels);
    const klevel_t *tables[] = {&level_ref, &level_avx2, &level_avx512, &level_amx};
    for (uint32_t i = 0; i < KLEVELS_MAX; i++)
        if (strcmp(tables[i]->name, levels[n - 1]) == 0)
            return tables[i];
    return NULL;
}

static void test_each_level_that_the_machine_has_can_be_forced(void **state)
{
    (void)state;
    const char *levels[KLEVELS_MAX];
    uint32_t n = kernels_cpu_levels(levels);
    assert_true(n >= 1);
    for (uint32_t i = 0; i < n; i++) {
        fixture_t f = open_fixture(levels[i], 1, KMODE_NATIVE, KQUEUE_NOW);
        assert_string_equal(f.ops->device_info(f.device).isa, levels[i]);
        close_fixture(&f);
        assert_int_equal(setenv("SHOAL_ISA", levels[i], 1), 0);
        f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
        assert_string_equal(f.ops->device_info(f.device).isa, levels[i]);
        close_fixture(&f);
    }
    unsetenv("SHOAL_ISA");
    fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
    assert_string_equal(f.ops->device_info(f.device).isa, levels[n - 1]);
    close_fixture(&f);
}

static void test_what_cannot_run_is_refused_by_name(void **state)
{
    (void)state;
    kdevice_t *device = NULL;
    kdevice_options_t options = {.isa = "amx", .threads = 1};
    const char *levels[KLEVELS_MAX];
    bool has_amx = false;
    for (uint32_t n = kernels_cpu_levels(levels); n > 0; n--)
        has_amx |= strcmp(levels[n - 1], "amx") == 0;
    if (!has_amx) {
        assert_int_equal(kernels_cpu()->device_open(&options, &device), STATUS_UNSUPPORTED);
        assert_non_null(strstr(status_text(), "amx: this machine lacks "));
    }
    assert_int_equal(setenv("SHOAL_ISA", "neon", 1), 0);
    options.isa = NULL;
    assert_int_equal(kernels_cpu()->device_open(&options, &device), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "\"neon\""));
    unsetenv("SHOAL_ISA");
    options.threads = POOL_THREADS_MAX + 1;
    assert_int_equal(kernels_cpu()->device_open(&options, &device), STATUS_INVALID);
}

/* What this process has computed for: on a busy machine the wall clock says nothing. */
static uint64_t cpu_ns(void)
{
    struct timespec now;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now), 0);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void test_the_self_check_passes_fast_and_gives_the_mode_back(void **state)
{
    (void)state;
    uint32_t before = _mm_getcsr();
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t start = cpu_ns();
        assert_null(selfcheck(best_level()));
        uint64_t took = cpu_ns() - start;
        best = took < best ? took : best;
    }
    assert_int_equal(_mm_getcsr() & 0xffc0u, before & 0xffc0u);
    print_message("the self-check takes %.2f ms\n", (double)best * 1e-6);
#ifdef __SANITIZE_ADDRESS__
    const uint64_t most = 200 * 1000 * 1000;
#else
    const uint64_t most = 20 * 1000 * 1000;
#endif
    assert_true(best < most || getenv("SHOAL_SLOW") != NULL);
}

/* A change of what the self-check computes, or of the rows that kernels read, changes answers: this
 * prints what to record then. */
static void test_what_is_recorded_for_the_self_check_is_what_ref_answers(void **state)
{
    (void)state;
    uint64_t answers[SELFCHECK_ANSWERS_MAX] = {0};
    uint32_t n = selfcheck_answers(&level_ref, answers);
    assert_in_range(n, 100, SELFCHECK_ANSWERS_MAX);
    bool same = memcmp(answers, selfcheck_recorded, sizeof answers) == 0;
    for (uint32_t i = 0; !same && i < n; i++)
        printf("%s0x%016llx,%s", i % 4 == 0 ? "    " : " ", (unsigned long long)answers[i],
               i % 4 == 3 || i == n - 1 ? "\n" : "");
    assert_true(same);
}

static void test_a_level_is_self_checked_once_a_process(void **state)
{
    (void)state;
    kernels_cpu_begin();
    uint64_t check = UINT64_MAX, open = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t start = cpu_ns();
        assert_null(selfcheck(best_level()));
        uint64_t checked = cpu_ns();
        fixture_t f = open_fixture(NULL, 1, KMODE_NATIVE, KQUEUE_NOW);
        uint64_t opened = cpu_ns();
        close_fixture(&f);
        check = checked - start < check ? checked - start : check;
        open = opened - checked < open ? opened - checked : open;
    }
    assert_true(open < check / 2);
}

/* Mutants: each changes one kernel in a way that is wrong only in the last bits or in rare values.
 */
static void rmsnorm_in_one_lane(const float *x, const float *weight, uint32_t n, float eps,
                                float *out)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    float r = 1.0f / __builtin_sqrtf(sum / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] * r * weight[i];
}

static void matmul_with_subnormals(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                                   uint32_t row_first, uint32_t row_end)
{
    uint32_t mode = _mm_getcsr();
    _mm_setcsr(0x1f80);
    level_ref.matmul(job, panel_first, panel_end, row_first, row_end);
    _mm_setcsr(mode);
}

static void linear_tree_add(const tree_program_t *program, const float *const *inputs,
                            const float *bias, const float *residual, float *out, uint32_t first,
                            uint32_t end)
{
    for (uint32_t i = first; i < end; i++) {
        float sum = residual[i];
        for (uint32_t j = 0; j < program->n_inputs; j++)
            sum += inputs[j][i];
        out[i] = sum + bias[i];
    }
}

static void attend_unscaled(const kattend_t *job)
{
    kattend_t other = *job;
    other.scale = job->scale * 1.0000002f;
    level_ref.attend(&other);
}

static void score_without_relu(const kscore_t *job)
{
    kscore_t other = *job;
    other.scale = -job->scale;
    level_ref.score(&other);
}

static void activate_silu_alone(const kactivate_t *what, const float *gate, const float *up,
                                uint32_t n, float *out)
{
    kactivate_t other = {.kind = what->kind == KACTIVATE_SILU_LIMIT ? KACTIVATE_SILU : what->kind};
    other.alpha = what->alpha;
    other.limit = what->limit;
    level_ref.activate(&other, gate, up, n, out);
}

static void softcap_times(float *x, uint32_t n, float cap)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] *= 1.0f / cap;
    for (uint32_t i = 0; i < n; i++)
        x[i] *= cap;
    level_ref.softcap(x, n, cap);
}

static bool quantize_half_up(const kinput_t *layout, const float *x, uint8_t *row_out)
{
    bool bad = level_ref.quantize(layout, x, row_out);
    row_out[0] ^= 1;
    return bad;
}

static void turn_adjacent_alone(krope_pairs_t pairs, const float *turns, uint32_t half, float *head)
{
    level_ref.turn(pairs, turns, pairs == KROPE_HALVES ? half - 1 : half, head);
}

/* Wrong in weights of one form alone, and with more than eight rows or with fewer. */
static kform_t wrong_form;
static bool wrong_decoded, wrong_apart;

static void matmul_wrong_in_one_form(const kmatmul_t *job, uint32_t panel_first,
                                     uint32_t panel_end, uint32_t row_first, uint32_t row_end)
{
    best_level()->matmul(job, panel_first, panel_end, row_first, row_end);
    if (job->weight->parts[0].form == wrong_form && (job->rows > 8) == wrong_decoded &&
        job->weight->inputs[0].has_apart == wrong_apart)
        job->out[3] = -job->out[3];
}

static void test_the_self_check_covers_every_form_and_decoded_panels(void **state)
{
    (void)state;
    klevel_t mutant = *best_level();
    mutant.matmul = matmul_wrong_in_one_form;
    for (kform_t form = FORM_Q8; form < N_FORMS; form++) {
        wrong_form = form;
        print_message("form %d\n", (int)form);
        assert_string_equal(selfcheck(&mutant), "matmul");
        wrong_apart = true;
        if (form < FORM_BF16 || FORM_HAS_TAIL(form))
            assert_string_equal(selfcheck(&mutant), "matmul");
        wrong_apart = false;
    }
    static const kform_t decoded[] = {FORM_E4, FORM_K4, FORM_K5, FORM_K6};
    wrong_decoded = true;
    for (size_t i = 0; i < sizeof decoded / sizeof *decoded; i++) {
        wrong_form = decoded[i];
        assert_string_equal(selfcheck(&mutant), "matmul");
        wrong_apart = true;
        if (FORM_HAS_RUNS(wrong_form))
            assert_string_equal(selfcheck(&mutant), "matmul");
        wrong_apart = false;
    }
}

static void test_the_self_check_names_a_kernel_that_differs(void **state)
{
    (void)state;
    klevel_t mutant = *best_level();
    mutant.rmsnorm = rmsnorm_in_one_lane;
    assert_string_equal(selfcheck(&mutant), "rmsnorm");
    mutant = *best_level();
    mutant.matmul = matmul_with_subnormals;
    assert_string_equal(selfcheck(&mutant), "matmul");
    mutant = *best_level();
    mutant.tree_add = linear_tree_add;
    assert_string_equal(selfcheck(&mutant), "tree_add");
    mutant = *best_level();
    mutant.attend = attend_unscaled;
    assert_string_equal(selfcheck(&mutant), "attention");
    mutant = *best_level();
    mutant.score = score_without_relu;
    assert_string_equal(selfcheck(&mutant), "score");
    mutant = *best_level();
    mutant.activate = activate_silu_alone;
    assert_string_equal(selfcheck(&mutant), "activate");
    mutant = *best_level();
    mutant.softcap = softcap_times;
    assert_string_equal(selfcheck(&mutant), "softcap");
    mutant = *best_level();
    mutant.quantize = quantize_half_up;
    assert_string_equal(selfcheck(&mutant), "quantize");
    mutant = *best_level();
    mutant.turn = turn_adjacent_alone;
    assert_string_equal(selfcheck(&mutant), "rope");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_level_that_the_machine_has_can_be_forced),
        cmocka_unit_test(test_what_cannot_run_is_refused_by_name),
        cmocka_unit_test(test_the_self_check_passes_fast_and_gives_the_mode_back),
        cmocka_unit_test(test_what_is_recorded_for_the_self_check_is_what_ref_answers),
        cmocka_unit_test(test_a_level_is_self_checked_once_a_process),
        cmocka_unit_test(test_the_self_check_names_a_kernel_that_differs),
        cmocka_unit_test(test_the_self_check_covers_every_form_and_decoded_panels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
