/* What a traced op did, for trace.h: its time from the kernels' side, and how much it had to
 * compute and to read, where that follows from its arguments. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/queue.h"

void queue_trace(kqueue_t *queue, trace_t *trace)
{
    kdevice_t *device = queue->device;
    queue->trace = trace;
    if (trace != NULL && device->busy == NULL) {
        size_t bytes = pool_threads(device->pool) * sizeof *device->busy;
        device->busy = aligned_alloc(_Alignof(struct busy), bytes);
        CHECK(device->busy != NULL);
        memset(device->busy, 0, bytes);
    } else if (trace == NULL) {
        free(device->busy);
        device->busy = NULL;
    }
}

static void cost_matmul(const kwork_t *work, trace_event_t *event)
{
    const kweight_t *weight = work->weight;
    event->n = weight->n;
    event->k = weight->inputs[0].k;
    event->operations = 2ull * event->rows * event->n * event->k;
    event->bytes = weight->memory_bytes;
}

/* Keys that a row sees, and what the last row of each sequence reads of the cache. */
static void cost_attention(const kwork_t *work, trace_event_t *event)
{
    const kbatch_t *batch = work->batch;
    const kpages_t *pages = &work->kv->pages;
    const attention_plan_t *plan = work->array[1];
    if (work->from[2] != NULL || plan->more != NULL)
        return; /* a list chooses the keys, or a second cache has some of them */
    uint64_t dims = plan->key_dim + plan->value_dim;
    uint64_t stored = plan->key_dim + (pages->v_bytes > 0 ? plan->value_dim : 0);
    for (uint32_t row = 0; row < batch->n_rows; row++) {
        uint64_t keys = entries_visible(pages, batch->rows[row].position);
        if (plan->window > 0 && keys > plan->window)
            keys = plan->window;
        event->operations += 2 * keys * work->heads * dims;
        if (row + 1 == batch->n_rows || batch->rows[row + 1].sequence != batch->rows[row].sequence)
            event->bytes += keys * pages->n_kv_heads * stored * key_bytes(pages);
    }
}

status_t trace_work(kqueue_t *queue, kwork_t *work)
{
    trace_t *trace = queue->trace;
    struct busy *busy = queue->device->busy;
    uint32_t n_threads = pool_threads(queue->device->pool);
    trace_event_t event = {.op = work->name, .rows = work->batch != NULL ? work->batch->n_rows : 0};
    if (strncmp(event.op, "op_", 3) == 0)
        event.op += 3;
    trace->label = NULL;
    trace->label_bytes = 0;
    event.begin_ns = clock_ns();
    status_t status = work->run(queue, work);
    event.end_ns = clock_ns();
    for (uint32_t i = 0; i < n_threads; i++) {
        event.busy_ns += busy[i].ns;
        event.threads += busy[i].ns != 0;
        busy[i].ns = 0;
    }
    if (event.threads <= 1) { /* not shared out: the caller was busy all the time */
        event.threads = 1;
        event.busy_ns = event.end_ns - event.begin_ns;
    }
    if (work->weight != NULL &&
        (strcmp(event.op, "matmul") == 0 || strcmp(event.op, "gate_up") == 0))
        cost_matmul(work, &event);
    else if (strcmp(event.op, "attention") == 0 && work->kv != NULL)
        cost_attention(work, &event);
    if (trace->label != NULL) {
        event.op = trace->label;
        event.bytes = trace->label_bytes;
    }
    trace_add(trace, &event);
    return status;
}
