/* One text: the bytes of the logits and the greedy ids are the same for every way to cut, batch,
 * chunk, cache and compute. ctest runs a pairwise covering of all values, whole, on both models: a
 * minute or two, within its time limit. By hand, SHOAL_ONE_TEXT=full runs the whole product on the
 * small model; on the real one it goes through the product, every triple of values first, for
 * SHOAL_ONE_TEXT_SECONDS (900), and says how far it came. SHOAL_ONE_TEXT=real does only the latter.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "eval_run.h"
#include "kernels/ops.h"

enum { N_DIMENSIONS = 7, VALUES_MAX = 3, CASES_MAX = 1024 };
enum { TP, STAGES, THREADS, BATCH, CHUNK, WARM, ISA };

static const uint32_t values[N_DIMENSIONS][VALUES_MAX] = {
    {1, 2, 3}, {1, 2, 3}, {1, 2}, {1, 5, 16}, {16, 64, 512}, {0, 1}, {0, 1, 2},
};
static uint32_t n_values[N_DIMENSIONS] = {3, 3, 2, 3, 3, 2, 3};
static const char *isa_names[3];

typedef struct {
    uint8_t at[N_DIMENSIONS];
} case_t;

/* Which values have met; of two dimensions with b = c, of three otherwise. */
typedef struct {
    bool seen[N_DIMENSIONS][VALUES_MAX][N_DIMENSIONS][VALUES_MAX][N_DIMENSIONS][VALUES_MAX];
} met_t;

/* How many pairs (triples) of values meet in the case for the first time; they are marked on
 * request. */
static uint32_t meet(met_t *met, const case_t *c, bool triples, bool mark)
{
    uint32_t n = 0;
    for (int x = 0; x < N_DIMENSIONS; x++)
        for (int y = x + 1; y < N_DIMENSIONS; y++)
            for (int z = triples ? y + 1 : y; z < (triples ? N_DIMENSIONS : y + 1); z++) {
                bool *seen = &met->seen[x][c->at[x]][y][c->at[y]][z][c->at[z]];
                n += !*seen;
                *seen |= mark;
            }
    return n;
}

static bool next_case(case_t *c)
{
    for (int d = 0; d < N_DIMENSIONS; d++) {
        if (++c->at[d] < n_values[d])
            return true;
        c->at[d] = 0;
    }
    return false;
}

/* Greedy: always the case that shows most that was not shown yet. */
static uint32_t cover(case_t *cases, bool triples)
{
    static met_t met;
    uint32_t n = 0;
    memset(&met, 0, sizeof met);
    for (;;) {
        case_t c = {0}, best = {0};
        uint32_t most = 0;
        do {
            uint32_t fresh = meet(&met, &c, triples, false);
            if (fresh > most) {
                most = fresh;
                best = c;
            }
        } while (next_case(&c));
        if (most == 0)
            return n;
        meet(&met, &best, triples, true);
        cases[n++] = best;
    }
}

static bool is_among(const case_t *cases, uint32_t n, const case_t *c)
{
    for (uint32_t i = 0; i < n; i++)
        if (memcmp(&cases[i], c, sizeof *c) == 0)
            return true;
    return false;
}

/* The whole product: first what covers all triples, then the rest, scrambled, so that also a part
 * of it is spread over all values. */
static uint32_t all_cases(case_t *cases)
{
    uint32_t n_first = cover(cases, true), n = n_first;
    case_t c = {0};
    do
        if (!is_among(cases, n_first, &c))
            cases[n++] = c;
    while (next_case(&c));
    uint32_t random = 5;
    for (uint32_t i = n; i > n_first + 1; i--) {
        random = random * 1664525u + 1013904223u;
        uint32_t other = n_first + (random >> 8) % (i - n_first);
        c = cases[i - 1];
        cases[i - 1] = cases[other];
        cases[other] = c;
    }
    print_message("%u cases, the first %u cover all triples of values\n", n, n_first);
    return n;
}

static bool wants(const char *mode)
{
    const char *given = getenv("SHOAL_ONE_TEXT");
    return given && strcmp(given, mode) == 0;
}

/* Prompts of many lengths, some of which begin alike. */
static json_t *make_prompts(uint32_t n, uint32_t vocab, uint32_t longest)
{
    json_t *prompts = json_array();
    for (uint32_t i = 0; i < n; i++) {
        json_t *ids = json_array();
        uint32_t length = 1 + i * (longest - 1) / (n - 1);
        for (uint32_t k = 0; k < length; k++)
            json_array_append_new(
                ids, json_integer((k * 7919 + (k > 40 ? i : i % 3) * 104729 + 11) % vocab));
        json_array_append_new(prompts, ids);
    }
    return prompts;
}

/* Every other case has parts of 16 rows, as large models have; those of small ones hold a whole step
 * (stage_part_rows). */
static const char *small_parts(const case_t *c)
{
    uint32_t sum = 0;
    for (int d = 0; d < N_DIMENSIONS; d++)
        sum += c->at[d];
    return sum % 2 ? "stage.small_parts=error@*" : NULL;
}

static void run_case(const char *model, const json_t *ids, const case_t *c, uint32_t greedy,
                     uint64_t *hash_out, uint64_t *rows_out)
{
    bool warm = values[WARM][c->at[WARM]];
    eval_args_t args = {
        .model = model,
        .ids = ids,
        .isa = isa_names[c->at[ISA]],
        .tp = values[TP][c->at[TP]],
        .stages = values[STAGES][c->at[STAGES]],
        .threads = values[THREADS][c->at[THREADS]],
        .batch = values[BATCH][c->at[BATCH]],
        .chunk = values[CHUNK][c->at[CHUNK]],
        .failpoints = small_parts(c),
        .greedy = greedy,
        .last = warm,
        .no_sums = warm,
        .passes = warm ? 2 : 1,
        .no_prefix_cache = !warm,
    };
    eval_result_t result;
    print_message("tp %u stages %u threads %u batch %u chunk %u %s %s\n", args.tp, args.stages,
                  args.threads, args.batch, args.chunk, warm ? "warm" : "cold", args.isa);
    eval_run(&args, &result);
    *hash_out = eval_hash(&result);
    *rows_out = warm ? 0 : eval_hash_rows(&result);
    /* What is called warm has to have been warm. */
    uint32_t cached = 0;
    for (uint32_t i = 0; i < result.n_prompts; i++)
        cached += result.prompts[i].cached;
    assert_true(warm ? cached > 0 : cached == 0);
    eval_release(&result);
}

static void check_cases(const char *model, const json_t *ids, const case_t *cases, uint32_t n,
                        uint32_t greedy, uint64_t seconds_max)
{
    uint64_t hash = 0, rows = 0, end_ms = clock_ms() + seconds_max * 1000;
    uint32_t i;
    for (i = 0; i < n && clock_ms() < end_ms; i++) {
        uint64_t hash_now, rows_now;
        run_case(model, ids, &cases[i], greedy, &hash_now, &rows_now);
        if (i == 0)
            hash = hash_now;
        if (rows == 0)
            rows = rows_now;
        assert_true(hash == hash_now);
        assert_true(rows_now == 0 || rows == rows_now);
    }
    print_message("%u of %u cases, equal\n", i, n);
    assert_true(rows != 0);
}

static void test_a_small_model_gives_the_same_bytes_in_every_pair_of_ways(void **state)
{
    (void)state;
    static case_t cases[CASES_MAX];
    char *model = eval_golden("gguf-llama-q4_0/model.gguf");
    json_t *ids = make_prompts(18, 320, 100);
    uint32_t n = wants("full") ? all_cases(cases) : cover(cases, false);
    assert_true(n >= 9);
    check_cases(model, ids, cases, n, 12, UINT32_MAX);
    json_decref(ids);
    free(model);
}

/* 9 heads on 2 ranks are 5 and 4, sharing a key/value head; ref is left to the small model. */
static void test_the_real_model_gives_the_same_bytes_in_every_pair_of_ways(void **state)
{
    (void)state;
    static case_t cases[CASES_MAX];
    char *model = eval_real_model();
    if (!model)
        skip();
    json_t *ids = make_prompts(17, 49152, 80);
    const char *last = isa_names[2];
    if (n_values[ISA] == 3) {
        isa_names[0] = last;
        n_values[ISA] = 2;
    }
    const char *given = getenv("SHOAL_ONE_TEXT_SECONDS");
    uint64_t seconds = given ? strtoull(given, NULL, 10) : 900;
    bool all = wants("full") || wants("real");
    uint32_t n = all ? all_cases(cases) : cover(cases, false);
    check_cases(model, ids, cases, n, 4, all ? seconds : UINT32_MAX);
    json_decref(ids);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_small_model_gives_the_same_bytes_in_every_pair_of_ways),
        cmocka_unit_test(test_the_real_model_gives_the_same_bytes_in_every_pair_of_ways),
    };
    n_values[ISA] = kernels_cpu_levels(isa_names);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
