/* See one_text_ways.h. */
#include "one_text_ways.h"

bool way_next(way_t *way, const uint32_t n_values[WAY_DIMENSIONS])
{
    for (int d = 0; d < WAY_DIMENSIONS; d++) {
        if (++way->at[d] < n_values[d])
            return true;
        way->at[d] = 0;
    }
    return false;
}

static uint32_t sum_of(const way_t *way)
{
    uint32_t sum = 0;
    for (int d = 0; d < WAY_DIMENSIONS; d++)
        sum += way->at[d];
    return sum;
}

/* Every other case does as large models do: parts of 16 rows, where those of small ones hold a whole
 * step (stage_part_rows); sums by pieces; projections shared among slices. Of their stages two pairs
 * of cases in three share the head, which in one of them waits before long steps. */
static const char *failpoints(uint32_t sum)
{
    bool first = sum / 2 % 3 == 1;
    if (sum % 2)
        return first ? "stage.small_parts=error@*;stage.heads_first=error@*"
                     : "stage.small_parts=error@*";
    return first ? "stage.heads_first=error@*" : NULL;
}

eval_args_t way_args(const way_t *way, const uint32_t values[][WAY_VALUES_MAX])
{
    uint32_t sum = sum_of(way);
    bool warm = values[WARM][way->at[WARM]];
    return (eval_args_t){
        .tp = values[TP][way->at[TP]],
        .stages = values[STAGES][way->at[STAGES]],
        .threads = values[THREADS][way->at[THREADS]],
        .batch = values[BATCH][way->at[BATCH]],
        .chunk = values[CHUNK][way->at[CHUNK]],
        .failpoints = failpoints(sum),
        .head = sum / 2 % 3 ? "shared" : "last",
        .last = warm,
        .no_sums = warm,
        .passes = warm ? 2 : 1,
        .no_prefix_cache = !warm,
    };
}

void way_run(const eval_args_t *args, uint64_t *hash_out, uint64_t *rows_out)
{
    bool warm = !args->no_prefix_cache;
    eval_result_t result;
    eval_run(args, &result);
    *hash_out = eval_hash(&result);
    *rows_out = warm ? 0 : eval_hash_rows(&result);
    uint32_t cached = 0;
    for (uint32_t i = 0; i < result.n_prompts; i++) {
        cached += result.prompts[i].cached;
        assert_true(result.prompts[i].logits[0] == result.prompts[i].logits[0]);
    }
    assert_true(warm ? cached > 0 : cached == 0);
    eval_release(&result);
}

json_t *way_prompts(uint32_t n, uint32_t vocab, uint32_t longest)
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
