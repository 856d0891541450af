/* One text, family by family: the bytes of the logits and the greedy ids are the same for every way
 * to cut, batch, chunk, cache and compute, in both activation modes, and with a late queue. A
 * pairwise covering of all values for one model of each family. Families with experts also run on 5
 * slices (each holds whole experts) and 8 (groups that share experts by leaves).
 *
 * Arguments name models, or empty-leaves; none runs all. SHOAL_ONE_TEXT=full adds the whole product
 * of slices, stages, batch and chunk, with threads, cache and level in turns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval_run.h"
#include "kernels/ops.h"
#include "one_text_ways.h"

enum { CASES_MAX = 256, RANKS_MAX = 12, N_PROMPTS = 9, LONGEST = 70 };

static const uint32_t values[WAY_DIMENSIONS][WAY_VALUES_MAX] = {
    {1, 2, 3, 4, 5, 8}, {1, 2, 3}, {1, 2}, {1, 3, 16}, {8, 32, 512}, {0, 1}, {0, 1, 2, 3},
};
static uint32_t n_values[WAY_DIMENSIONS] = {4, 3, 2, 3, 3, 2, 3};
static const char *isa_names[KLEVELS_MAX];

typedef struct {
    const char *name;
    uint32_t vocab;
    bool experts;
} family_t;

static const family_t families[] = {
    {"llama-gqa-bf16", 320, false},   {"qwen2-f16", 352, false},
    {"qwen3-qknorm", 384, false},     {"mistral-swa", 320, false},
    {"gemma2", 320, false},           {"gemma3-text", 320, false},
    {"mixtral", 320, true},           {"qwen2-moe", 320, true},
    {"qwen3-moe", 352, true},         {"gpt-oss-bf16", 320, true},
    {"deepseek-v2-lite", 320, true},  {"deepseek-v3", 320, true},
    {"deepseek-v32-dsa", 320, true},  {"deepseek-v4", 320, true},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

typedef struct {
    bool seen[WAY_DIMENSIONS][WAY_VALUES_MAX][WAY_DIMENSIONS][WAY_VALUES_MAX];
} pairs_t;

static uint32_t new_pairs(const pairs_t *pairs, const way_t *c)
{
    uint32_t n = 0;
    for (int a = 0; a < WAY_DIMENSIONS; a++)
        for (int b = a + 1; b < WAY_DIMENSIONS; b++)
            n += !pairs->seen[a][c->at[a]][b][c->at[b]];
    return n;
}

static void mark_pairs(pairs_t *pairs, const way_t *c)
{
    for (int a = 0; a < WAY_DIMENSIONS; a++)
        for (int b = a + 1; b < WAY_DIMENSIONS; b++)
            pairs->seen[a][c->at[a]][b][c->at[b]] = true;
}

/* More ranks than that on a machine that does other work lose each other's heartbeats. */
static bool too_many_ranks(const way_t *c)
{
    return values[TP][c->at[TP]] * values[STAGES][c->at[STAGES]] > RANKS_MAX;
}

/* Greedy: always the case that shows most pairs that were not shown yet. */
static uint32_t cover(way_t *cases)
{
    pairs_t pairs = {0};
    uint32_t n = 0;
    for (uint32_t t = 0; t < n_values[TP]; t++)
        for (uint32_t s = 0; s < n_values[STAGES]; s++)
            pairs.seen[TP][t][STAGES][s] = values[TP][t] * values[STAGES][s] > RANKS_MAX;
    for (;;) {
        way_t c = {0}, best = {0};
        uint32_t most = 0;
        do {
            uint32_t fresh = too_many_ranks(&c) ? 0 : new_pairs(&pairs, &c);
            if (fresh > most) {
                most = fresh;
                best = c;
            }
        } while (way_next(&c, n_values));
        if (most == 0)
            return n;
        mark_pairs(&pairs, &best);
        assert_true(n < CASES_MAX);
        cases[n++] = best;
    }
}

/* Threads, cache and level change from case to case without a rhythm of the other four's. */
static uint32_t whole_product(way_t *cases)
{
    uint32_t n = 0, four[WAY_DIMENSIONS], rest[WAY_DIMENSIONS], random = 5;
    for (int d = 0; d < WAY_DIMENSIONS; d++) {
        bool turns = d == THREADS || d == WARM || d == ISA;
        four[d] = turns ? 1 : n_values[d];
        rest[d] = turns ? n_values[d] : 1;
    }
    way_t c = {0};
    do {
        if (too_many_ranks(&c))
            continue;
        assert_true(n < CASES_MAX);
        cases[n] = c;
        random = random * 1664525u + 1013904223u;
        way_t other = {0};
        for (uint32_t i = (random >> 8) % (rest[THREADS] * rest[WARM] * rest[ISA]); i > 0; i--)
            way_next(&other, rest);
        cases[n].at[THREADS] = other.at[THREADS];
        cases[n].at[WARM] = other.at[WARM];
        cases[n++].at[ISA] = other.at[ISA];
    } while (way_next(&c, four));
    return n;
}

static void run_case(const char *model, const json_t *ids, const way_t *c, bool f32,
                     uint64_t *hash_out, uint64_t *rows_out)
{
    eval_args_t args = way_args(c, values);
    args.model = model;
    args.ids = ids;
    args.isa = isa_names[c->at[ISA]];
    args.greedy = 6;
    args.f32 = f32;
    way_run(&args, hash_out, rows_out);
}

/* Nothing in a step looks at a value before the queue has made it; in several slices sums go by
 * pieces here, however small they are. */
static void check_late(const char *model, const json_t *ids, bool f32, uint32_t tp, uint64_t rows)
{
    eval_args_t args = {.model = model,
                        .ids = ids,
                        .threads = 1,
                        .tp = tp,
                        .failpoints = tp > 1 ? "stage.small_parts=error@*" : NULL,
                        .chunk = 32,
                        .greedy = 6,
                        .f32 = f32,
                        .no_prefix_cache = true,
                        .late_queue = true};
    eval_result_t result;
    eval_run(&args, &result);
    assert_true(eval_hash_rows(&result) == rows);
    eval_release(&result);
}

static void check_mode(const family_t *family, bool f32)
{
    static way_t cases[CASES_MAX];
    char *model = eval_golden(family->name);
    json_t *ids = way_prompts(N_PROMPTS, family->vocab, LONGEST);
    n_values[TP] = family->experts ? 6 : 4;
    const char *wanted = getenv("SHOAL_ONE_TEXT");
    uint32_t n = cover(cases);
    uint64_t hash = 0, rows = 0;
    assert_true(n >= 12);
    if (wanted && strcmp(wanted, "full") == 0)
        n += whole_product(cases + n);
    for (uint32_t i = 0; i < n; i++) {
        const way_t *c = &cases[i];
        uint64_t hash_now, rows_now;
        run_case(model, ids, c, f32, &hash_now, &rows_now);
        hash = i == 0 ? hash_now : hash;
        rows = rows == 0 ? rows_now : rows;
        if (hash != hash_now || (rows_now != 0 && rows != rows_now))
            fail_msg("%s %s differs: tp %u stages %u threads %u batch %u chunk %u %s %s",
                     family->name, f32 ? "f32" : "native", values[TP][c->at[TP]],
                     values[STAGES][c->at[STAGES]], values[THREADS][c->at[THREADS]],
                     values[BATCH][c->at[BATCH]], values[CHUNK][c->at[CHUNK]],
                     values[WARM][c->at[WARM]] ? "warm" : "cold", isa_names[c->at[ISA]]);
    }
    assert_true(rows != 0);
    check_late(model, ids, f32, 1, rows);
    check_late(model, ids, f32, 2, rows);
    print_message("%-18s %s: %u ways and a late queue, equal bytes\n", family->name,
                  f32 ? "f32" : "native", n);
    json_decref(ids);
    free(model);
}

static void check_family(void **state)
{
    check_mode(*state, true);
    check_mode(*state, false);
}

/* ---- a K of the FFN that is too small for its leaves, and one of nine ---- */

enum { NARROW = 21, WIDE = 2400, TENSOR_BYTES_MAX = 1 << 20 };

/* The side of a tensor that the FFN's size is, and how many times. */
static const struct {
    const char *ending;
    uint32_t side, times;
} ffn_sides[] = {
    {".mlp.gate_proj.weight", 0, 1},      {".mlp.up_proj.weight", 0, 1},
    {".mlp.down_proj.weight", 1, 1},      {".experts.down_proj", 1, 1},
    {".experts.gate_up_proj", 2, 2},      {".experts.gate_up_proj_bias", 1, 2},
};

/* Gives a tensor its shape of an FFN of `ffn`; returns its bytes, all being BF16. */
static size_t set_shape(const char *name, uint32_t ffn, json_t *shape)
{
    size_t bytes = 2, length = strlen(name);
    for (size_t i = 0; i < sizeof ffn_sides / sizeof *ffn_sides; i++) {
        size_t n = strlen(ffn_sides[i].ending);
        if (length > n && strcmp(name + length - n, ffn_sides[i].ending) == 0)
            json_array_set_new(shape, ffn_sides[i].side,
                               json_integer(ffn_sides[i].times * ffn));
    }
    for (size_t i = 0; i < json_array_size(shape); i++)
        bytes *= (size_t)json_integer_value(json_array_get(shape, i));
    assert_true(bytes <= TENSOR_BYTES_MAX);
    return bytes;
}

/* Each tensor has the bytes that it began with, at its new shape, and then them again. */
static void write_tensors(const char *from, const char *to, uint32_t ffn)
{
    static char values[TENSOR_BYTES_MAX];
    const char *name;
    json_t *tensor;
    uint64_t n, at = 0;
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    assert_true(in != NULL && out != NULL);
    assert_int_equal(fread(&n, 1, sizeof n, in), sizeof n);
    char *text = calloc(1, n);
    assert_true(text != NULL && fread(text, 1, n, in) == n);
    json_t *old = json_loadb(text, n, 0, NULL), *header = json_deep_copy(old);
    free(text);
    json_object_del(header, "__metadata__");
    json_object_foreach(header, name, tensor) {
        uint64_t bytes = set_shape(name, ffn, json_object_get(tensor, "shape"));
        json_object_set_new(tensor, "data_offsets", json_pack("[II]", at, at + bytes));
        at += bytes;
    }
    text = json_dumps(header, JSON_COMPACT);
    uint64_t length = strlen(text);
    assert_int_equal(fwrite(&length, 1, sizeof length, out), sizeof length);
    assert_int_equal(fwrite(text, 1, length, out), length);
    json_object_foreach(header, name, tensor) {
        json_t *was = json_object_get(json_object_get(old, name), "data_offsets");
        json_t *is = json_object_get(tensor, "data_offsets");
        size_t bytes = (size_t)(json_integer_value(json_array_get(is, 1)) -
                                json_integer_value(json_array_get(is, 0)));
        size_t first = (size_t)json_integer_value(json_array_get(was, 0));
        size_t had = (size_t)json_integer_value(json_array_get(was, 1)) - first;
        assert_int_equal(fseek(in, (long)(sizeof n + n + first), SEEK_SET), 0);
        assert_int_equal(fread(values, 1, bytes < had ? bytes : had, in),
                         bytes < had ? bytes : had);
        for (size_t i = had; i < bytes; i++)
            values[i] = values[i - had];
        assert_int_equal(fwrite(values, 1, bytes, out), bytes);
    }
    free(text);
    json_decref(old);
    json_decref(header);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void write_model(const char *name, uint32_t ffn, const char *dir)
{
    char from[512], to[64];
    char *model = eval_golden(name);
    snprintf(from, sizeof from, "%s/config.json", model);
    snprintf(to, sizeof to, "%s/config.json", dir);
    json_t *config = json_load_file(from, 0, NULL);
    json_object_set_new(config, "intermediate_size", json_integer(ffn));
    assert_int_equal(json_dump_file(config, to, 0), 0);
    json_decref(config);
    snprintf(from, sizeof from, "%s/model.safetensors", model);
    snprintf(to, sizeof to, "%s/model.safetensors", dir);
    write_tensors(from, to, ffn);
    free(model);
}

static void check_slices(const char *name, uint32_t ffn, const char *quantize, json_t *ids)
{
    static const uint32_t tps[] = {1, 2, 3, 4, 7};
    char dir[] = "/tmp/shoal-leaves-XXXXXX", path[64];
    uint64_t rows = 0;
    assert_non_null(mkdtemp(dir));
    write_model(name, ffn, dir);
    for (size_t i = 0; i < sizeof tps / sizeof *tps; i++) {
        eval_args_t args = {.model = dir, .ids = ids, .threads = 1, .tp = tps[i],
                            .no_prefix_cache = true, .quantize = quantize};
        eval_result_t result;
        eval_run(&args, &result);
        uint64_t found = eval_hash_rows(&result);
        assert_true(result.prompts[0].logits[0] == result.prompts[0].logits[0]);
        eval_release(&result);
        rows = i == 0 ? found : rows;
        if (found != rows)
            fail_msg("%s with an FFN of %u differs on %u slices", name, ffn, tps[i]);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, i ? "config.json" : "model.safetensors");
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(dir), 0);
}

/* A slice of nothing but empty leaves runs no matmul: its sums are 0 all the same, and what enters
 * once, as a bias, still enters. The small models have four leaves or fewer of everything; nine are a
 * tree whose halves, quarters and covers are uneven. */
static void check_empty_and_many_leaves(void **state)
{
    (void)state;
    json_t *ids = way_prompts(N_PROMPTS, 320, LONGEST);
    check_slices("llama-gqa-bf16", NARROW, NULL, ids);
    check_slices("gpt-oss-bf16", NARROW, NULL, ids);
    check_slices("llama-gqa-bf16", WIDE, NULL, ids);
    check_slices("llama-gqa-bf16", WIDE, "q8", ids);
    json_decref(ids);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[N_FAMILIES + 1];
    size_t n = 0;
    n_values[ISA] = kernels_cpu_levels(isa_names);
    for (size_t i = 0; i < N_FAMILIES; i++) {
        if (eval_is_wanted(argc, argv, families[i].name))
            tests[n++] = (struct CMUnitTest){.name = families[i].name,
                                             .test_func = check_family,
                                             .initial_state = (void *)(uintptr_t)&families[i]};
    }
    if (eval_is_wanted(argc, argv, "empty-leaves"))
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(check_empty_and_many_leaves);
    return n > 0 ? _cmocka_run_group_tests("families", tests, n, NULL, NULL) : 2;
}
