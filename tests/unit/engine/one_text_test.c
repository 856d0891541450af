/* One text: the bytes of the logits and the greedy ids are the same for every way to cut, batch,
 * chunk, cache and compute. ctest runs a pairwise covering of all values, whole, on both models: a
 * minute or two, within its time limit. By hand:
 *
 *   SHOAL_ONE_TEXT=full         the whole product instead: on the small model, on the real one, and
 *                               on the real one with ref and short prompts
 *   SHOAL_ONE_TEXT=real         only the real one's, =ref only that with ref
 *   SHOAL_ONE_TEXT_PART=2/4     the second quarter of each product, spread over all values
 *   SHOAL_ONE_TEXT_LOG=FILE     cases are added to the file as they are shown, and those that this
 *                               program has shown there are not run again: a product may be
 *                               interrupted, go on, and be shared out among runs
 *   SHOAL_ONE_TEXT_SECONDS=900  begin no case of a product after that time
 *
 * A part that shares no file with the others compares its cases with the product's first one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "eval_run.h"
#include "kernels/ops.h"
#include "one_text_log.h"
#include "one_text_ways.h"

enum { CASES_MAX = ONE_TEXT_CASES_MAX, HERE_MAX = 4 };

static const uint32_t values[WAY_DIMENSIONS][WAY_VALUES_MAX] = {
    {1, 2, 3}, {1, 2, 3}, {1, 2}, {1, 5, 16}, {16, 64, 512}, {0, 1}, {0, 1, 2, 3},
};
static uint32_t n_values[WAY_DIMENSIONS] = {3, 3, 2, 3, 3, 2, 3};
static const char *isa_names[KLEVELS_MAX];

/* Which values have met; of two dimensions with b = c, of three otherwise. */
typedef struct {
    bool seen[WAY_DIMENSIONS][HERE_MAX][WAY_DIMENSIONS][HERE_MAX][WAY_DIMENSIONS][HERE_MAX];
} met_t;

/* How many pairs (triples) of values meet in the case for the first time; they are marked on
 * request. */
static uint32_t meet(met_t *met, const way_t *c, bool triples, bool mark)
{
    uint32_t n = 0;
    for (int x = 0; x < WAY_DIMENSIONS; x++)
        for (int y = x + 1; y < WAY_DIMENSIONS; y++)
            for (int z = triples ? y + 1 : y; z < (triples ? WAY_DIMENSIONS : y + 1); z++) {
                bool *seen = &met->seen[x][c->at[x]][y][c->at[y]][z][c->at[z]];
                n += !*seen;
                *seen |= mark;
            }
    return n;
}

/* Greedy: always the case that shows most that was not shown yet. */
static uint32_t cover(way_t *cases, bool triples)
{
    static met_t met;
    uint32_t n = 0;
    memset(&met, 0, sizeof met);
    for (;;) {
        way_t c = {0}, best = {0};
        uint32_t most = 0;
        do {
            uint32_t fresh = meet(&met, &c, triples, false);
            if (fresh > most) {
                most = fresh;
                best = c;
            }
        } while (way_next(&c, n_values));
        if (most == 0)
            return n;
        meet(&met, &best, triples, true);
        cases[n++] = best;
    }
}

static bool is_among(const way_t *cases, uint32_t n, const way_t *c)
{
    for (uint32_t i = 0; i < n; i++)
        if (memcmp(&cases[i], c, sizeof *c) == 0)
            return true;
    return false;
}

/* The whole product: first what covers all triples, then the rest, scrambled, so that also a part
 * of it is spread over all values. */
static uint32_t all_cases(way_t *cases)
{
    uint32_t n_first = cover(cases, true), n = n_first;
    way_t c = {0};
    do
        if (!is_among(cases, n_first, &c))
            cases[n++] = c;
    while (way_next(&c, n_values));
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

/* Whether a product is asked for that this one is no part of. */
static bool left_out(const char *mode)
{
    bool only_one = wants("real") || wants("ref");
    return only_one && !wants(mode);
}

/* A name that does not fit would be another case's too. */
static void name_case(const way_t *c, char out[ONE_TEXT_NAME_MAX])
{
    int n = snprintf(out, ONE_TEXT_NAME_MAX,
                     "tp %u stages %u threads %u batch %u chunk %u %s %s", values[TP][c->at[TP]],
                     values[STAGES][c->at[STAGES]], values[THREADS][c->at[THREADS]],
                     values[BATCH][c->at[BATCH]], values[CHUNK][c->at[CHUNK]],
                     values[WARM][c->at[WARM]] ? "warm" : "cold", isa_names[c->at[ISA]]);
    assert_true(n > 0 && n < ONE_TEXT_NAME_MAX);
}

/* What is computed in every way. */
typedef struct {
    const char *model;
    json_t *ids;
    uint32_t greedy;
    const char *kv;
} text_t;

static void run_case(const text_t *text, const way_t *c, const char *name, one_text_log_t *log)
{
    uint64_t hash, rows;
    eval_args_t args = way_args(c, values);
    args.model = text->model;
    args.ids = text->ids;
    args.isa = isa_names[c->at[ISA]];
    args.kv = text->kv;
    args.greedy = text->greedy;
    print_message("%s\n", name);
    way_run(&args, &hash, &rows);
    one_text_log_add(log, name, hash, rows);
}

/* Case 0 is in every part: it is what the others are compared with. */
static void check_cases(const text_t *text, const way_t *cases, uint32_t n)
{
    static one_text_log_t log;
    const char *part = getenv("SHOAL_ONE_TEXT_PART"), *seconds = getenv("SHOAL_ONE_TEXT_SECONDS");
    uint32_t k = 1, n_parts = 1, n_mine = 0, n_run = 0, n_known = 0;
    uint64_t end_ms = seconds ? clock_ms() + strtoull(seconds, NULL, 10) * 1000 : UINT64_MAX;
    if (part)
        assert_true(sscanf(part, "%u/%u", &k, &n_parts) == 2 && k >= 1 && k <= n_parts);
    one_text_log_open(&log, text->model, text->ids, text->greedy);
    for (uint32_t i = 0; i < n; i++) {
        char name[ONE_TEXT_NAME_MAX];
        if (i > 0 && i % n_parts != k - 1)
            continue;
        n_mine++;
        name_case(&cases[i], name);
        if (one_text_log_has(&log, name)) {
            n_known++;
        } else if (clock_ms() < end_ms) {
            run_case(text, &cases[i], name, &log);
            n_run++;
        }
    }
    print_message("part %u of %u of %u cases: %u of %u, equal (%u run now); last rows %016llx, "
                  "all rows %016llx\n",
                  k, n_parts, n, n_run + n_known, n_mine, n_run, (unsigned long long)log.hash,
                  (unsigned long long)log.rows);
    assert_true(log.rows != 0);
}

static void test_a_small_model_gives_the_same_bytes_in_every_pair_of_ways(void **state)
{
    (void)state;
    static way_t cases[CASES_MAX];
    if (left_out("small"))
        skip();
    char *model = eval_golden("gguf-llama-q4_0/model.gguf");
    text_t text = {model, way_prompts(18, 320, 100), 12, NULL};
    uint32_t n = wants("full") ? all_cases(cases) : cover(cases, false);
    assert_true(n >= 9);
    check_cases(&text, cases, n);
    json_decref(text.ids);
    free(model);
}

/* The number of greedy ids tells the texts apart in a log. */
static void test_caches_of_codes_give_the_same_bytes_in_every_pair_of_ways(void **state)
{
    (void)state;
    static way_t cases[CASES_MAX];
    static const char *const types[] = {"int8", "fp8"};
    if (left_out("small"))
        skip();
    char *model = eval_golden("gguf-llama-q4_0/model.gguf");
    for (uint32_t i = 0; i < 2; i++) {
        text_t text = {model, way_prompts(18, 320, 100), 13 + i, types[i]};
        check_cases(&text, cases, cover(cases, false));
        json_decref(text.ids);
    }
    free(model);
}

/* 9 heads on 2 ranks are 4 and 5, sharing a key/value head; ref has a product of its own. */
static void test_the_real_model_gives_the_same_bytes_in_every_pair_of_ways(void **state)
{
    (void)state;
    static way_t cases[CASES_MAX];
    const char *ref = isa_names[0];
    uint32_t n_levels = n_values[ISA];
    char *model = left_out("real") ? NULL : eval_real_model();
    if (!model)
        skip();
    text_t text = {model, way_prompts(17, 49152, 80), 4, NULL};
    if (n_levels > 1) {
        isa_names[0] = isa_names[n_levels - 1];
        n_values[ISA] = n_levels - 1;
    }
    uint32_t n = wants("full") || wants("real") ? all_cases(cases) : cover(cases, false);
    check_cases(&text, cases, n);
    isa_names[0] = ref;
    n_values[ISA] = n_levels;
    json_decref(text.ids);
    free(model);
}

/* Plain C takes a tenth of a second for a token of this model, so the prompts are as short as a warm
 * prefix of one block allows. The first case is the best level's: ref has to give its bytes. */
static void test_ref_gives_the_real_models_bytes_in_every_way(void **state)
{
    (void)state;
    static way_t cases[CASES_MAX];
    uint32_t n_levels = n_values[ISA];
    char *model = eval_real_model();
    if (!model)
        skip();
    text_t text = {model, way_prompts(17, 49152, 19), 2, NULL};
    n_values[ISA] = 1; /* level 0 is ref */
    uint32_t n = all_cases(cases + 1) + 1;
    cases[0] = cases[1];
    cases[0].at[ISA] = (uint8_t)(n_levels - 1);
    check_cases(&text, cases, n);
    n_values[ISA] = n_levels;
    json_decref(text.ids);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_small_model_gives_the_same_bytes_in_every_pair_of_ways),
        cmocka_unit_test(test_caches_of_codes_give_the_same_bytes_in_every_pair_of_ways),
        cmocka_unit_test(test_the_real_model_gives_the_same_bytes_in_every_pair_of_ways),
        cmocka_unit_test(test_ref_gives_the_real_models_bytes_in_every_way),
    };
    n_values[ISA] = kernels_cpu_levels(isa_names);
    /* The last one is for who asks for it. */
    size_t n = sizeof tests / sizeof *tests - (wants("full") || wants("ref") ? 0 : 1);
    return _cmocka_run_group_tests("one text", tests, n, NULL, NULL);
}
