/* The sampler: from a row of logits and the ids before it to the next id. See sampler.h for the
 * order of the operations and docs/numerics.md for their bits. */
#include "worker/engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

struct sampler {
    uint32_t vocab;
    float *x;          /* penalised logits */
    double *w;         /* their weights: exp((x - max) / T) */
    double *block_sum; /* of the weights, a block each */
    uint64_t *keys;    /* order of the tokens: higher value first, then lower id */
    uint64_t *work;    /* a copy of keys that selection may reorder */
};

const sampling_t sampling_default = {.top_p = 1.0f, .repetition_penalty = 1.0f};

sampler_t *sampler_new(uint32_t vocab)
{
    sampler_t *sampler = MEM_NEW(sampler_t);
    sampler->vocab = vocab;
    sampler->x = MEM_NEW_ARRAY(float, vocab);
    sampler->w = MEM_NEW_ARRAY(double, vocab);
    sampler->block_sum = MEM_NEW_ARRAY(double, vocab / SAMPLER_BLOCK_TOKENS + 1);
    sampler->keys = MEM_NEW_ARRAY(uint64_t, vocab);
    sampler->work = MEM_NEW_ARRAY(uint64_t, vocab);
    return sampler;
}

void sampler_free(sampler_t *sampler)
{
    if (!sampler)
        return;
    free(sampler->x);
    free(sampler->w);
    free(sampler->block_sum);
    free(sampler->keys);
    free(sampler->work);
    free(sampler);
}

static status_t check_range(const char *name, float value, float low, float high, bool above_low)
{
    /* Written so that NaN fails too. */
    if (value <= high && (above_low ? value > low : value >= low))
        return STATUS_OK;
    return fail(STATUS_INVALID, "%s is %g; it must be %s %g and at most %g", name, (double)value,
                above_low ? "over" : "at least", (double)low, (double)high);
}

status_t sampling_check(const sampling_t *p, uint32_t vocab)
{
    TRY(check_range("temperature", p->temperature, 0, 2, false));
    TRY(check_range("top_p", p->top_p, 0, 1, true));
    TRY(check_range("min_p", p->min_p, 0, 1, false));
    TRY(check_range("repetition_penalty", p->repetition_penalty, 0, 2, true));
    TRY(check_range("presence_penalty", p->presence_penalty, -2, 2, false));
    TRY(check_range("frequency_penalty", p->frequency_penalty, -2, 2, false));
    if (p->top_k > vocab)
        return fail(STATUS_INVALID, "top_k is %u; it must be at most the vocabulary, %u", p->top_k,
                    vocab);
    if (p->n_top > SAMPLING_LOGPROBS_MAX)
        return fail(STATUS_INVALID, "logprobs is %u; it must be at most %u", p->n_top,
                    SAMPLING_LOGPROBS_MAX);
    if (p->n_bias > SAMPLING_BIAS_MAX)
        return fail(STATUS_INVALID, "logit_bias has %u entries; it must have at most %u", p->n_bias,
                    SAMPLING_BIAS_MAX);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].id >= vocab)
            return fail(STATUS_INVALID,
                        "logit_bias[%u].id is %u; it must be below the vocabulary, %u", i,
                        p->bias[i].id, vocab);
        TRY(check_range("logit_bias.bias", p->bias[i].bias, -100, 100, false));
    }
    return STATUS_OK;
}

/* ---- how often each id occurred ---- */

static struct sampler_count *state_place(const sampler_state_t *state, uint32_t id)
{
    uint32_t mask = state->capacity - 1;
    uint32_t at = id * 0x9e3779b1u & mask;
    while (state->places[at].id != id && state->places[at].id != SAMPLER_NO_ID)
        at = (at + 1) & mask;
    return &state->places[at];
}

static void state_grow(sampler_state_t *state)
{
    sampler_state_t old = *state;
    state->capacity = old.capacity ? old.capacity * 2 : 64;
    state->places = MEM_NEW_ARRAY(struct sampler_count, state->capacity);
    for (uint32_t i = 0; i < state->capacity; i++)
        state->places[i].id = SAMPLER_NO_ID;
    for (uint32_t i = 0; i < old.capacity; i++)
        if (old.places[i].id != SAMPLER_NO_ID)
            *state_place(state, old.places[i].id) = old.places[i];
    free(old.places);
}

void sampler_state_add(sampler_state_t *state, uint32_t id, bool produced)
{
    CHECK(id != SAMPLER_NO_ID);
    if (2 * (state->n_used + 1) > state->capacity)
        state_grow(state);
    struct sampler_count *place = state_place(state, id);
    if (place->id == SAMPLER_NO_ID) {
        *place = (struct sampler_count){.id = id};
        state->n_used++;
    }
    if (produced)
        place->produced++;
    else
        place->prompt++;
}

void sampler_state_release(sampler_state_t *state)
{
    free(state->places);
    *state = (sampler_state_t){0};
}

uint64_t sampler_state_digest(const sampler_state_t *state)
{
    uint64_t sum = state->n_used;
    for (uint32_t i = 0; i < state->capacity; i++) {
        const struct sampler_count *place = &state->places[i];
        if (place->id == SAMPLER_NO_ID)
            continue;
        uint32_t counter[4] = {place->id, place->prompt, place->produced, 0}, out[4];
        philox4x32(counter, 1, out);
        sum += (uint64_t)out[0] << 32 | out[1];
    }
    return sum;
}

/* ---- one draw ---- */

static float penalise(const sampling_t *p, const struct sampler_count *count, float x)
{
    if (p->repetition_penalty != 1.0f)
        x = x > 0 ? x / p->repetition_penalty : x * p->repetition_penalty;
    if (count->produced > 0) {
        x = x - p->presence_penalty;
        x = x - p->frequency_penalty * (float)count->produced;
    }
    return x;
}

static bool has_penalties(const sampling_t *p)
{
    return p->repetition_penalty != 1.0f || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

static bool changes_logits(const sampling_t *p)
{
    return has_penalties(p) || p->n_bias > 0;
}

/* sampler->x = logits with penalties and bias. */
static void prepare(sampler_t *sampler, const float *logits, const sampling_t *p,
                    const sampler_state_t *state)
{
    float *x = sampler->x;
    memcpy(x, logits, sampler->vocab * sizeof *x);
    if (has_penalties(p)) {
        for (uint32_t i = 0; i < state->capacity; i++) {
            const struct sampler_count *count = &state->places[i];
            if (count->id < sampler->vocab)
                x[count->id] = penalise(p, count, x[count->id]);
        }
    }
    for (uint32_t i = 0; i < p->n_bias; i++)
        x[p->bias[i].id] = x[p->bias[i].id] + p->bias[i].bias;
}

/* Four lanes, which the baseline of this architecture has; one comparison of them is a mask. */
typedef float lanes_t __attribute__((vector_size(16)));
typedef int32_t mask_t __attribute__((vector_size(16)));
enum { LANES = 4, LANES_GROUPS = 4 };

static lanes_t load_lanes(const float *x)
{
    lanes_t v;
    memcpy(&v, x, sizeof v);
    return v;
}

static lanes_t higher(lanes_t a, lanes_t b)
{
    mask_t above = a > b;
    return (lanes_t)((above & (mask_t)a) | (~above & (mask_t)b));
}

/* Whether every value is a number that is not above the largest one, and the highest into *max. */
static bool highest_of(const float *x, uint32_t n, float *max)
{
    const float low = -3.402823466e38f, high = 3.402823466e38f;
    lanes_t most[LANES_GROUPS];
    mask_t good[LANES_GROUPS];
    uint32_t step = LANES * LANES_GROUPS, at = 0;
    for (uint32_t g = 0; g < LANES_GROUPS; g++) {
        most[g] = (lanes_t){-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        good[g] = (mask_t){-1, -1, -1, -1};
    }
    for (; at + step <= n; at += step)
        for (uint32_t g = 0; g < LANES_GROUPS; g++) {
            lanes_t v = load_lanes(x + at + g * LANES);
            most[g] = higher(v, most[g]);
            good[g] &= v <= high;
        }
    bool all = true;
    *max = -INFINITY;
    for (uint32_t i = 0; i < step; i++) {
        float m = most[i / LANES][i % LANES];
        *max = m > *max ? m : *max;
        all = all && good[i / LANES][i % LANES] != 0;
    }
    for (; at < n; at++) {
        all = all && x[at] <= high;
        *max = x[at] > *max ? x[at] : *max;
    }
    return all && *max >= low;
}

/* The first of the highest values; vocab when one is NaN or +Inf, or none is above -Inf. */
static uint32_t first_of_highest(const float *x, uint32_t vocab)
{
    float max;
    if (!highest_of(x, vocab, &max))
        return vocab;
    uint32_t best = 0;
    while (x[best] != max)
        best++;
    return best;
}

/* The sum of a block: lane = index mod 16, each lane ascending, then the lanes as a tree. */
static double sum_block(const double *w, uint32_t n)
{
    double lane[SAMPLER_LANES] = {0};
    for (uint32_t i = 0; i < n; i++)
        lane[i % SAMPLER_LANES] += w[i];
    for (uint32_t half = SAMPLER_LANES / 2; half > 0; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

static double sum_blocks(const double *w, uint32_t vocab, double *block_sum)
{
    double total = 0;
    for (uint32_t first = 0, b = 0; first < vocab; first += SAMPLER_BLOCK_TOKENS, b++) {
        uint32_t n = vocab - first < SAMPLER_BLOCK_TOKENS ? vocab - first : SAMPLER_BLOCK_TOKENS;
        double sum = sum_block(w + first, n);
        if (block_sum)
            block_sum[b] = sum;
        total += sum;
    }
    return total;
}

/* Orders values as unsigned integers do; +0 and -0 are equal. The id below makes keys distinct. */
static uint64_t order_key(float value, uint32_t id)
{
    uint32_t bits;
    value = value + 0.0f;
    memcpy(&bits, &value, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

static uint32_t key_id(uint64_t key)
{
    return (uint32_t)~key;
}

/* Heap sort, descending: qsort may allocate, and this runs in every step. */
static void sift_down(uint64_t *keys, uint32_t at, uint32_t n)
{
    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && keys[child + 1] < keys[child])
            child++;
        if (keys[at] < keys[child])
            return;
        uint64_t swap = keys[at];
        keys[at] = keys[child];
        keys[child] = swap;
    }
}

static void sort_keys(uint64_t *keys, uint32_t n)
{
    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(keys, i, n);
    for (uint32_t end = n; end-- > 1;) {
        uint64_t lowest = keys[0];
        keys[0] = keys[end];
        keys[end] = lowest;
        sift_down(keys, 0, end);
    }
}

/* Reorders keys so that the m highest stand first, in descending order. The result does not depend
 * on how it is reached, since keys are distinct. */
static void sort_highest(uint64_t *keys, uint32_t n, uint32_t m)
{
    uint32_t low = 0, high = n; /* the m-th place lies in [low, high) */
    while (m < high && high - low > 32) {
        uint64_t a = keys[low], b = keys[low + (high - low) / 2], c = keys[high - 1];
        uint64_t pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        uint32_t i = low, j = high - 1;
        for (;;) {
            while (keys[i] > pivot)
                i++;
            while (keys[j] < pivot)
                j--;
            if (i >= j)
                break;
            uint64_t swap = keys[i];
            keys[i++] = keys[j];
            keys[j--] = swap;
        }
        uint32_t cut = j + 1; /* everything before it is at least the pivot */
        if (m <= cut)
            high = cut;
        else
            low = cut;
    }
    sort_keys(keys, high);
}

/* The key of the last token that top-k and top-p keep. */
static uint64_t cutoff(sampler_t *sampler, const sampling_t *p, double total)
{
    uint32_t vocab = sampler->vocab;
    for (uint32_t i = 0; i < vocab; i++)
        sampler->keys[i] = sampler->work[i] = order_key(sampler->x[i], i);
    uint32_t most = p->top_k > 0 && p->top_k < vocab ? p->top_k : vocab;
    if (!(p->top_p < 1.0f)) {
        sort_highest(sampler->work, vocab, most);
        return sampler->work[most - 1];
    }
    if (most < vocab) {
        sort_highest(sampler->work, vocab, most);
        total = 0;
        for (uint32_t i = 0; i < most; i++)
            total += sampler->w[key_id(sampler->work[i])];
    }
    double wanted = (double)p->top_p * total;
    /* Most texts need few tokens to reach p, so the head is sorted in growing lengths. */
    for (uint32_t n = 256;; n = n < vocab / 8 ? n * 8 : vocab) {
        if (n > most)
            n = most;
        sort_highest(sampler->work, vocab, n);
        double sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            sum += sampler->w[key_id(sampler->work[i])];
            if (sum >= wanted)
                return sampler->work[i];
        }
        if (n == most)
            return sampler->work[most - 1];
    }
}

static uint32_t draw(sampler_t *sampler, const sampling_t *p, uint32_t best, uint32_t position,
                     uint32_t choice)
{
    uint32_t vocab = sampler->vocab;
    double *w = sampler->w;
    float max = sampler->x[best];
    for (uint32_t i = 0; i < vocab; i++)
        w[i] = sampler_exp((double)((sampler->x[i] - max) / p->temperature));
    if ((p->top_k > 0 && p->top_k < vocab) || p->top_p < 1.0f) {
        double all = p->top_k > 0 ? 0 : sum_blocks(w, vocab, NULL);
        uint64_t last = cutoff(sampler, p, all);
        for (uint32_t i = 0; i < vocab; i++)
            if (sampler->keys[i] < last)
                w[i] = 0;
    }
    if (p->min_p > 0) /* the highest weight is exp(0) = 1 */
        for (uint32_t i = 0; i < vocab; i++)
            if (w[i] < (double)p->min_p)
                w[i] = 0;
    double total = sum_blocks(w, vocab, sampler->block_sum);

    uint32_t counter[4] = {position, choice, 0, 0}, random[4];
    philox4x32(counter, p->seed, random);
    double u = (double)(((uint64_t)random[0] << 32 | random[1]) >> 11) * 0x1p-53;
    double target = u * total, before = 0;
    uint32_t block = 0, n_blocks = (vocab + SAMPLER_BLOCK_TOKENS - 1) / SAMPLER_BLOCK_TOKENS;
    while (block + 1 < n_blocks && !(target < before + sampler->block_sum[block]))
        before += sampler->block_sum[block++];
    /* Rounding may leave the target just past the last weight that counts; then that one is it. */
    for (;; block--) {
        uint32_t first = block * SAMPLER_BLOCK_TOKENS, found = vocab;
        uint32_t end = vocab - first < SAMPLER_BLOCK_TOKENS ? vocab : first + SAMPLER_BLOCK_TOKENS;
        for (uint32_t i = first; i < end; i++) {
            if (w[i] <= 0)
                continue;
            found = i;
            before += w[i];
            if (target < before)
                break;
        }
        if (found != vocab)
            return found;
        CHECK(block > 0); /* the highest weight is 1, so some block before has one */
    }
}

static double log_of_sum(const float *logits, uint32_t vocab, float max, double *w)
{
    double total = 0;
    double part[SAMPLER_BLOCK_TOKENS];
    for (uint32_t first = 0; first < vocab; first += SAMPLER_BLOCK_TOKENS) {
        uint32_t n = vocab - first < SAMPLER_BLOCK_TOKENS ? vocab - first : SAMPLER_BLOCK_TOKENS;
        double *at = w ? w + first : part;
        for (uint32_t i = 0; i < n; i++)
            at[i] = sampler_exp((double)logits[first + i] - (double)max);
        total += sum_block(at, n);
    }
    return sampler_log(total);
}

double sampler_logprob(const float *logits, uint32_t vocab, uint32_t id)
{
    uint32_t best = first_of_highest(logits, vocab);
    if (best == vocab)
        return (double)NAN;
    double sum = log_of_sum(logits, vocab, logits[best], NULL);
    return ((double)logits[id] - (double)logits[best]) - sum;
}

static void list_logprobs(sampler_t *sampler, const float *logits, uint32_t n_top, sampled_t *out)
{
    uint32_t vocab = sampler->vocab;
    uint32_t best = first_of_highest(logits, vocab);
    double sum = log_of_sum(logits, vocab, logits[best], NULL);
    double max = (double)logits[best];
    out->logprob = (float)(((double)logits[out->id] - max) - sum);
    out->n_top = n_top < vocab ? n_top : vocab;
    if (out->n_top == 0)
        return;
    for (uint32_t i = 0; i < vocab; i++)
        sampler->work[i] = order_key(logits[i], i);
    sort_highest(sampler->work, vocab, out->n_top);
    for (uint32_t i = 0; i < out->n_top; i++) {
        uint32_t id = key_id(sampler->work[i]);
        out->top[i] =
            (token_logprob_t){.id = id, .logprob = (float)(((double)logits[id] - max) - sum)};
    }
}

status_t sampler_draw(sampler_t *sampler, const float *logits, const sampling_t *sampling,
                      const sampler_state_t *state, uint32_t position, uint32_t choice,
                      sampled_t *out)
{
    uint32_t vocab = sampler->vocab, best = first_of_highest(logits, vocab);
    if (best == vocab)
        return fail(STATUS_NUMERIC, "the logits of position %u hold NaN or infinity", position);
    if (changes_logits(sampling) || sampling->temperature != 0) {
        prepare(sampler, logits, sampling, state);
        best = first_of_highest(sampler->x, vocab);
    }
    if (best == vocab)
        return fail(STATUS_NUMERIC, "penalties made the logits of position %u infinite", position);
    uint32_t id =
        sampling->temperature == 0 ? best : draw(sampler, sampling, best, position, choice);
    out->id = id;
    out->logprob = 0;
    out->n_top = 0;
    if (sampling->want_logprobs)
        list_logprobs(sampler, logits, sampling->n_top, out);
    return STATUS_OK;
}
