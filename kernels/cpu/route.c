/* From router logits to experts and weights (docs/numerics.md, "MoE"): plain C for every level, a
 * row costs microseconds. Every choice breaks ties towards the lower index. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/double_math.h"
#include "kernels/cpu/numbers.h"
#include "kernels/cpu/queue.h"

enum { GROUPS_MAX = 64 };

/* sqrt(log(1 + e^x)) in double, rounded once; its parts: where e^x is all, where x is all. */
static float sqrt_softplus(float x)
{
    double y = (double)x;
    if (y < -300.0)
        y = -300.0;
    if (y <= 20.0) {
        double e = math_exp2(y * 0x1.71547652b82fep+0);
        y = y < -15.0 ? e * (1.0 - 0.5 * e) : math_log2(1.0 + e) * 0x1.62e42fefa39efp-1;
    }
    return (float)sqrt(y);
}

static void softmax(const float *x, uint32_t n, float *out)
{
    float lanes[NUMERICS_LANES] = {0};
    float most = x[0];
    for (uint32_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (uint32_t i = 0; i < n; i++) {
        out[i] = exp2_ref((x[i] - most) * LOG2_E);
        lanes[i % NUMERICS_LANES] += out[i];
    }
    for (uint32_t distance = 8; distance > 0; distance /= 2)
        for (uint32_t i = 0; i < distance; i++)
            lanes[i] = lanes[i] + lanes[i + distance];
    for (uint32_t i = 0; i < n; i++)
        out[i] = out[i] / lanes[0];
}

static void scores_of(const kroute_spec_t *spec, const float *logits, float *scores)
{
    uint32_t n = spec->n_experts;
    if (spec->score == KROUTE_SOFTMAX && !spec->softmax_after) {
        softmax(logits, n, scores);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        scores[i] = spec->score == KROUTE_SIGMOID         ? sigmoid_ref(logits[i])
                    : spec->score == KROUTE_SQRT_SOFTPLUS ? sqrt_softplus(logits[i])
                                                          : logits[i];
}

/* Marks the `keep` highest of n values; the lower index wins a tie. Values marked before are not
 * looked at. */
static void mark_best(const float *values, uint32_t n, uint32_t keep, const bool *allowed,
                      bool *marked_out)
{
    memset(marked_out, 0, n * sizeof *marked_out);
    for (uint32_t round = 0; round < keep; round++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++)
            if ((allowed == NULL || allowed[i]) && !marked_out[i] &&
                (best == UINT32_MAX || values[i] > values[best]))
                best = i;
        if (best == UINT32_MAX)
            return;
        marked_out[best] = true;
    }
}

static float group_score(const kroute_spec_t *spec, const float *values, uint32_t n)
{
    float first = -INFINITY, second = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (values[i] > first) {
            second = first;
            first = values[i];
        } else if (values[i] > second) {
            second = values[i];
        }
    }
    return spec->group_sum_top2 && n > 1 ? first + second : first;
}

static void choose(const kroute_spec_t *spec, const float *choice, uint32_t *ids)
{
    bool allowed[KROUTE_EXPERTS_MAX], chosen[KROUTE_EXPERTS_MAX];
    bool grouped = spec->n_groups > 1;
    if (grouped) {
        float scores[GROUPS_MAX];
        bool kept[GROUPS_MAX];
        uint32_t size = spec->n_experts / spec->n_groups;
        for (uint32_t g = 0; g < spec->n_groups; g++)
            scores[g] = group_score(spec, choice + (size_t)g * size, size);
        mark_best(scores, spec->n_groups, spec->groups_kept, NULL, kept);
        for (uint32_t i = 0; i < spec->n_experts; i++)
            allowed[i] = kept[i / size];
    }
    mark_best(choice, spec->n_experts, spec->top_k, grouped ? allowed : NULL, chosen);
    for (uint32_t i = 0, n = 0; i < spec->n_experts; i++)
        if (chosen[i])
            ids[n++] = i;
}

/* A table row's experts, ascending; they may repeat. */
static status_t look_up(const kroute_spec_t *spec, const uint32_t *table, uint32_t token,
                        uint32_t *ids)
{
    if (token >= spec->n_hash_rows)
        return fail(STATUS_INVALID, "route: token %u of a table of %u", token, spec->n_hash_rows);
    for (uint32_t i = 0; i < spec->top_k; i++) {
        uint32_t id = table[(size_t)token * spec->top_k + i], at = i;
        if (id >= spec->n_experts)
            return fail(STATUS_INVALID, "route: token %u goes to expert %u of %u", token, id,
                        spec->n_experts);
        for (; at > 0 && ids[at - 1] > id; at--)
            ids[at] = ids[at - 1];
        ids[at] = id;
    }
    return STATUS_OK;
}

static void weigh(const kroute_spec_t *spec, const float *scores, const uint32_t *ids,
                  float *weights)
{
    for (uint32_t i = 0; i < spec->top_k; i++)
        weights[i] = scores[ids[i]];
    if (spec->softmax_after)
        softmax(weights, spec->top_k, weights);
    if (spec->normalize) {
        float sum = 0;
        for (uint32_t i = 0; i < spec->top_k; i++)
            sum += weights[i];
        for (uint32_t i = 0; i < spec->top_k; i++)
            weights[i] = weights[i] / sum;
    }
    float factor = spec->factor != 0.0f ? spec->factor : 1.0f;
    for (uint32_t i = 0; i < spec->top_k; i++)
        weights[i] *= factor;
}

static bool all_finite(const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if ((float_bits(x[i]) & 0x7fffffffu) >= ROW_ERROR_BITS)
            return false;
    return true;
}

/* from[0]: logits, [1]: bias, [2]: hash table; array[0]: the spec. */
static status_t run_route(kqueue_t *queue, kwork_t *work)
{
    (void)queue;
    const kroute_spec_t *spec = work->array[0];
    for (uint32_t row = 0; row < work->batch->n_rows; row++) {
        const float *logits = floats(work->from[0], (size_t)row * work->ld);
        uint32_t *ids = (uint32_t *)(void *)work->to + (size_t)row * spec->top_k;
        float *weights = floats_to(work->also, (size_t)row * spec->top_k);
        if (!all_finite(logits, spec->n_experts)) {
            batch_row_error(work->batch, row);
            for (uint32_t i = 0; i < spec->top_k; i++) {
                ids[i] = i;
                weights[i] = bits_float(NAN_BITS);
            }
            continue;
        }
        float scores[KROUTE_EXPERTS_MAX], choice[KROUTE_EXPERTS_MAX];
        scores_of(spec, logits, scores);
        if (work->from[2] != NULL) {
            TRY(look_up(spec, (const uint32_t *)(const void *)work->from[2],
                        work->batch->rows[row].token, ids));
        } else {
            for (uint32_t i = 0; i < spec->n_experts; i++)
                choice[i] =
                    work->from[1] != NULL ? scores[i] + *floats(work->from[1], i) : scores[i];
            choose(spec, choice, ids);
        }
        weigh(spec, scores, ids, weights);
    }
    return STATUS_OK;
}

static status_t check_spec(const kroute_spec_t *spec)
{
    if (spec->n_experts < 1 || spec->n_experts > KROUTE_EXPERTS_MAX || spec->top_k < 1 ||
        spec->top_k > spec->n_experts || spec->top_k > KROUTE_TOP_MAX)
        return fail(STATUS_UNSUPPORTED, "route: %u of %u experts; up to %d of %d can be chosen",
                    spec->top_k, spec->n_experts, KROUTE_TOP_MAX, KROUTE_EXPERTS_MAX);
    if (spec->n_groups > 1 &&
        (spec->n_groups > GROUPS_MAX || spec->n_experts % spec->n_groups != 0 ||
         spec->groups_kept < 1 || spec->groups_kept > spec->n_groups ||
         spec->n_experts / spec->n_groups * spec->groups_kept < spec->top_k))
        return fail(STATUS_UNSUPPORTED, "route: %u of %u experts from %u of %u groups", spec->top_k,
                    spec->n_experts, spec->groups_kept, spec->n_groups);
    if (spec->score < KROUTE_SOFTMAX || spec->score > KROUTE_SQRT_SOFTPLUS ||
        (spec->softmax_after && spec->score != KROUTE_SOFTMAX))
        return fail(STATUS_INVALID, "route: no such score: %d", (int)spec->score);
    return STATUS_OK;
}

status_t op_route(kqueue_t *queue, kbatch_t *batch, const kroute_spec_t *spec, kref_t logits,
                  uint32_t ld, kref_t ids, kref_t weights)
{
    uint32_t rows = batch->declared_rows;
    TRY(check_spec(spec));
    if (rows == 0)
        return STATUS_OK;
    if (spec->hash.buffer != NULL && batch->declared_plain)
        return fail(STATUS_INVALID, "route: the batch has no tokens");
    size_t bytes = matrix_bytes(rows, spec->top_k, spec->top_k);
    kwork_t work = {.run = run_route, .batch = batch, .ld = ld, .also_bytes = bytes};
    work.to = ref_bytes(queue, ids, bytes, "route ids");
    work.also = ref_bytes(queue, weights, bytes, "route weights");
    if (work.to == NULL || work.also == NULL ||
        !ref_input(queue, logits, matrix_bytes(rows, spec->n_experts, ld), "route logits",
                   &work.from[0]) ||
        !ref_optional(queue, spec->bias, spec->n_experts * sizeof(float), "route bias",
                      &work.from[1]) ||
        !ref_optional(queue, spec->hash, matrix_bytes(spec->n_hash_rows, spec->top_k, spec->top_k),
                      "route table", &work.from[2]))
        return STATUS_INVALID;
    work_array(&work, 0, spec, sizeof *spec);
    return queue_submit(queue, &work, work.to, bytes);
}
