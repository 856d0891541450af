/* A rank's life: its model and stage, and the loop of one epoch. See rank.h. */
#include "worker/engine/rank.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/model/kv_type.h"
#include "kernels/numerics.h"
#include "worker/engine/draft_model.h"
#include "worker/engine/head.h"
#include "worker/engine/kv.h"
#include "worker/engine/stage.h"
#include "worker/engine/trace_file.h"

#define IDLE_WAIT_MS 200u
#define TRACE_EVENTS 65536u /* some 6 MB: a hundred steps of thirty layers */
#define LOGITS_MAGIC 0x5354474cu /* "LGTS": a row of logits on the RESULT lane */

/* A row of logits on its way to the leader; `vocab` floats follow. */
typedef struct {
    uint32_t magic, slot, position, vocab;
} logits_message_t;

struct rank {
    rank_config_t config;
    model_t *model;
    stage_t *stage;
    head_t *head; /* last stage */
    draft_model_t *draft; /* the leader's, when it has one */
    char identity[DIGEST_HEX_SIZE], digest[MODEL_DIGEST_SIZE];

    /* One epoch. */
    fabric_t *fabric;
    leader_t *leader;
    const rank_callbacks_t *callbacks;
    trace_t *trace; /* NULL: none */
    step_limits_t limits;
    step_blocks_t blocks;
    uint64_t last_step;
    uint32_t sampling_rank;
    char flying[STEP_ENTRIES_MAX][SESSION_BYTES];
    arena_t arena;
    buffer_t plan_bytes, result_bytes, row_bytes;
};

/* ---- opening ---- */

static status_t make_identity(rank_t *rank)
{
    rank_config_t *c = &rank->config;
    if (!c->model_digest) {
        TRY(model_digest(c->model_path, c->cache_dir, rank->digest));
        c->model_digest = rank->digest;
    }
    model_identity_t identity = {
        .model_digest = c->model_digest,
        .activations = c->activations_f32 ? "f32" : "native",
        .kv_type = kv_type_name(c->kv, c->activations_f32),
        .numerics_version = NUMERICS_VERSION,
        .backend = "cpu",
        .adapter = "",
        .quantize = c->quantize,
    };
    model_text_identity(&identity, rank->identity);
    return STATUS_OK;
}

status_t rank_open(const rank_config_t *config, rank_t **own_out)
{
    rank_t *rank = MEM_NEW(rank_t);
    rank->config = *config;
    status_t status = model_open_quantized(
        config->model_path, config->quantize ? config->quantize : "", &rank->model);
    if (status == STATUS_OK) {
        rank_config_complete(&rank->config, model_config(rank->model));
        status = rank_config_check(&rank->config, model_config(rank->model));
    }
    if (status == STATUS_OK)
        status = make_identity(rank);
    if (status == STATUS_OK)
        status = stage_open(&rank->config, rank->model, &rank->stage);
    if (status == STATUS_OK && config->draft_path && config->rank == 0)
        status = draft_model_open(&rank->config, rank->stage->shape->vocab, &rank->draft);
    if (status != STATUS_OK) {
        rank_close(rank);
        return status;
    }
    if (rank->stage->last)
        rank->head = head_new(rank->stage);
    rank->sampling_rank = (rank->config.stages - 1) * rank->config.tp;
    if (config->trace_path) {
        rank->stage->trace = rank->trace = trace_new(TRACE_EVENTS);
        rank->stage->ops->queue_trace(rank->stage->queue, rank->trace);
    }
    *own_out = rank;
    return STATUS_OK;
}

void rank_close(rank_t *rank)
{
    if (!rank)
        return;
    head_free(rank->head);
    draft_model_close(rank->draft);
    if (rank->trace)
        rank->stage->ops->queue_trace(rank->stage->queue, NULL);
    trace_finish(rank->trace, rank->config.trace_path);
    stage_close(rank->stage);
    model_close(rank->model);
    arena_release(&rank->arena);
    step_blocks_release(&rank->blocks);
    buffer_release(&rank->plan_bytes);
    buffer_release(&rank->result_bytes);
    buffer_release(&rank->row_bytes);
    free(rank);
}

const char *rank_text_identity(const rank_t *rank)
{
    return rank->identity;
}

uint64_t rank_kv_tokens(const rank_t *rank)
{
    return (uint64_t)rank->stage->n_blocks * KV_BLOCK_TOKENS * rank->stage->cut.attention_replicas;
}

uint64_t rank_weight_bytes(const rank_t *rank)
{
    return rank->stage->weight_bytes;
}

uint32_t rank_context_max(const rank_t *rank)
{
    return rank->config.context_max;
}

uint32_t rank_vocab(const rank_t *rank)
{
    return rank->stage->shape->vocab;
}

const char *rank_isa(const rank_t *rank)
{
    return rank->stage->ops->device_info(rank->stage->device).isa;
}

/* ---- rows of logits ---- */

static void give_logits(rank_t *rank, uint32_t slot, uint32_t position, uint32_t n_rows,
                        const float *rows)
{
    char session[SESSION_BYTES];
    uint32_t choice;
    if (rank->callbacks->logits && leader_session_in_slot(rank->leader, slot, session, &choice))
        rank->callbacks->logits(rank->callbacks->context, session, choice, position, n_rows,
                                rank->limits.vocab, rows);
}

/* A send waits when the receiver has fallen behind; the fabric's own timeout then decides. */
static status_t send_bytes(rank_t *rank, uint32_t peer, fabric_lane_t lane,
                           const fabric_where_t *where, const buffer_t *bytes)
{
    stage_waiting(rank->stage, true);
    status_t status = fabric_send(rank->fabric, peer, lane, where, bytes->data, bytes->size);
    stage_waiting(rank->stage, false);
    return status;
}

static status_t deliver_logits(void *context, uint32_t slot, uint32_t position, uint32_t n_rows,
                               const float *rows)
{
    rank_t *rank = context;
    if (rank->leader) {
        give_logits(rank, slot, position, n_rows, rows);
        return STATUS_OK;
    }
    fabric_where_t where = {.operation = "send of logits", .step = rank->last_step, .layer = -1};
    uint32_t vocab = rank->limits.vocab;
    for (uint32_t i = 0; i < n_rows; i++) {
        logits_message_t head = {LOGITS_MAGIC, slot, position + i, vocab};
        buffer_clear(&rank->row_bytes);
        buffer_append(&rank->row_bytes, &head, sizeof head);
        buffer_append(&rank->row_bytes, rows + (size_t)i * vocab, vocab * sizeof *rows);
        TRY(send_bytes(rank, 0, FABRIC_RESULT, &where, &rank->row_bytes));
    }
    return STATUS_OK;
}

/* ---- steps ---- */

static bool holds_armed_token(const step_plan_t *plan)
{
    char name[40];
    for (uint32_t e = 0; e < plan->n_entries; e++)
        for (uint32_t i = 0; i < plan->entries[e].n_tokens; i++) {
            snprintf(name, sizeof name, "rank.token.%u", plan->entries[e].ids[i]);
            if (FAILPOINT(name))
                return true;
        }
    return false;
}

static status_t run_step(rank_t *rank, const step_plan_t *plan, step_result_t *result_out)
{
    stage_t *stage = rank->stage;
    uint64_t begin_ns = clock_ns();
    if (rank->trace)
        rank->trace->step = plan->step;
    if (stage->pulse)
        atomic_store_explicit(&stage->pulse->step, plan->step, memory_order_relaxed);
    stage_beat(stage);
    if (FAILPOINT("rank.step.begin") || (failpoint_armed && holds_armed_token(plan)))
        return fail(STATUS_INTERNAL, "fail point of a step");
    status_t status = stage_run(stage, plan);
    if (status == STATUS_OK && stage->last)
        status = head_run(rank->head, plan, deliver_logits, rank, result_out);
    if (status != STATUS_OK) {
        stage->ops->queue_reset(stage->queue); /* drops calls that still point at this step */
        return fail_in(status, "rank %u, step %llu", rank->config.rank,
                       (unsigned long long)plan->step);
    }
    trace_span(rank->trace, "step", begin_ns, plan->n_tokens);
    result_out->took_ns = clock_ns() - begin_ns - stage->waited_ns;
    return STATUS_OK;
}

/* Reads a plan and holds it against the one before. */
static status_t read_plan(rank_t *rank, const void *bytes, size_t size, step_plan_t *out)
{
    arena_reset(&rank->arena);
    TRY(step_plan_read(bytes, size, &rank->limits, &rank->blocks, &rank->arena, out));
    if (out->step != rank->last_step + 1)
        return fail(STATUS_INVALID, "rank %u got the plan of step %llu after step %llu",
                    rank->config.rank, (unsigned long long)out->step,
                    (unsigned long long)rank->last_step);
    rank->last_step = out->step;
    return STATUS_OK;
}

/* ---- a rank that follows ---- */

static status_t receive_plan(rank_t *rank, step_plan_t *out)
{
    fabric_where_t where = {.operation = "receive of a step plan",
                            .step = rank->last_step + 1,
                            .layer = -1,
                            .timeout_ms = FABRIC_FOREVER};
    size_t size;
    stage_waiting(rank->stage, true);
    status_t status = fabric_receive(rank->fabric, 0, FABRIC_PLAN, &where, rank->plan_bytes.data,
                                     STEP_PLAN_BYTES_MAX, &size);
    stage_waiting(rank->stage, false);
    TRY(status);
    return read_plan(rank, rank->plan_bytes.data, size, out);
}

static status_t follow(rank_t *rank)
{
    /* Pages that no plan ever needs are never touched. */
    if (rank->plan_bytes.capacity < STEP_PLAN_BYTES_MAX) {
        rank->plan_bytes.data = mem_resize(rank->plan_bytes.data, STEP_PLAN_BYTES_MAX, 1);
        rank->plan_bytes.capacity = STEP_PLAN_BYTES_MAX;
    }
    for (;;) {
        step_plan_t plan;
        step_result_t result;
        TRY(receive_plan(rank, &plan));
        if (plan.kind == STEP_STOP)
            return STATUS_OK;
        TRY(run_step(rank, &plan, &result));
        if (rank->config.rank != rank->sampling_rank)
            continue;
        fabric_where_t where = {.operation = "send of a result", .step = plan.step, .layer = -1};
        step_result_write(&result, &rank->result_bytes);
        TRY(send_bytes(rank, 0, FABRIC_RESULT, &where, &rank->result_bytes));
    }
}

/* ---- the leader ---- */

static void ring_fabric(void *context)
{
    fabric_wake(context);
}

static status_t send_plan(rank_t *rank, const buffer_t *bytes)
{
    fabric_where_t where = {
        .operation = "send of a step plan", .step = rank->last_step + 1, .layer = -1};
    for (uint32_t peer = 1; peer < rank->config.tp * rank->config.stages; peer++)
        TRY(send_bytes(rank, peer, FABRIC_PLAN, &where, bytes));
    return STATUS_OK;
}

/* One message of the sampling rank: a row of logits or a step's result. */
static status_t receive_result(rank_t *rank)
{
    fabric_where_t where = {
        .operation = "receive of a result", .step = rank->last_step, .layer = -1};
    size_t most = STEP_ENTRIES_MAX * sizeof(step_drawn_t) + 64, size;
    size_t row = sizeof(logits_message_t) + rank->limits.vocab * sizeof(float);
    most = most > row ? most : row;
    if (rank->result_bytes.capacity < most) {
        rank->result_bytes.data = mem_resize(rank->result_bytes.data, most, 1);
        rank->result_bytes.capacity = most;
    }
    TRY(fabric_receive(rank->fabric, rank->sampling_rank, FABRIC_RESULT, &where,
                       rank->result_bytes.data, most, &size));
    logits_message_t message = {0};
    if (size >= sizeof message)
        memcpy(&message, rank->result_bytes.data, sizeof message);
    if (message.magic == LOGITS_MAGIC) {
        if (size != row || message.vocab != rank->limits.vocab)
            return fail(STATUS_INVALID, "a row of logits has %zu bytes; %zu would be right", size,
                        row);
        give_logits(rank, message.slot, message.position, 1,
                    (const float *)(const void *)(rank->result_bytes.data + sizeof message));
        return STATUS_OK;
    }
    step_result_t result;
    arena_reset(&rank->arena);
    TRY(step_result_read(rank->result_bytes.data, size, rank->limits.vocab, &rank->arena, &result));
    return leader_step_done(rank->leader, &result);
}

/* Takes what has come back; waits up to wait_ms for the first of it, an admission or a failure. */
static status_t collect_results(rank_t *rank, uint32_t wait_ms)
{
    /* Without a sampling rank elsewhere the wait is only for the bell and for failures. */
    uint32_t peer = rank->sampling_rank ? rank->sampling_rank : 1;
    for (bool ready = true; ready; wait_ms = 0) {
        stage_waiting(rank->stage, true);
        status_t status = fabric_wait(rank->fabric, peer, FABRIC_RESULT, wait_ms, &ready);
        stage_waiting(rank->stage, false);
        TRY(status);
        if (ready)
            TRY(receive_result(rank));
    }
    return STATUS_OK;
}

static status_t lead_step(rank_t *rank)
{
    step_plan_t plan;
    step_result_t result;
    if (rank->callbacks->planned) {
        uint32_t n = leader_flying(rank->leader, rank->flying, STEP_ENTRIES_MAX);
        rank->callbacks->planned(rank->callbacks->context, rank->last_step + 1, n,
                                 (const char(*)[SESSION_BYTES])rank->flying);
    }
    if (FAILPOINT("leader.step"))
        return fail(STATUS_INTERNAL, "fail point leader.step");
    if (rank->fabric)
        TRY(send_plan(rank, &rank->plan_bytes));
    TRY(read_plan(rank, rank->plan_bytes.data, rank->plan_bytes.size, &plan));
    TRY(run_step(rank, &plan, &result));
    leader_step_took(rank->leader, plan.step, result.took_ns);
    if (rank->sampling_rank == 0)
        return leader_step_done(rank->leader, &result);
    return collect_results(rank, 0);
}

/* What the draft model guesses for the next plan. Without it the text is the same, so one that fails
 * is no reason to end the epoch. */
static void draft_ahead(rank_t *rank)
{
    const draft_answers_t *answers;
    if (!rank->draft || !leader_ask_drafts(rank->leader, rank->draft))
        return;
    if (draft_model_run(rank->draft, &answers) == STATUS_OK) {
        leader_drafts_done(rank->leader, answers);
        return;
    }
    log_warn("%s; from now on without it", status_text());
    draft_model_close(rank->draft);
    rank->draft = NULL;
}

static status_t lead(rank_t *rank)
{
    for (;;) {
        stage_beat(rank->stage);
        draft_ahead(rank);
        stage_waiting(rank->stage, !rank->fabric);
        leader_next_t next =
            leader_next(rank->leader, rank->fabric ? 0 : IDLE_WAIT_MS, &rank->plan_bytes);
        stage_waiting(rank->stage, false);
        if (next == LEADER_PLAN) {
            TRY(lead_step(rank));
        } else if (next == LEADER_IDLE) {
            if (rank->fabric)
                TRY(collect_results(rank, IDLE_WAIT_MS));
        } else {
            step_plan_t stop = {.kind = STEP_STOP, .step = rank->last_step + 1};
            step_plan_write(&stop, &rank->plan_bytes);
            return rank->fabric ? send_plan(rank, &rank->plan_bytes) : STATUS_OK;
        }
    }
}

static status_t install_leader(rank_t *rank, uint32_t n_blocks)
{
    scheduler_config_t config = {
        .n_blocks = n_blocks, .pools = rank->limits.pools, .vocab = rank->limits.vocab,
        .context_max = rank->config.context_max, .window = plan_kv_window(rank->stage->shape),
        .stages = rank->config.stages, .batch_max = rank->config.batch_max,
        .step_tokens_max = rank->config.prefill_tokens_max,
        .keep_prefixes = !rank->config.no_prefix_cache, .speculate_max = rank->config.speculate_max,
        .draft_model = rank->draft != NULL, .fixed_rows = rank->config.fixed_rows,
        .whole_prompts = rank->config.whole_prompts, .text_identity = rank->identity,
    };
    TRY(leader_install(rank->leader, &config, rank->fabric ? ring_fabric : NULL, rank->fabric));
    uint64_t kv_tokens = (uint64_t)n_blocks * rank->limits.pools * KV_BLOCK_TOKENS;
    if (rank->callbacks->active)
        rank->callbacks->active(rank->callbacks->context, rank->identity, kv_tokens,
                                rank->config.context_max);
    return STATUS_OK;
}

static status_t form(rank_t *rank)
{
    uint64_t n_blocks = rank->stage->n_blocks;
    if (rank->callbacks->prepared)
        rank->callbacks->prepared(rank->callbacks->context, rank_kv_tokens(rank));
    if (rank->fabric) {
        /* Ranks that shared a stage in different ways would leave out or repeat parts of sums. */
        char agreed[FABRIC_IDENTITY_BYTES_MAX];
        const plan_cut_t *cut = &rank->stage->cut;
        snprintf(agreed, sizeof agreed,
                 "%s, " STEP_PLAN_VERSION ", %u groups of experts, attention on %u, %u of it",
                 rank->identity, cut->expert_groups, cut->attention_slices,
                 cut->attention_replicas);
        stage_waiting(rank->stage, true);
        status_t status = fabric_form(rank->fabric, agreed, n_blocks,
                                      rank->config.form_timeout_ms, &n_blocks);
        stage_waiting(rank->stage, false);
        TRY(status);
    }
    if (n_blocks == 0 || n_blocks > rank->stage->n_blocks)
        return fail(STATUS_INVALID, "the replica was formed with %llu KV blocks; this rank has %u",
                    (unsigned long long)n_blocks, rank->stage->n_blocks);
    rank->limits = (step_limits_t){
        .vocab = rank->stage->shape->vocab, .context_max = rank->config.context_max,
        .n_blocks = (uint32_t)n_blocks, .pools = rank->stage->cut.attention_replicas};
    return rank->leader ? install_leader(rank, (uint32_t)n_blocks) : STATUS_OK;
}

status_t rank_run(rank_t *rank, fabric_t *fabric, leader_t *leader,
                  const rank_callbacks_t *callbacks)
{
    static const rank_callbacks_t none = {0};
    if ((leader != NULL) != (rank->config.rank == 0) ||
        (!fabric && rank->config.tp * rank->config.stages > 1))
        return fail(STATUS_INVALID,
                    "rank %u of %u × %u: the first rank has a leader and only a "
                    "single one needs no fabric",
                    rank->config.rank, rank->config.tp, rank->config.stages);
    if (rank->config.tp * rank->config.stages == 1)
        fabric = NULL; /* there is nobody to talk to */
    rank->fabric = fabric;
    rank->leader = leader;
    rank->callbacks = callbacks ? callbacks : &none;
    rank->last_step = 0;
    step_blocks_clear(&rank->blocks);
    rank->stage->fabric = fabric;
    rank->stage->pulse = rank->callbacks->pulse;
    rank->stage->ops->queue_reset(rank->stage->queue);
    if (rank->head)
        head_reset(rank->head);
    if (rank->draft)
        draft_model_begin(rank->draft, rank->stage->pulse);
    status_t status = form(rank);
    if (status == STATUS_OK)
        status = leader ? lead(rank) : follow(rank);
    if (leader)
        leader_lose(leader, status == STATUS_OK ? "the replica was stopped" : status_text());
    rank->fabric = rank->stage->fabric = NULL;
    rank->stage->pulse = NULL;
    return status;
}
