/* What comes of a step: logits, an earlier stage's part of a shared head, and results on the leader. See
 * rank_internal.h. */
#include <string.h>

#include "common/base/clock.h"
#include "common/base/failpoint.h"
#include "common/base/memory.h"
#include "worker/engine/rank_internal.h"
#include "worker/engine/trace_file.h"

#define AMID_WAIT_MS 200u /* then the pulse beats again */
#define LOGITS_MAGIC 0x5354474cu /* "LGTS": a row of logits on the RESULT lane */

/* A row of logits on its way to the leader; `vocab` floats follow. */
typedef struct {
    uint32_t magic, slot, position, vocab;
} logits_message_t;

status_t rank_send(rank_t *rank, uint32_t peer, fabric_lane_t lane, const fabric_where_t *where,
                   const buffer_t *bytes)
{
    stage_waiting(rank->stage, true);
    status_t status = fabric_send(rank->fabric, peer, lane, where, bytes->data, bytes->size);
    stage_waiting(rank->stage, false);
    return status;
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

status_t rank_deliver_logits(void *context, uint32_t slot, uint32_t position, uint32_t n_rows,
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
        TRY(rank_send(rank, 0, FABRIC_RESULT, &where, &rank->row_bytes));
    }
    return STATUS_OK;
}

/* ---- the head of earlier stages ---- */

static bool makes_parts(const rank_t *rank)
{
    return rank->config.shared_head && !rank->stage->last;
}

void rank_heads_plan(rank_t *rank, const step_plan_t *plan)
{
    rank_heads_t *heads = &rank->heads;
    if (!makes_parts(rank))
        return;
    heads->planned = plan->step;
    heads->n_rows[plan->step % RANK_HEADS_MAX] = plan->n_logits;
    uint64_t step;
    uint32_t n_rows;
    rank_heads_due(rank, &step, &n_rows); /* steps without such rows do not pile up */
    CHECK(heads->planned - heads->done < RANK_HEADS_MAX);
}

bool rank_heads_due(rank_t *rank, uint64_t *step_out, uint32_t *n_rows_out)
{
    rank_heads_t *heads = &rank->heads;
    while (heads->done < heads->planned) {
        uint64_t step = heads->done + 1;
        uint32_t left = heads->n_rows[step % RANK_HEADS_MAX] - heads->n_rows_done;
        if (left > 0) {
            *step_out = step;
            *n_rows_out = left < STAGE_LOGIT_ROWS ? left : STAGE_LOGIT_ROWS;
            return true;
        }
        heads->done = step;
        heads->n_rows_done = 0;
    }
    return false;
}

static status_t make_part(rank_t *rank, uint64_t step, uint32_t n_rows)
{
    uint64_t begin_ns = rank->trace ? clock_ns() : 0;
    if (rank->trace)
        rank->trace->step = step;
    status_t status = FAILPOINT("rank.head") ? fail(STATUS_INTERNAL, "fail point rank.head")
                                             : stage_head_part(rank->stage, step, n_rows);
    if (status != STATUS_OK) {
        rank->stage->ops->queue_reset(rank->stage->queue);
        return fail_in(status, "rank %u, head of step %llu", rank->config.rank,
                       (unsigned long long)step);
    }
    stage_beat(rank->stage);
    trace_span(rank->trace, "head part", begin_ns, n_rows);
    rank->heads.n_rows_done += n_rows;
    return STATUS_OK;
}

status_t rank_heads_through(rank_t *rank, uint64_t through)
{
    uint64_t step;
    uint32_t n_rows;
    while (rank_heads_due(rank, &step, &n_rows) && step <= through)
        TRY(make_part(rank, step, n_rows));
    return STATUS_OK;
}

/* The rows of the next head have come: all earlier stages are told, and this rank makes its part. */
static status_t lead_part(rank_t *rank)
{
    uint64_t step;
    uint32_t n_rows, n_earlier = rank->config.tp * (rank->config.stages - 1);
    if (!rank_heads_due(rank, &step, &n_rows))
        return fail(STATUS_INVALID, "rank %u sent rows to a head that no step asks for",
                    rank->sampling_rank);
    fabric_where_t where = {.operation = "send of a step plan", .step = step, .layer = -1};
    if (rank->heads.n_rows_done == 0 && n_earlier > 1) {
        step_plan_t plan = {.kind = STEP_HEAD, .step = step};
        step_plan_write(&plan, &rank->row_bytes);
        for (uint32_t peer = 1; peer < n_earlier; peer++)
            TRY(rank_send(rank, peer, FABRIC_PLAN, &where, &rank->row_bytes));
    }
    return make_part(rank, step, n_rows);
}

/* Whether this rank has made a part of a head for some of a step's rows and not for all. */
static bool is_amid(rank_t *rank)
{
    uint64_t step;
    uint32_t n_rows;
    return rank_heads_due(rank, &step, &n_rows) && rank->heads.n_rows_done > 0;
}

/* ---- results ---- */

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
    arena_reset(&rank->result_arena);
    TRY(step_result_read(rank->result_bytes.data, size, rank->limits.vocab,
                         &rank->result_arena, &result));
    return leader_step_done(rank->leader, &result);
}

status_t rank_collect(rank_t *rank, uint32_t wait_ms)
{
    /* Without a sampling rank elsewhere the wait is only for the bell and for failures. */
    uint32_t peer = rank->sampling_rank ? rank->sampling_rank : 1, ready = 0;
    uint32_t lanes = 1u << FABRIC_RESULT;
    bool amid = false;
    if (makes_parts(rank))
        lanes |= 1u << FABRIC_ACTIVATIONS;
    do {
        stage_beat(rank->stage);
        stage_waiting(rank->stage, true);
        status_t status = fabric_wait_lanes(rank->fabric, peer, lanes, wait_ms, &ready);
        stage_waiting(rank->stage, false);
        TRY(status);
        if (ready & 1u << FABRIC_RESULT)
            TRY(receive_result(rank));
        else if (ready != 0)
            TRY(lead_part(rank));
        /* The others of this stage make the whole head of a step at once: so does the leader. */
        amid = is_amid(rank);
        wait_ms = amid ? AMID_WAIT_MS : 0;
    } while (ready != 0 || amid);
    return STATUS_OK;
}
