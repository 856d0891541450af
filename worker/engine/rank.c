/* A rank's epoch: its formation, and the loop of steps. See rank.h. */
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "worker/engine/draft_model.h"
#include "worker/engine/kv.h"
#include "worker/engine/rank_internal.h"
#include "worker/engine/trace_file.h"

#define IDLE_WAIT_MS 200u
#define STEP_ROWS_MIN 32u /* a prompt of 512 on one core takes 3 % longer in chunks of so many */

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
        status = head_run(rank->head, plan, rank_deliver_logits, rank, result_out);
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
    if (out->kind == STEP_HEAD && out->step <= rank->last_step)
        return STATUS_OK;
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
        if (plan.kind == STEP_HEAD) {
            TRY(rank_heads_through(rank, plan.step));
            continue;
        }
        rank_heads_plan(rank, &plan);
        /* Those that the last stage has come to meanwhile, if every stage is busy and nothing was
         * sent ahead. */
        uint64_t ahead = rank->config.stages - rank->config.stage;
        if (plan.step > ahead)
            TRY(rank_heads_through(rank, plan.step - ahead));
        TRY(run_step(rank, &plan, &result));
        if (rank->config.rank != rank->sampling_rank)
            continue;
        fabric_where_t where = {.operation = "send of a result", .step = plan.step, .layer = -1};
        step_result_write(&result, &rank->result_bytes);
        TRY(rank_send(rank, 0, FABRIC_RESULT, &where, &rank->result_bytes));
    }
}

/* ---- the leader ---- */

static void ring_fabric(void *context)
{
    fabric_wake(context);
}

static status_t send_plan(rank_t *rank, uint64_t step, const buffer_t *bytes)
{
    fabric_where_t where = {.operation = "send of a step plan", .step = step, .layer = -1};
    for (uint32_t peer = 1; peer < rank->config.tp * rank->config.stages; peer++)
        TRY(rank_send(rank, peer, FABRIC_PLAN, &where, bytes));
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
    TRY(read_plan(rank, rank->plan_bytes.data, rank->plan_bytes.size, &plan));
    uint64_t due;
    uint32_t n_rows;
    while (!stage_passes_head(rank->stage, plan.n_tokens, rank->plan_bytes.size) &&
           rank_heads_due(rank, &due, &n_rows)) {
        stage_beat(rank->stage);
        TRY(rank_collect(rank, IDLE_WAIT_MS));
    }
    if (rank->fabric)
        TRY(send_plan(rank, plan.step, &rank->plan_bytes));
    rank_heads_plan(rank, &plan);
    TRY(run_step(rank, &plan, &result));
    leader_step_took(rank->leader, plan.step, result.took_ns);
    if (rank->sampling_rank == 0)
        return leader_step_done(rank->leader, &result);
    return rank_collect(rank, 0);
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
                TRY(rank_collect(rank, IDLE_WAIT_MS));
        } else {
            step_plan_t stop = {.kind = STEP_STOP, .step = rank->last_step + 1};
            step_plan_write(&stop, &rank->plan_bytes);
            return rank->fabric ? send_plan(rank, stop.step, &rank->plan_bytes) : STATUS_OK;
        }
    }
}

/* Rows of a step at most. What does not pass the heads that wait leaves a stage idle for a whole step, and
 * steps of fewer rows cost little; but not any number. */
static uint32_t step_rows_max(const rank_t *rank)
{
    uint32_t most = rank->config.prefill_tokens_max, past = stage_rows_past_heads(rank->stage);
    return past < most && past >= STEP_ROWS_MIN && past >= rank->config.batch_max ? past : most;
}

static status_t install_leader(rank_t *rank, uint32_t n_blocks)
{
    scheduler_config_t config = {
        .n_blocks = n_blocks, .pools = rank->limits.pools, .vocab = rank->limits.vocab,
        .context_max = rank->config.context_max, .window = plan_kv_window(rank->stage->shape),
        .stages = rank->config.stages, .batch_max = rank->config.batch_max,
        .step_tokens_max = step_rows_max(rank),
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
                 "%s, " STEP_PLAN_VERSION ", experts in %u, attention on %u in %u, head %s",
                 rank->identity, cut->expert_groups, cut->attention_slices,
                 cut->attention_replicas, rank->config.shared_head ? "shared" : "last");
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
    rank->heads = (rank_heads_t){0};
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
    if (rank->draft)
        draft_model_begin(rank->draft, NULL); /* the pulse was this epoch's */
    return status;
}
