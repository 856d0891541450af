/* See draft_model.h. */
#include "worker/engine/draft_model.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/model/tokenizer_same.h"
#include "worker/engine/kv.h"
#include "worker/engine/stage.h"

/* Rows of one step: ids of prompts that it has to see. */
#define ROWS_MAX 256u

/* A sequence as far as the draft model has seen it. */
typedef struct {
    uint64_t serial; /* 0: none */
    uint64_t used;   /* the run in which it was asked for last */
    uint32_t choice;
    uint32_t n_ids;      /* that are the text's */
    uint32_t n_guessed;  /* that stand behind them */
    uint32_t n_computed; /* of both, those whose KV is there */
    uint32_t n_wanted, rows_max;
    uint32_t n_blocks;
    uint32_t *ids, *blocks; /* room for the context and the guesses behind it */
    sampling_t sampling;
    sampling_bias_t *bias;
} draft_sequence_t;

struct draft_model {
    model_t *model;
    stage_t *stage;
    kv_t *kv;
    sampler_t *sampler;
    sampler_state_t nothing; /* no id has occurred: penalties are off */
    char digest[MODEL_DIGEST_SIZE]; /* the stage's configuration points to it */
    uint32_t context_max;
    uint64_t run;
    uint32_t n_asked;
    draft_sequence_t *asked[DRAFT_SEQUENCES_MAX];
    draft_sequence_t sequences[DRAFT_SEQUENCES_MAX];
    step_entry_t entries[DRAFT_SEQUENCES_MAX];
    draft_sequence_t *entry_of[DRAFT_SEQUENCES_MAX];
    draft_answers_t answers;
};

/* ---- opening ---- */

static status_t check_tokens(const rank_config_t *rank, uint32_t vocab, const model_config_t *shape)
{
    if (shape->vocab != vocab)
        return fail(STATUS_INVALID,
                    "the draft model %s has %u tokens and the model %s has %u: a draft model has "
                    "the tokenizer of the model that it drafts for",
                    rank->draft_path, shape->vocab, rank->model_path, vocab);
    return tokenizer_check_same(rank->model_path, rank->draft_path);
}

static void config_of(const rank_config_t *rank, const model_config_t *shape, rank_config_t *out)
{
    uint32_t context = rank->context_max < shape->context_train ? rank->context_max
                                                                : shape->context_train;
    *out = (rank_config_t){
        .model_path = rank->draft_path,
        .quantize = "",
        .cache_dir = rank->cache_dir,
        .pack_cache_bytes = rank->pack_cache_bytes,
        .pack_cache_bytes_min = rank->pack_cache_bytes_min,
        .tp = 1,
        .stages = 1,
        .attention_replicas = 1,
        .layer_count = shape->n_layers,
        .threads = rank->threads,
        .context_max = context,
        .kv_tokens_max = plan_draft_tokens(context),
        .kv_bytes_max = UINT64_MAX,
        .prefill_tokens_max = ROWS_MAX,
        .batch_max = DRAFT_SEQUENCES_MAX,
        .pulse = rank->pulse,
    };
}

static void take_memory(draft_model_t *draft)
{
    size_t ids = draft->context_max + DRAFT_MAX;
    kv_config_t kv = {.n_blocks = draft->stage->n_blocks, .text_identity = ""};
    draft->kv = kv_new(&kv);
    draft->sampler = sampler_new(model_config(draft->model)->vocab);
    for (uint32_t i = 0; i < DRAFT_SEQUENCES_MAX; i++) {
        draft->sequences[i].ids = MEM_NEW_ARRAY(uint32_t, ids);
        draft->sequences[i].blocks = MEM_NEW_ARRAY(uint32_t, kv_blocks_for(ids));
    }
}

/* The first steps touch weights that nobody has read; their time would be taken for the price. */
static status_t warm_up(draft_model_t *draft)
{
    static const uint32_t ids[8];
    const draft_answers_t *answers;
    draft_ask_t ask = {.serial = 1, .ids = ids, .n_ids = 8, .n_wanted = 2, .rows_max = 8,
                       .sampling = &sampling_default};
    for (uint32_t i = 0; i < 2; i++) {
        draft_model_take(draft, &ask, 1);
        TRY(draft_model_run(draft, &answers));
        draft_model_begin(draft, NULL);
    }
    return STATUS_OK;
}

status_t draft_model_open(const rank_config_t *rank, uint32_t vocab, draft_model_t **own_out)
{
    draft_model_t *draft = MEM_NEW(draft_model_t);
    rank_config_t config;
    status_t status = model_open(rank->draft_path, &draft->model);
    if (status == STATUS_OK)
        status = check_tokens(rank, vocab, model_config(draft->model));
    if (status == STATUS_OK) {
        config_of(rank, model_config(draft->model), &config);
        if (rank->draft_digest) {
            config.model_digest = rank->draft_digest;
        } else {
            status = model_digest(rank->draft_path, rank->cache_dir, draft->digest);
            config.model_digest = draft->digest;
        }
    }
    if (status == STATUS_OK)
        status = stage_open(&config, draft->model, &draft->stage);
    if (status != STATUS_OK) {
        draft_model_close(draft);
        return status;
    }
    draft->context_max = config.context_max;
    take_memory(draft);
    status = warm_up(draft);
    if (status != STATUS_OK) {
        draft_model_close(draft);
        return status;
    }
    *own_out = draft;
    return STATUS_OK;
}

void draft_model_close(draft_model_t *draft)
{
    if (!draft)
        return;
    for (uint32_t i = 0; i < DRAFT_SEQUENCES_MAX; i++) {
        free(draft->sequences[i].ids);
        free(draft->sequences[i].blocks);
        free(draft->sequences[i].bias);
    }
    if (draft->kv)
        kv_free(draft->kv);
    sampler_free(draft->sampler);
    stage_close(draft->stage);
    model_close(draft->model);
    free(draft);
}

uint64_t draft_model_bytes(const draft_model_t *draft)
{
    return draft->stage->weight_bytes;
}

uint32_t draft_model_context_max(const draft_model_t *draft)
{
    return draft->context_max;
}

/* ---- what it knows of sequences ---- */

static void forget(draft_model_t *draft, draft_sequence_t *q)
{
    kv_release(draft->kv, q->blocks, q->n_blocks);
    free(q->bias);
    *q = (draft_sequence_t){.ids = q->ids, .blocks = q->blocks};
}

void draft_model_begin(draft_model_t *draft, rank_pulse_t *pulse)
{
    for (uint32_t i = 0; i < DRAFT_SEQUENCES_MAX; i++)
        forget(draft, &draft->sequences[i]);
    draft->n_asked = 0;
    draft->stage->pulse = pulse;
    draft->stage->ops->queue_reset(draft->stage->queue);
}

/* The one that was asked for longest ago and not in this run, or NULL. Of those with blocks where
 * blocks are what is looked for: an empty place was asked for never, and has none to give. */
static draft_sequence_t *oldest(draft_model_t *draft, bool with_blocks)
{
    draft_sequence_t *found = NULL;
    for (uint32_t i = 0; i < DRAFT_SEQUENCES_MAX; i++) {
        draft_sequence_t *q = &draft->sequences[i];
        if (with_blocks && q->n_blocks == 0)
            continue;
        if (q->used < draft->run && (!found || q->used < found->used))
            found = q;
    }
    return found;
}

static draft_sequence_t *sequence_of(draft_model_t *draft, const draft_ask_t *ask)
{
    for (uint32_t i = 0; i < DRAFT_SEQUENCES_MAX; i++)
        if (draft->sequences[i].serial == ask->serial)
            return &draft->sequences[i];
    draft_sequence_t *q = oldest(draft, false);
    if (!q)
        return NULL;
    forget(draft, q);
    q->serial = ask->serial;
    q->choice = ask->choice;
    q->sampling = *ask->sampling;
    /* Penalties depend on all ids before and change little; log-probabilities nobody reads. */
    q->sampling.repetition_penalty = 1;
    q->sampling.presence_penalty = q->sampling.frequency_penalty = 0;
    q->sampling.want_logprobs = false;
    if (q->sampling.n_bias > 0) {
        q->bias = MEM_NEW_ARRAY(sampling_bias_t, q->sampling.n_bias);
        memcpy(q->bias, ask->sampling->bias, q->sampling.n_bias * sizeof *q->bias);
    }
    q->sampling.bias = q->bias;
    return q;
}

/* Takes over the ids that have come. Guesses that became ids keep their KV, what stands behind the
 * first that did not is computed again. */
static void learn(draft_sequence_t *q, const uint32_t *ids, uint32_t n)
{
    uint32_t same = q->n_ids, most = q->n_ids + q->n_guessed;
    CHECK(n >= q->n_ids);
    while (same < n && same < most && q->ids[same] == ids[same])
        same++;
    memcpy(q->ids + same, ids + same, (n - same) * sizeof *ids);
    if (q->n_computed > same)
        q->n_computed = same;
    /* The last id is always computed: its row is what the first guess is drawn from. */
    if (q->n_computed >= n)
        q->n_computed = n - 1;
    q->n_ids = n;
    q->n_guessed = 0;
}

void draft_model_take(draft_model_t *draft, const draft_ask_t *asks, uint32_t n)
{
    draft->run++;
    draft->n_asked = 0;
    for (uint32_t i = 0; i < n && i < DRAFT_SEQUENCES_MAX; i++) {
        const draft_ask_t *ask = &asks[i];
        uint32_t n_wanted = ask->n_wanted < DRAFT_MAX ? ask->n_wanted : DRAFT_MAX;
        if ((uint64_t)ask->n_ids + n_wanted > draft->context_max || n_wanted == 0)
            continue;
        draft_sequence_t *q = sequence_of(draft, ask);
        if (!q)
            continue;
        q->used = draft->run;
        q->n_wanted = n_wanted;
        q->rows_max = ask->rows_max;
        learn(q, ask->ids, ask->n_ids);
        draft->asked[draft->n_asked++] = q;
    }
}

/* ---- steps ---- */

/* Blocks for its first n tokens; takes them from whom nobody asked for. */
static bool hold_blocks(draft_model_t *draft, draft_sequence_t *q, uint32_t n)
{
    uint32_t wanted = kv_blocks_for(n);
    while (wanted > q->n_blocks) {
        if (kv_take(draft->kv, wanted - q->n_blocks, q->blocks + q->n_blocks)) {
            q->n_blocks = wanted;
            return true;
        }
        draft_sequence_t *other = oldest(draft, true);
        if (!other)
            return false;
        forget(draft, other);
    }
    return true;
}

/* The next rows of one sequence; those that reach its last id give a guess. */
static void add_entry(draft_model_t *draft, step_plan_t *plan, draft_sequence_t *q)
{
    uint32_t n = q->n_ids + q->n_guessed - q->n_computed, left = ROWS_MAX - plan->n_tokens;
    uint32_t most = q->rows_max < left ? q->rows_max : left;
    bool reaches = n <= most;
    n = reaches ? n : most;
    if (n == 0)
        return;
    if (!hold_blocks(draft, q, q->n_computed + n)) {
        q->n_wanted = q->n_guessed;
        return;
    }
    step_entry_t *entry = &draft->entries[plan->n_entries];
    *entry = (step_entry_t){.position = q->n_computed,
                            .n_tokens = n,
                            .n_blocks = kv_blocks_for(q->n_computed + n),
                            .n_logits = reaches,
                            .sample = reaches,
                            .ids = q->ids + q->n_computed,
                            .blocks = q->blocks};
    draft->entry_of[plan->n_entries++] = q;
    plan->n_tokens += n;
    plan->n_blocks += entry->n_blocks;
    plan->n_logits += entry->n_logits;
    if (!reaches)
        q->n_wanted = 0; /* the next time; what it has seen stays */
}

static status_t draw(draft_model_t *draft, draft_sequence_t *q, const float *logits)
{
    sampled_t drawn;
    uint32_t position = q->n_ids + q->n_guessed;
    status_t status = sampler_draw(draft->sampler, logits, &q->sampling, &draft->nothing, position,
                                   q->choice, &drawn);
    if (status == STATUS_NUMERIC) {
        q->n_wanted = q->n_guessed; /* no guess is better than none */
        return STATUS_OK;
    }
    TRY(status);
    q->ids[position] = drawn.id;
    q->n_guessed++;
    return STATUS_OK;
}

static status_t draw_all(draft_model_t *draft, const step_plan_t *plan)
{
    uint32_t rows[DRAFT_SEQUENCES_MAX], n = 0, row = 0;
    _Static_assert(DRAFT_SEQUENCES_MAX <= STAGE_LOGIT_ROWS, "one call of the head has them all");
    draft_sequence_t *of[DRAFT_SEQUENCES_MAX];
    for (uint32_t e = 0; e < plan->n_entries; e++) {
        row += plan->entries[e].n_tokens;
        draft->entry_of[e]->n_computed += plan->entries[e].n_tokens;
        if (!plan->entries[e].sample)
            continue;
        of[n] = draft->entry_of[e];
        rows[n++] = row - 1;
    }
    if (n == 0)
        return STATUS_OK;
    const float *logits;
    TRY(stage_head(draft->stage, rows, n, NULL, &logits));
    for (uint32_t i = 0; i < n; i++)
        TRY(draw(draft, of[i], logits + (size_t)i * draft->stage->shape->vocab));
    return STATUS_OK;
}

/* One step for all that want further guesses. False in *more_out when none does. */
static status_t step(draft_model_t *draft, bool *more_out)
{
    draft_answers_t *answers = &draft->answers;
    step_plan_t plan = {.kind = STEP_RUN, .step = draft->run, .entries = draft->entries};
    for (uint32_t i = 0; i < draft->n_asked; i++)
        if (draft->asked[i]->n_guessed < draft->asked[i]->n_wanted)
            add_entry(draft, &plan, draft->asked[i]);
    *more_out = plan.n_entries > 0 && answers->n_steps < DRAFT_STEPS_MAX;
    if (!*more_out)
        return STATUS_OK;
    uint64_t begin_ns = clock_ns();
    TRY(stage_run(draft->stage, &plan));
    TRY(draw_all(draft, &plan));
    step_cost_work(&plan, &answers->works[answers->n_steps]);
    answers->took_ns[answers->n_steps++] = clock_ns() - begin_ns;
    return STATUS_OK;
}

status_t draft_model_run(draft_model_t *draft, const draft_answers_t **out)
{
    draft_answers_t *answers = &draft->answers;
    bool more = true;
    answers->n = answers->n_steps = 0;
    while (more) {
        status_t status = step(draft, &more);
        if (status != STATUS_OK) {
            draft->stage->ops->queue_reset(draft->stage->queue);
            return fail_in(status, "the draft model");
        }
    }
    for (uint32_t i = 0; i < draft->n_asked; i++) {
        const draft_sequence_t *q = draft->asked[i];
        draft_answer_t *answer = &answers->answers[answers->n++];
        *answer = (draft_answer_t){.serial = q->serial,
                                   .n_ids = q->n_ids,
                                   .n_known = q->n_computed < q->n_ids ? q->n_computed : q->n_ids,
                                   .n = q->n_guessed};
        memcpy(answer->ids, q->ids + q->n_ids, q->n_guessed * sizeof *answer->ids);
    }
    draft->n_asked = 0;
    *out = answers;
    return STATUS_OK;
}
