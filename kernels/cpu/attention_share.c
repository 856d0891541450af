/* Plain attention shared out over threads by its cost. The pairs (row, query head) of a step stand
 * in one order: sequence, KV head, row, head. A pair costs as many units as it sees keys. Each
 * thread takes the pairs that begin in its equal part of all units, so what it does is one piece,
 * and one row over a long context is shared as evenly as a prompt.
 *
 * Where there are too few pairs for that, each pair is cut at the chunks of keys: the maximum, sum
 * and values of a chunk become a state, and states are merged in ascending order afterwards. That
 * is the written order (docs/numerics.md), in which a chunk begins with nothing and is then merged,
 * so no bit depends on who computed it. */
#include "kernels/cpu/attention.h"
#include "kernels/cpu/pages.h"

enum {
    PAIR_COST = 32,            /* of a pair apart from its keys: loading, rounding, closing */
    COST_SHARED = 1024,        /* units that are worth waking a thread for */
    PAIRS_WHOLE = 4,           /* pairs a thread from which on they are not cut: whole ones are then
                                  uneven by a fifth at most, and states cost more than that */
    STATES_BYTES_MAX = 8 << 20, /* beyond it pairs stay whole, which costs only time */
};

/* The walk over pairs. */
typedef struct {
    const attention_job_t *job;
    bool cut;             /* at chunks */
    uint64_t total;       /* units */
    uint64_t low, high;   /* of this thread */
    uint32_t thread;
    size_t state_floats;  /* of one state */
    float *states;
} walk_t;

/* Rows of one sequence with one KV head. */
typedef struct {
    uint32_t first, end, kv_head, n_heads;
    uint16_t heads[KHEADS_MAX];
} run_t;

static uint32_t first_key(const kwork_t *work, uint32_t row)
{
    const attention_plan_t *plan = work->array[1];
    uint32_t end = entries_visible(&work->kv->pages, work->batch->rows[row].position);
    return plan->window > 0 && end > plan->window ? end - plan->window : 0;
}

static uint32_t end_key(const kwork_t *work, uint32_t row)
{
    return entries_visible(&work->kv->pages, work->batch->rows[row].position);
}

static uint64_t pair_cost(const kwork_t *work, uint32_t row)
{
    return PAIR_COST + end_key(work, row) - first_key(work, row);
}

static uint32_t sequence_end(const kbatch_t *batch, uint32_t first)
{
    uint32_t end = first + 1;
    while (end < batch->n_rows && batch->rows[end].sequence == batch->rows[first].sequence)
        end++;
    return end;
}

/* Floats of one state: the maximum, the sum, and the values from a whole line on. */
static size_t floats_of_state(const kpages_t *pages)
{
    return LINE + pages->dim16;
}

size_t attention_states_bytes(const kdevice_t *device, const kpages_t *pages)
{
    uint64_t chunks = (uint64_t)pages->n_blocks * KKV_BLOCK_TOKENS / KEYS_CHUNK + 2;
    uint64_t bytes = chunks * PAIRS_WHOLE * pool_threads(device->pool) * floats_of_state(pages) *
                     sizeof(float);
    return bytes < STATES_BYTES_MAX ? (size_t)bytes : STATES_BYTES_MAX;
}

/* What is read after a run: the next KV head's pages, which lie behind this one's, or those of the
 * next sequence. */
static void name_after(const walk_t *walk, const run_t *run, kattend_t *call)
{
    const kwork_t *work = walk->job->work;
    const kpages_t *pages = &work->kv->pages;
    uint32_t row = run->first, kv_head = run->kv_head + 1;
    if (kv_head == pages->n_kv_heads) {
        row = run->end;
        kv_head = 0;
    }
    if (row == work->batch->n_rows)
        return;
    uint32_t first = first_key(work, row) / KEYS_TILE * KEYS_TILE;
    uint32_t n_keys = end_key(work, row) - first;
    n_keys = n_keys < KEYS_TILE ? n_keys : KEYS_TILE;
    call->after.base = kv_page(pages, work->layer, 0, kv_head);
    call->after.blocks = row_blocks(work->batch, row) + first / KKV_BLOCK_TOKENS;
    call->after.n_blocks = (n_keys + KKV_BLOCK_TOKENS - 1) / KKV_BLOCK_TOKENS;
}

/* Calls of pairs [at, end) of a run over all their keys. */
static void attend_whole(const walk_t *walk, const run_t *run, uint64_t at, uint64_t end)
{
    const kwork_t *work = walk->job->work;
    while (at < end) {
        kattend_t call;
        attention_open_call(walk->job, walk->thread, run->first, run->kv_head, &call);
        uint64_t stop = at + ATTEND_PAIRS < end ? at + ATTEND_PAIRS : end;
        if (stop == end)
            name_after(walk, run, &call);
        for (; at < stop; at++)
            attention_add_pair(work, run->first + (uint32_t)(at / run->n_heads),
                               run->heads[at % run->n_heads], &call);
        if (call.n > 0)
            walk->job->queue->device->level->attend(&call);
    }
}

/* Walks over the pairs of a run from cost *at on and does those that begin in this thread's part.
 */
static void share_run(const walk_t *walk, const run_t *run, uint64_t *at)
{
    const kwork_t *work = walk->job->work;
    uint64_t begin = UINT64_MAX, end = 0, pair = 0;
    for (uint32_t row = run->first; row < run->end && *at < walk->high; row++) {
        uint64_t cost = pair_cost(work, row);
        for (uint32_t h = 0; h < run->n_heads; h++, pair++, *at += cost) {
            if (*at < walk->low || *at >= walk->high)
                continue;
            begin = begin < pair ? begin : pair;
            end = pair + 1;
        }
    }
    if (begin < end)
        attend_whole(walk, run, begin, end);
}

/* One call over one chunk: its results become states, a pair each from `state` on. */
static void attend_chunk(const walk_t *walk, const run_t *run, uint32_t row, uint32_t head_first,
                         uint32_t head_end, uint32_t chunk, float *state)
{
    const kwork_t *work = walk->job->work;
    kattend_t call;
    attention_open_call(walk->job, walk->thread, run->first, run->kv_head, &call);
    for (uint32_t h = head_first; h < head_end; h++) {
        uint32_t n = call.n;
        if (!attention_pair_is_good(work, row, run->heads[h]))
            continue; /* other threads have chunks of it as well: merging writes its NaN */
        attention_add_pair(work, row, run->heads[h], &call);
        uint32_t *first = &call.pass[0].first[n], *end = &call.pass[0].end[n];
        *first = *first > chunk ? *first : chunk;
        *end = *end < chunk + KEYS_CHUNK ? *end : chunk + KEYS_CHUNK;
        call.state[n] = state + (h - head_first) * walk->state_floats;
        if (call.n == ATTEND_ROWS || h + 1 == head_end) {
            walk->job->queue->device->level->attend(&call);
            state += (h + 1 - head_first) * walk->state_floats;
            head_first = h + 1;
            call.n = 0;
        }
    }
    if (call.n > 0)
        walk->job->queue->device->level->attend(&call);
}

/* The same cut at chunks; states lie in the order of row, chunk, head. */
static void cut_run(const walk_t *walk, const run_t *run, uint64_t *at, size_t *state)
{
    const kwork_t *work = walk->job->work;
    for (uint32_t row = run->first; row < run->end; row++) {
        uint32_t first = first_key(work, row), end = end_key(work, row);
        for (uint32_t chunk = first / KEYS_CHUNK * KEYS_CHUNK; chunk < end; chunk += KEYS_CHUNK) {
            uint32_t from = first > chunk ? first : chunk;
            uint32_t to = end < chunk + KEYS_CHUNK ? end : chunk + KEYS_CHUNK;
            uint32_t begin = UINT32_MAX, stop = 0;
            for (uint32_t h = 0; h < run->n_heads; h++, *at += PAIR_COST + to - from) {
                if (*at < walk->low || *at >= walk->high)
                    continue;
                begin = begin < h ? begin : h;
                stop = h + 1;
            }
            if (begin < stop)
                attend_chunk(walk, run, row, begin, stop, chunk,
                             walk->states + (*state + begin) * walk->state_floats);
            *state += run->n_heads;
        }
    }
}

static void walk_runs(const walk_t *walk)
{
    const kwork_t *work = walk->job->work;
    uint64_t at = 0;
    size_t state = 0;
    run_t run;
    for (run.first = 0; run.first < work->batch->n_rows; run.first = run.end) {
        run.end = sequence_end(work->batch, run.first);
        for (run.kv_head = 0; run.kv_head < work->kv->pages.n_kv_heads; run.kv_head++) {
            run.n_heads = attention_heads_of(work, run.kv_head, run.heads);
            if (walk->cut)
                cut_run(walk, &run, &at, &state);
            else
                share_run(walk, &run, &at);
        }
    }
}

static void walk_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    walk_t walk = *(const walk_t *)arg;
    walk.thread = thread;
    walk.low = walk.total * thread / n_threads;
    walk.high = walk.total * (thread + 1) / n_threads;
    walk_runs(&walk);
}

/* Merges the states of the pairs of a row, whose first state is given. */
static void merge_row(const walk_t *walk, const run_t *run, uint32_t row, uint32_t n_chunks,
                      const float *state)
{
    const kwork_t *work = walk->job->work;
    for (uint32_t h = 0; h < run->n_heads; h++) {
        kattend_t call;
        attention_open_call(walk->job, walk->thread, run->first, run->kv_head, &call);
        attention_add_pair(work, row, run->heads[h], &call);
        if (call.n > 0)
            walk->job->queue->device->level->merge(&call, state + h * walk->state_floats,
                                                   run->n_heads * walk->state_floats, n_chunks);
    }
}

static void merge_all(const walk_t *walk)
{
    const kwork_t *work = walk->job->work;
    const float *state = walk->states;
    run_t run;
    for (run.first = 0; run.first < work->batch->n_rows; run.first = run.end) {
        run.end = sequence_end(work->batch, run.first);
        for (run.kv_head = 0; run.kv_head < work->kv->pages.n_kv_heads; run.kv_head++) {
            run.n_heads = attention_heads_of(work, run.kv_head, run.heads);
            for (uint32_t row = run.first; row < run.end; row++) {
                uint32_t chunks = (end_key(work, row) + KEYS_CHUNK - 1) / KEYS_CHUNK -
                                  first_key(work, row) / KEYS_CHUNK;
                merge_row(walk, &run, row, chunks, state);
                state += (size_t)chunks * run.n_heads * walk->state_floats;
            }
        }
    }
}

/* Costs of all pairs, and of the states that cutting them would take. */
static void add_up(walk_t *walk, uint64_t *n_states_out, uint64_t *n_pairs_out)
{
    const kwork_t *work = walk->job->work;
    uint64_t n_states = 0, cut_cost = 0, keys = 0;
    for (uint32_t row = 0; row < work->batch->n_rows; row++) {
        uint32_t first = first_key(work, row), end = end_key(work, row);
        uint32_t chunks = (end + KEYS_CHUNK - 1) / KEYS_CHUNK - first / KEYS_CHUNK;
        n_states += (uint64_t)chunks * work->heads;
        keys += end - first;
    }
    *n_pairs_out = (uint64_t)work->batch->n_rows * work->heads;
    *n_states_out = n_states;
    cut_cost = n_states * PAIR_COST;
    walk->total = keys * work->heads + (walk->cut ? cut_cost : *n_pairs_out * PAIR_COST);
}

status_t attention_share(const attention_job_t *job)
{
    kdevice_t *device = job->queue->device;
    const kwork_t *work = job->work;
    walk_t walk = {.job = job, .state_floats = floats_of_state(&work->kv->pages)};
    uint64_t n_states, n_pairs;
    add_up(&walk, &n_states, &n_pairs);
    uint32_t n_threads = pool_threads(device->pool);
    walk.cut = n_threads > 1 && device->level->merge != NULL && n_states > n_pairs &&
               n_pairs < (uint64_t)PAIRS_WHOLE * n_threads &&
               n_states * walk.state_floats * sizeof(float) <= device->scratch_block_bytes;
    walk.states = (float *)(void *)device->scratch_block;
    add_up(&walk, &n_states, &n_pairs);
    uint64_t units = walk.total / COST_SHARED;
    device_run(device, walk_thread, &walk, units < UINT32_MAX ? (uint32_t)units : UINT32_MAX);
    if (walk.cut)
        merge_all(&walk);
    return STATUS_OK;
}
