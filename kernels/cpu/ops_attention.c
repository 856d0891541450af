/* Appending to the paged KV cache, and the op of attention over it. Plain caches are shared out by
 * attention_share.c. Where tiles have to be gathered or turned first, a unit of work is up to
 * ATTEND_PAIRS (row, query head) pairs of the same KV head of the same sequence; units are dealt to
 * the threads in turn, because later rows of a prompt cost more than earlier ones. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/pages.h"

const uint32_t *row_blocks(const kbatch_t *batch, uint32_t row)
{
    return batch->blocks + batch->table_first[batch->rows[row].sequence];
}

bool append_row(const kbatch_t *batch, const kpages_t *pages, uint32_t layer, uint32_t row,
                const float *k, const float *v)
{
    uint32_t position = batch->rows[row].position;
    uint32_t block = row_blocks(batch, row)[position / KKV_BLOCK_TOKENS];
    bool bad = false;
    for (uint32_t head = 0; head < pages->n_kv_heads; head++)
        bad |= kv_put(pages, layer, block, head, position % KKV_BLOCK_TOKENS,
                      k + (size_t)head * pages->key_dim,
                      v != NULL ? v + (size_t)head * pages->value_dim : NULL);
    return bad;
}

static void append_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const attention_job_t *job = arg;
    const kwork_t *work = job->work;
    kbatch_t *batch = work->batch;
    uint32_t first, end;
    pool_slice(batch->n_rows, thread, n_threads, &first, &end);
    for (uint32_t row = first; row < end; row++) {
        size_t at = (size_t)row * work->ld;
        if (append_row(batch, &work->kv->pages, work->layer, row, floats(work->from[0], at),
                       floats(work->from[1], at)))
            batch_row_error(batch, row);
    }
}

/* Block ids are checked where they are used: the plan that named them came over the wire. */
status_t check_blocks(const kbatch_t *batch, const kpages_t *pages)
{
    for (uint32_t i = 0; i < batch->table_first[batch->n_tables]; i++)
        if (batch->blocks[i] >= pages->n_blocks)
            return fail(STATUS_INVALID, "KV block %u of %u", batch->blocks[i], pages->n_blocks);
    return STATUS_OK;
}

static status_t run_append(kqueue_t *queue, kwork_t *work)
{
    TRY(check_blocks(work->batch, &work->kv->pages));
    attention_job_t job = {queue, work};
    device_run(queue->device, append_thread, &job, work->batch->n_rows / 4);
    return STATUS_OK;
}

status_t op_kv_append(kqueue_t *queue, kbatch_t *batch, kkv_t *kv, uint32_t layer, kref_t k,
                      kref_t v, uint32_t ld)
{
    if (batch->declared_rows == 0 || kv->pages.n_kv_heads == 0)
        return STATUS_OK;
    if (batch->declared_plain || layer >= kv->pages.n_layers)
        return fail(STATUS_INVALID, "kv_append: layer %u of %u%s", layer, kv->pages.n_layers,
                    batch->declared_plain ? ", and the batch has no positions" : "");
    const kpages_t *pages = &kv->pages;
    if (pages->rate > 1)
        return fail(STATUS_INVALID, "kv_append: entries of %u positions are written by compress",
                    pages->rate);
    uint64_t k_columns = (uint64_t)pages->n_kv_heads * pages->key_dim;
    uint64_t v_columns = (uint64_t)pages->n_kv_heads * pages->value_dim;
    kwork_t work = {.run = run_append, .batch = batch, .kv = kv, .layer = layer, .ld = ld};
    if (!ref_input(queue, k, matrix_bytes(batch->declared_rows, k_columns, ld), "kv_append keys",
                   &work.from[0]))
        return STATUS_INVALID;
    if (pages->v_bytes > 0 &&
        !ref_input(queue, v, matrix_bytes(batch->declared_rows, v_columns, ld), "kv_append values",
                   &work.from[1]))
        return STATUS_INVALID;
    return queue_submit(queue, &work, NULL, 0);
}

static const float *query_of(const kwork_t *work, uint32_t row, uint32_t head)
{
    const attention_plan_t *plan = work->array[1];
    return floats(work->from[0], (size_t)row * work->ld + (size_t)head * plan->key_dim);
}

bool attention_pair_is_good(const kwork_t *work, uint32_t row, uint32_t head)
{
    const attention_plan_t *plan = work->array[1];
    /* A row whose own key or value was not finite left zeros in the cache: its flag tells. */
    return !__atomic_load_n(&work->batch->errors[row], __ATOMIC_RELAXED) &&
           values_are_finite(query_of(work, row, head), plan->key_dim);
}

void attention_add_pair(const kwork_t *work, uint32_t row, uint32_t head, kattend_t *call)
{
    const attention_plan_t *plan = work->array[1];
    const float *q = query_of(work, row, head);
    float *out = floats_to(work->to, ((size_t)row * work->heads + head) * plan->value_dim);
    if (!attention_pair_is_good(work, row, head)) {
        batch_row_error(work->batch, row);
        for (uint32_t d = 0; d < plan->value_dim; d++)
            out[d] = bits_float(NAN_BITS);
        return;
    }
    uint32_t position = work->batch->rows[row].position;
    uint32_t selecting = work->from[2] == NULL ? UINT32_MAX : plan->more != NULL ? 1 : 0;
    for (uint32_t i = 0; i < call->n_passes; i++) {
        kpass_t *pass = &call->pass[i];
        uint32_t end = entries_visible(pass->pages, position);
        pass->first[call->n] =
            i == 0 && plan->window > 0 && end > plan->window ? end - plan->window : 0;
        if (i == selecting) {
            pass->list =
                (const uint32_t *)(const void *)work->from[2] + (size_t)row * plan->selected_ld;
            memcpy(&end, work->from[3] + (size_t)row * sizeof end, sizeof end);
            pass->first[call->n] = 0;
        }
        pass->end[call->n] = end;
    }
    call->sinks[call->n] = floats(work->from[1], head);
    call->q[call->n] = q;
    call->out[call->n] = out;
    call->state[call->n] = NULL;
    call->n++;
}

/* All but which entries the pairs see. */
static void open_pass(const kwork_t *work, const kkv_t *kv, uint32_t layer, uint32_t kv_head,
                      uint32_t row, kpass_t *pass)
{
    const kpages_t *pages = &kv->pages;
    pass->pages = pages;
    pass->base = kv_page(pages, layer, 0, kv_head);
    pass->block_stride = (pages->k_bytes + pages->v_bytes) * pages->n_kv_heads;
    pass->blocks = row_blocks(work->batch, row);
    pass->list = NULL;
}

void attention_open_call(const attention_job_t *job, uint32_t thread, uint32_t row,
                         uint32_t kv_head, kattend_t *call)
{
    const kwork_t *work = job->work;
    const attention_plan_t *plan = work->array[1];
    call->n = 0;
    call->after.n_blocks = 0;
    call->n_passes = plan->more != NULL ? 2 : 1;
    call->scratch = job->queue->device->scratch + thread * ATTEND_SCRATCH_BYTES;
    call->softcap = plan->softcap;
    call->scale = work->number;
    open_pass(work, work->kv, work->layer, kv_head, row, &call->pass[0]);
    if (plan->more != NULL)
        open_pass(work, plan->more, plan->more_layer, 0, row, &call->pass[1]);
}

uint32_t attention_heads_of(const kwork_t *work, uint32_t kv_head, uint16_t heads_out[KHEADS_MAX])
{
    const uint16_t *kv_head_of = work->array[0];
    uint32_t n = 0;
    for (uint32_t h = 0; h < work->heads; h++)
        if (kv_head_of[h] == kv_head)
            heads_out[n++] = (uint16_t)h;
    return n;
}

typedef struct {
    const attention_job_t *job;
    uint32_t thread, n_threads;
    uint32_t unit; /* counts calls over the whole op */
} share_t;

/* Pairs of one call: more where they share a tile that has to be brought into the pages' layout
 * first, as long as every thread gets some. */
static uint32_t pairs_of_call(const share_t *share, uint64_t n_pairs)
{
    uint64_t most = (n_pairs / share->n_threads + ATTEND_ROWS - 1) / ATTEND_ROWS * ATTEND_ROWS;
    return most < ATTEND_ROWS ? ATTEND_ROWS : most < ATTEND_PAIRS ? (uint32_t)most : ATTEND_PAIRS;
}

/* All pairs of the rows [first, end) of one sequence with one KV head, a call at a time. */
static void attend_run(share_t *share, uint32_t first, uint32_t end, uint32_t kv_head)
{
    const kwork_t *work = share->job->work;
    uint16_t heads[KHEADS_MAX];
    uint32_t n_heads = attention_heads_of(work, kv_head, heads);
    uint64_t n_pairs = (uint64_t)(end - first) * n_heads;
    uint32_t step = pairs_of_call(share, n_pairs);
    for (uint64_t at = 0; at < n_pairs; at += step) {
        if (share->unit++ % share->n_threads != share->thread)
            continue;
        kattend_t call;
        attention_open_call(share->job, share->thread, first, kv_head, &call);
        for (uint64_t i = at; i < at + step && i < n_pairs; i++)
            attention_add_pair(work, first + (uint32_t)(i / n_heads), heads[i % n_heads], &call);
        if (call.n > 0)
            share->job->queue->device->level->attend(&call);
    }
}

static void attend_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const attention_job_t *job = arg;
    const kwork_t *work = job->work;
    const kbatch_t *batch = work->batch;
    share_t share = {.job = job, .thread = thread, .n_threads = n_threads};
    for (uint32_t first = 0; first < batch->n_rows;) {
        uint32_t end = first + 1;
        /* Rows of one sequence share what they read, unless each has a list of its own. */
        while (end < batch->n_rows && work->from[2] == NULL &&
               batch->rows[end].sequence == batch->rows[first].sequence)
            end++;
        for (uint32_t head = 0; head < work->kv->pages.n_kv_heads; head++)
            attend_run(&share, first, end, head);
        first = end;
    }
}

/* Lists are read from a buffer, so they are checked before they become addresses. */
static status_t check_lists(const kwork_t *work, const kpages_t *pages)
{
    const attention_plan_t *plan = work->array[1];
    for (uint32_t row = 0; row < work->batch->n_rows && work->from[2] != NULL; row++) {
        const uint32_t *list =
            (const uint32_t *)(const void *)work->from[2] + (size_t)row * plan->selected_ld;
        uint32_t n = ((const uint32_t *)(const void *)work->from[3])[row];
        uint32_t visible = entries_visible(pages, work->batch->rows[row].position);
        if (n > plan->selected_ld)
            return fail(STATUS_INVALID, "attention: row %u selects %u entries of %u", row, n,
                        plan->selected_ld);
        for (uint32_t i = 0; i < n; i++)
            if (list[i] >= visible || (i > 0 && list[i] <= list[i - 1]))
                return fail(
                    STATUS_INVALID,
                    "attention: row %u selects entry %u; %u are visible, in ascending order", row,
                    list[i], visible);
    }
    return STATUS_OK;
}

static status_t run_attention(kqueue_t *queue, kwork_t *work)
{
    const attention_plan_t *plan = work->array[1];
    TRY(check_blocks(work->batch, &work->kv->pages));
    if (plan->more != NULL)
        TRY(check_blocks(work->batch, &plan->more->pages));
    TRY(check_lists(work, plan->more != NULL ? &plan->more->pages : &work->kv->pages));
    attention_job_t job = {queue, work};
    const kpages_t *pages = &work->kv->pages;
    if (work->from[2] == NULL && plan->more == NULL && !pages->values_in_keys && !pages->rows)
        return attention_share(&job);
    device_run(queue->device, attend_thread, &job, work->batch->n_rows * work->heads / ATTEND_ROWS);
    return STATUS_OK;
}

static status_t check_more(const kattention_t *what, const kpages_t *pages)
{
    const kpages_t *more = &what->more->pages;
    if (what->more_layer >= more->n_layers || more->key_dim != pages->key_dim ||
        more->value_dim != pages->value_dim || more->mode != pages->mode ||
        pages->n_kv_heads != 1 || more->n_kv_heads != 1)
        return fail(STATUS_INVALID,
                    "attention: the second cache (layer %u of %u, %u heads of %u and %u) must be "
                    "like the first, with one head of %u and %u",
                    what->more_layer, more->n_layers, more->n_kv_heads, more->key_dim,
                    more->value_dim, pages->key_dim, pages->value_dim);
    return STATUS_OK;
}

static status_t check_attention(const kbatch_t *batch, const kkv_t *kv, const kattention_t *what)
{
    const kpages_t *pages = &kv->pages;
    if (batch->declared_plain || what->layer >= pages->n_layers || what->n_heads > KHEADS_MAX ||
        what->head_dim != pages->key_dim || pages->value_dim == 0)
        return fail(STATUS_INVALID,
                    "attention: layer %u of %u, %u heads of %u in a cache of %u with values of %u",
                    what->layer, pages->n_layers, what->n_heads, what->head_dim, pages->key_dim,
                    pages->value_dim);
    if (pages->type != KKV_BF16 && (what->more != NULL || what->selected.buffer != NULL))
        return fail(STATUS_INVALID, "attention: lists and second caches are not for 8-bit codes");
    if (!(what->softcap >= 0.0f) || pages->key_dim > KHEAD_DIM_MAX)
        return fail(STATUS_INVALID, "attention: softcap %g, keys of %u", (double)what->softcap,
                    pages->key_dim);
    for (uint32_t h = 0; h < what->n_heads; h++)
        if (what->kv_head_of[h] >= pages->n_kv_heads)
            return fail(STATUS_INVALID, "attention: head %u reads KV head %u of %u", h,
                        what->kv_head_of[h], pages->n_kv_heads);
    return what->more != NULL ? check_more(what, pages) : STATUS_OK;
}

/* from[0]: queries, [1]: sinks, [2]: lists, [3]: their lengths. */
status_t op_attention(kqueue_t *queue, kbatch_t *batch, const kkv_t *kv, const kattention_t *what,
                      kref_t q, uint32_t ld, kref_t out)
{
    uint32_t rows = batch->declared_rows;
    if (rows == 0 || what->n_heads == 0)
        return STATUS_OK;
    TRY(check_attention(batch, kv, what));
    attention_plan_t plan = {.more = what->more,
                   .more_layer = what->more_layer,
                   .window = what->window,
                   .selected_ld = what->selected_ld,
                   .softcap = what->softcap,
                   .key_dim = kv->pages.key_dim,
                   .value_dim = kv->pages.value_dim};
    size_t q_width = (size_t)what->n_heads * plan.key_dim;
    size_t width = (size_t)what->n_heads * plan.value_dim;
    kwork_t work = {.run = run_attention, .batch = batch, .kv = (kkv_t *)(uintptr_t)kv, .ld = ld};
    work.layer = what->layer;
    work.heads = what->n_heads;
    /* Scores are powers of two; one factor serves both, where no softcap stands between. */
    work.number = what->softcap > 0.0f ? what->scale : what->scale * LOG2_E;
    work.to = ref_bytes(queue, out, matrix_bytes(rows, width, width), "attention output");
    size_t list_bytes = matrix_bytes(rows, what->selected_ld, what->selected_ld);
    if (work.to == NULL ||
        !ref_input(queue, q, matrix_bytes(rows, q_width, ld), "attention queries", &work.from[0]) ||
        !ref_optional(queue, what->sinks, what->n_heads * sizeof(float), "attention sinks",
                      &work.from[1]) ||
        !ref_optional(queue, what->selected, list_bytes, "attention lists", &work.from[2]))
        return STATUS_INVALID;
    if (work.from[2] != NULL && !ref_input(queue, what->n_selected, rows * sizeof(uint32_t),
                                           "attention list lengths", &work.from[3]))
        return STATUS_INVALID;
    work_array(&work, 0, what->kv_head_of, what->n_heads * sizeof(uint16_t));
    work_array(&work, 1, &plan, sizeof plan);
    return queue_submit(queue, &work, work.to, matrix_bytes(rows, width, width));
}
