/* Step plans and step results as bytes. Writing trusts its caller; reading trusts nothing: each
 * count is held against its limit before memory is taken, and each field against what it means. */
#include "worker/engine/step_plan.h"

#include <stdlib.h>
#include <string.h>

#include "worker/engine/kv.h"

#define PLAN_MAGIC 0x324e4c50u   /* "PLN2" */
#define RESULT_MAGIC 0x544c5352u /* "RSLT" */

enum { ENTRY_SAMPLE = 1, ENTRY_WANT_LOGITS = 2, ENTRY_FLAGS = 3, ENTRY_POOL_SHIFT = 8 };

/* ---- writing ---- */

static void put_u32(buffer_t *out, uint32_t value)
{
    buffer_append(out, &value, sizeof value);
}

static void put_u64(buffer_t *out, uint64_t value)
{
    buffer_append(out, &value, sizeof value);
}

static void put_f32(buffer_t *out, float value)
{
    buffer_append(out, &value, sizeof value);
}

static void put_open(buffer_t *out, const step_open_t *open)
{
    const sampling_t *p = &open->sampling;
    put_u32(out, open->slot);
    put_u32(out, open->choice);
    put_u32(out, open->n_prompt);
    put_u32(out, open->n_produced);
    put_f32(out, p->temperature);
    put_u32(out, p->top_k);
    put_f32(out, p->top_p);
    put_f32(out, p->min_p);
    put_f32(out, p->repetition_penalty);
    put_f32(out, p->presence_penalty);
    put_f32(out, p->frequency_penalty);
    put_u64(out, p->seed);
    put_u32(out, p->want_logprobs);
    put_u32(out, p->n_top);
    put_u32(out, p->n_bias);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        put_u32(out, p->bias[i].id);
        put_f32(out, p->bias[i].bias);
    }
    buffer_append(out, open->ids, (size_t)(open->n_prompt + open->n_produced) * sizeof *open->ids);
}

void step_plan_write(const step_plan_t *plan, buffer_t *out)
{
    buffer_clear(out);
    put_u32(out, PLAN_MAGIC);
    put_u32(out, plan->kind);
    put_u64(out, plan->step);
    put_u32(out, plan->n_closes);
    put_u32(out, plan->n_opens);
    put_u32(out, plan->n_entries);
    buffer_append(out, plan->closes, plan->n_closes * sizeof *plan->closes);
    for (uint32_t i = 0; i < plan->n_opens; i++)
        put_open(out, &plan->opens[i]);
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        const step_entry_t *entry = &plan->entries[i];
        put_u32(out, entry->slot);
        put_u32(out, entry->position);
        put_u32(out, entry->n_tokens);
        put_u32(out, entry->n_blocks);
        put_u32(out, entry->n_told);
        put_u32(out, entry->n_logits);
        put_u32(out, (entry->sample ? ENTRY_SAMPLE : 0u) |
                         (entry->want_logits ? ENTRY_WANT_LOGITS : 0u) |
                         entry->pool << ENTRY_POOL_SHIFT);
        put_u32(out, entry->n_draft);
        buffer_append(out, entry->ids, entry->n_tokens * sizeof *entry->ids);
        buffer_append(out, entry->blocks + entry->n_told,
                      (entry->n_blocks - entry->n_told) * sizeof *entry->blocks);
    }
}

void step_result_write(const step_result_t *result, buffer_t *out)
{
    buffer_clear(out);
    put_u32(out, RESULT_MAGIC);
    put_u32(out, result->n);
    put_u64(out, result->step);
    put_u64(out, result->took_ns);
    for (uint32_t i = 0; i < result->n; i++) {
        const step_drawn_t *drawn = &result->drawn[i];
        put_u32(out, drawn->slot);
        put_u32(out, drawn->failed);
        put_u32(out, drawn->sampled.id);
        put_f32(out, drawn->sampled.logprob);
        put_u32(out, drawn->sampled.n_top);
        buffer_append(out, drawn->sampled.top, drawn->sampled.n_top * sizeof drawn->sampled.top[0]);
    }
}

/* ---- reading ---- */

typedef struct {
    const uint8_t *at, *end;
    bool short_of; /* a read ran past the end; every later value is 0 */
} reader_t;

static const void *get_bytes(reader_t *in, size_t n)
{
    if (in->short_of || (size_t)(in->end - in->at) < n) {
        in->short_of = true;
        return NULL;
    }
    const void *bytes = in->at;
    in->at += n;
    return bytes;
}

static uint32_t get_u32(reader_t *in)
{
    uint32_t value = 0;
    const void *bytes = get_bytes(in, sizeof value);
    if (bytes)
        memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t get_u64(reader_t *in)
{
    uint64_t value = 0;
    const void *bytes = get_bytes(in, sizeof value);
    if (bytes)
        memcpy(&value, bytes, sizeof value);
    return value;
}

static float get_f32(reader_t *in)
{
    float value = 0;
    const void *bytes = get_bytes(in, sizeof value);
    if (bytes)
        memcpy(&value, bytes, sizeof value);
    return value;
}

static bool get_flag(reader_t *in)
{
    return get_u32(in) != 0;
}

/* n numbers below `limit`, copied; NULL with *bad_out set when one is not or the bytes end. */
static uint32_t *get_numbers(reader_t *in, size_t n, uint32_t limit, arena_t *arena, bool *bad_out)
{
    const void *bytes = get_bytes(in, n * sizeof(uint32_t));
    if (!bytes) {
        *bad_out = true;
        return NULL;
    }
    uint32_t *numbers = ARENA_NEW_ARRAY(arena, uint32_t, n ? n : 1);
    if (n)
        memcpy(numbers, bytes, n * sizeof *numbers);
    for (size_t i = 0; i < n; i++)
        if (numbers[i] >= limit)
            *bad_out = true;
    return numbers;
}

static status_t cut_short(const char *what)
{
    return fail(STATUS_INVALID, "%s is cut short or names an id, slot or block that does not exist",
                what);
}

static status_t read_open(reader_t *in, const step_limits_t *limits, arena_t *arena,
                          step_open_t *open)
{
    open->slot = get_u32(in);
    open->choice = get_u32(in);
    open->n_prompt = get_u32(in);
    open->n_produced = get_u32(in);
    sampling_t *p = &open->sampling;
    p->temperature = get_f32(in);
    p->top_k = get_u32(in);
    p->top_p = get_f32(in);
    p->min_p = get_f32(in);
    p->repetition_penalty = get_f32(in);
    p->presence_penalty = get_f32(in);
    p->frequency_penalty = get_f32(in);
    p->seed = get_u64(in);
    p->want_logprobs = get_flag(in);
    p->n_top = get_u32(in);
    p->n_bias = get_u32(in);
    if (in->short_of || open->slot >= STEP_SLOTS_MAX || p->n_bias > SAMPLING_BIAS_MAX)
        return cut_short("an open of a step plan");
    sampling_bias_t *bias = ARENA_NEW_ARRAY(arena, sampling_bias_t, p->n_bias ? p->n_bias : 1);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        bias[i].id = get_u32(in);
        bias[i].bias = get_f32(in);
    }
    p->bias = bias;
    TRY(sampling_check(p, limits->vocab));
    if (open->n_prompt > limits->context_max ||
        open->n_produced > limits->context_max - open->n_prompt)
        return fail(STATUS_INVALID,
                    "a step plan opens a sequence of %u + %u tokens; context_max is %u",
                    open->n_prompt, open->n_produced, limits->context_max);
    bool bad = false;
    open->ids =
        get_numbers(in, (size_t)open->n_prompt + open->n_produced, limits->vocab, arena, &bad);
    return bad ? cut_short("an open of a step plan") : STATUS_OK;
}

void step_blocks_clear(step_blocks_t *blocks)
{
    for (uint32_t i = 0; i < STEP_SLOTS_MAX; i++)
        blocks->slots[i].n = 0;
}

void step_blocks_release(step_blocks_t *blocks)
{
    for (uint32_t i = 0; i < STEP_SLOTS_MAX; i++)
        free(blocks->slots[i].blocks);
    *blocks = (step_blocks_t){0};
}

/* The numbers that are new, behind those of the slot that were told. False when one is none or more
 * were told than the slot has. */
static bool read_blocks(reader_t *in, const step_limits_t *limits, step_blocks_t *blocks,
                        step_entry_t *entry)
{
    uint32_t n = entry->n_blocks, told = entry->n_told;
    if (told > n || told > blocks->slots[entry->slot].n)
        return false;
    const uint8_t *bytes = get_bytes(in, (size_t)(n - told) * sizeof(uint32_t));
    if (!bytes)
        return false;
    if (blocks->slots[entry->slot].capacity < n) {
        uint32_t capacity = n < 32 ? 64 : n * 2;
        blocks->slots[entry->slot].blocks =
            mem_resize(blocks->slots[entry->slot].blocks, capacity, sizeof(uint32_t));
        blocks->slots[entry->slot].capacity = capacity;
    }
    uint32_t *numbers = blocks->slots[entry->slot].blocks;
    if (n > told) {
        memcpy(numbers + told, bytes, (n - told) * sizeof *numbers);
        blocks->slots[entry->slot].n = n;
    }
    for (uint32_t i = told; i < n; i++)
        if (numbers[i] >= limits->n_blocks)
            return false;
    entry->blocks = numbers;
    return true;
}

static status_t read_entry(reader_t *in, const step_limits_t *limits, step_blocks_t *blocks,
                           arena_t *arena, step_entry_t *entry)
{
    entry->slot = get_u32(in);
    entry->position = get_u32(in);
    entry->n_tokens = get_u32(in);
    entry->n_blocks = get_u32(in);
    entry->n_told = get_u32(in);
    entry->n_logits = get_u32(in);
    uint32_t flags = get_u32(in);
    entry->n_draft = get_u32(in);
    entry->pool = flags >> ENTRY_POOL_SHIFT;
    flags &= (1u << ENTRY_POOL_SHIFT) - 1;
    entry->sample = flags & ENTRY_SAMPLE;
    entry->want_logits = flags & ENTRY_WANT_LOGITS;
    if (in->short_of || entry->slot >= STEP_SLOTS_MAX || flags > ENTRY_FLAGS ||
        entry->pool >= (limits->pools ? limits->pools : 1))
        return cut_short("an entry of a step plan");
    if (entry->n_tokens == 0 || entry->n_tokens > STEP_TOKENS_MAX ||
        entry->position > limits->context_max ||
        entry->n_tokens > limits->context_max - entry->position)
        return fail(STATUS_INVALID, "a step plan has %u tokens at position %u; context_max is %u",
                    entry->n_tokens, entry->position, limits->context_max);
    if (entry->n_blocks != kv_blocks_for((uint64_t)entry->position + entry->n_tokens))
        return fail(STATUS_INVALID, "a step plan gives %u blocks for %u tokens", entry->n_blocks,
                    entry->position + entry->n_tokens);
    if (entry->n_logits > entry->n_tokens || (entry->n_logits == 0 && flags != 0))
        return fail(STATUS_INVALID, "a step plan asks for %u rows of logits of %u tokens",
                    entry->n_logits, entry->n_tokens);
    if (entry->n_draft > 0 && (flags != ENTRY_SAMPLE || entry->n_logits != entry->n_draft + 1ull))
        return fail(STATUS_INVALID,
                    "a step plan has %u guesses and %u rows of logits; sampling needs one more",
                    entry->n_draft, entry->n_logits);
    bool bad = false;
    entry->ids = get_numbers(in, entry->n_tokens, limits->vocab, arena, &bad);
    bad |= !read_blocks(in, limits, blocks, entry);
    return bad ? cut_short("an entry of a step plan") : STATUS_OK;
}

static status_t read_entries(reader_t *in, const step_limits_t *limits, step_blocks_t *blocks,
                             arena_t *arena, step_plan_t *plan)
{
    bool used[STEP_SLOTS_MAX] = {false};
    for (uint32_t i = 0; i < plan->n_entries; i++) {
        step_entry_t *entry = &plan->entries[i];
        TRY(read_entry(in, limits, blocks, arena, entry));
        if (i > 0 && entry->pool < plan->entries[i - 1].pool)
            return fail(STATUS_INVALID, "a step plan has a sequence of pool %u behind one of %u",
                        entry->pool, plan->entries[i - 1].pool);
        if (used[entry->slot])
            return fail(STATUS_INVALID, "a step plan names slot %u twice", entry->slot);
        used[entry->slot] = true;
        plan->n_tokens += entry->n_tokens;
        plan->n_blocks += entry->n_blocks;
        plan->n_logits += entry->n_logits;
        plan->n_samples += entry->sample + entry->n_draft;
        if (plan->n_tokens > STEP_TOKENS_MAX || plan->n_samples > STEP_SAMPLES_MAX)
            return fail(STATUS_INVALID, "a step plan has over %u tokens or draws over %u",
                        STEP_TOKENS_MAX, STEP_SAMPLES_MAX);
    }
    return STATUS_OK;
}

status_t step_plan_read(const void *bytes, size_t size, const step_limits_t *limits,
                        step_blocks_t *blocks, arena_t *arena, step_plan_t *out)
{
    reader_t in = {.at = bytes, .end = (const uint8_t *)bytes + size};
    step_plan_t plan = {0};
    uint32_t magic = get_u32(&in), kind = get_u32(&in);
    plan.step = get_u64(&in);
    plan.n_closes = get_u32(&in);
    plan.n_opens = get_u32(&in);
    plan.n_entries = get_u32(&in);
    if (in.short_of || magic != PLAN_MAGIC || kind < STEP_RUN || kind > STEP_HEAD ||
        plan.n_closes > STEP_SLOTS_MAX || plan.n_opens > STEP_SLOTS_MAX ||
        plan.n_entries > STEP_ENTRIES_MAX)
        return fail(STATUS_INVALID, "a message of %zu bytes is no step plan", size);
    plan.kind = (step_kind_t)kind;
    bool bad = false;
    plan.closes = get_numbers(&in, plan.n_closes, STEP_SLOTS_MAX, arena, &bad);
    if (bad)
        return cut_short("a step plan");
    plan.opens = ARENA_NEW_ARRAY(arena, step_open_t, plan.n_opens + 1);
    for (uint32_t i = 0; i < plan.n_opens; i++) {
        TRY(read_open(&in, limits, arena, &plan.opens[i]));
        blocks->slots[plan.opens[i].slot].n = 0;
    }
    plan.entries = ARENA_NEW_ARRAY(arena, step_entry_t, plan.n_entries + 1);
    TRY(read_entries(&in, limits, blocks, arena, &plan));
    if (in.at != in.end)
        return fail(STATUS_INVALID, "a step plan has %zu bytes too many", (size_t)(in.end - in.at));
    *out = plan;
    return STATUS_OK;
}

status_t step_result_read(const void *bytes, size_t size, uint32_t vocab, arena_t *arena,
                          step_result_t *out)
{
    reader_t in = {.at = bytes, .end = (const uint8_t *)bytes + size};
    uint32_t magic = get_u32(&in);
    step_result_t result = {.n = get_u32(&in)};
    result.step = get_u64(&in);
    result.took_ns = get_u64(&in);
    if (in.short_of || magic != RESULT_MAGIC || result.n > STEP_SAMPLES_MAX)
        return fail(STATUS_INVALID, "a message of %zu bytes is no step result", size);
    result.drawn = ARENA_NEW_ARRAY(arena, step_drawn_t, result.n + 1);
    for (uint32_t i = 0; i < result.n; i++) {
        step_drawn_t *drawn = &result.drawn[i];
        drawn->slot = get_u32(&in);
        drawn->failed = get_flag(&in);
        drawn->sampled.id = get_u32(&in);
        drawn->sampled.logprob = get_f32(&in);
        drawn->sampled.n_top = get_u32(&in);
        if (in.short_of || drawn->slot >= STEP_SLOTS_MAX || drawn->sampled.id >= vocab ||
            drawn->sampled.n_top > SAMPLING_LOGPROBS_MAX)
            return cut_short("a step result");
        size_t n = drawn->sampled.n_top * sizeof drawn->sampled.top[0];
        const void *top = get_bytes(&in, n);
        if (!top)
            return cut_short("a step result");
        memcpy(drawn->sampled.top, top, n);
    }
    if (in.at != in.end)
        return fail(STATUS_INVALID, "a step result has %zu bytes too many",
                    (size_t)(in.end - in.at));
    *out = result;
    return STATUS_OK;
}
