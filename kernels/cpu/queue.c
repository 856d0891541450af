/* See queue.h. The late queue exists for tests: it shows whoever looks at a buffer before the wait,
 * because outputs hold NaN patterns until the work is really done. */
#include "kernels/cpu/queue.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "kernels/cpu/fpmode.h"

struct snapshot {
    snapshot_t *next;
    void *at;
    size_t bytes;
    uint8_t saved[];
};

status_t queue_open(kdevice_t *device, kqueue_kind_t kind, kqueue_t **own_out)
{
    if (kind != KQUEUE_NOW && kind != KQUEUE_LATE)
        return fail(STATUS_INVALID, "no such kind of queue: %d", (int)kind);
    kqueue_t *queue = MEM_NEW(kqueue_t);
    queue->device = device;
    queue->kind = kind;
    *own_out = queue;
    return STATUS_OK;
}

static void set_failure(kqueue_t *queue, status_t status)
{
    if (status == STATUS_OK || queue->status != STATUS_OK)
        return;
    queue->status = status;
    strncpy(queue->text, status_text(), sizeof queue->text - 1);
}

static void run_work(kqueue_t *queue, kwork_t *work)
{
    if (queue->status != STATUS_OK)
        return;
    status_t (*run)(kqueue_t *, kwork_t *) = queue->trace != NULL ? trace_work : work->run;
    if (work->host) {
        set_failure(queue, run(queue, work));
        return;
    }
    uint32_t before = fpmode_enter();
    status_t status = run(queue, work);
    CHECK(fpmode_is_kernel());
    fpmode_leave(before);
    set_failure(queue, status);
}

static void free_work(kwork_t *work)
{
    for (uint32_t i = 0; i < WORK_ARRAYS_MAX; i++)
        free(work->owned[i]);
    free(work);
}

/* Newest first, so that a range that was poisoned twice ends as it was before the first time. */
static void restore_snapshots(kqueue_t *queue)
{
    while (queue->snapshots != NULL) {
        snapshot_t *snapshot = queue->snapshots;
        memcpy(snapshot->at, snapshot->saved, snapshot->bytes);
        queue->snapshots = snapshot->next;
        free(snapshot);
    }
}

static void drain(kqueue_t *queue, bool run)
{
    restore_snapshots(queue);
    while (queue->first != NULL) {
        kwork_t *work = queue->first;
        queue->first = work->next;
        if (run)
            run_work(queue, work);
        free_work(work);
    }
    queue->last = NULL;
}

static void poison(kqueue_t *queue, void *to, size_t bytes)
{
    snapshot_t *snapshot = mem_new(1, sizeof *snapshot + bytes);
    *snapshot = (snapshot_t){.next = queue->snapshots, .at = to, .bytes = bytes};
    memcpy(snapshot->saved, to, bytes);
    queue->snapshots = snapshot;
    memset(to, 0xff, bytes);
}

void work_array(kwork_t *work, uint32_t i, const void *array, size_t bytes)
{
    CHECK(i < WORK_ARRAYS_MAX);
    work->array[i] = array;
    work->array_bytes[i] = bytes;
}

status_t queue_take(kqueue_t *queue, kwork_t *work, void *to, size_t bytes)
{
    if (queue->kind == KQUEUE_NOW) {
        run_work(queue, work);
        return STATUS_OK;
    }
    kwork_t *kept = MEM_NEW(kwork_t);
    *kept = *work;
    kept->next = NULL;
    for (uint32_t i = 0; i < WORK_ARRAYS_MAX; i++) {
        if (kept->array_bytes[i] == 0)
            continue;
        kept->owned[i] = mem_new(1, kept->array_bytes[i]);
        memcpy(kept->owned[i], kept->array[i], kept->array_bytes[i]);
        kept->array[i] = kept->owned[i];
    }
    if (queue->last != NULL)
        queue->last->next = kept;
    else
        queue->first = kept;
    queue->last = kept;
    if (to != NULL && bytes > 0)
        poison(queue, to, bytes);
    if (work->also != NULL && work->also_bytes > 0)
        poison(queue, work->also, work->also_bytes);
    return STATUS_OK;
}

void queue_close(kqueue_t *take_queue)
{
    if (take_queue == NULL)
        return;
    drain(take_queue, true);
    free(take_queue);
}

status_t event_record(kqueue_t *queue, kevent_t *event_out)
{
    *event_out = ++queue->recorded;
    return STATUS_OK;
}

status_t event_wait(kqueue_t *queue, kevent_t event)
{
    if (event > queue->recorded)
        return fail(STATUS_INVALID, "event %llu was never recorded in this queue",
                    (unsigned long long)event);
    /* Doing all that is queued, what follows the event too, is allowed by the contract. */
    drain(queue, true);
    if (queue->status != STATUS_OK)
        return fail(queue->status, "%s", queue->text);
    return STATUS_OK;
}

void queue_reset(kqueue_t *queue)
{
    drain(queue, false);
    queue->status = STATUS_OK;
    queue->text[0] = 0;
}

uint8_t *ref_bytes(kqueue_t *queue, kref_t ref, size_t bytes, const char *what)
{
    kbuffer_t *buffer = ref.buffer;
    if (buffer == NULL || buffer->device != queue->device) {
        (void)fail(STATUS_INVALID, "%s: no buffer of this device", what);
        return NULL;
    }
    if (ref.offset > buffer->bytes || bytes > buffer->bytes - ref.offset || ref.offset % 4 != 0) {
        (void)fail(STATUS_INVALID, "%s: %zu bytes at %zu of a buffer of %zu", what, bytes,
                   ref.offset, buffer->bytes);
        return NULL;
    }
    return buffer->data + ref.offset;
}

bool ref_input(kqueue_t *queue, kref_t ref, size_t bytes, const char *what,
               const uint8_t **bytes_out)
{
    *bytes_out = ref_bytes(queue, ref, bytes, what);
    return *bytes_out != NULL;
}

bool ref_optional(kqueue_t *queue, kref_t ref, size_t bytes, const char *what,
                  const uint8_t **bytes_out)
{
    *bytes_out = NULL;
    return ref.buffer == NULL || ref_input(queue, ref, bytes, what, bytes_out);
}

size_t matrix_bytes(uint64_t rows, uint64_t columns, uint64_t ld)
{
    if (rows == 0 || columns == 0)
        return 0;
    unsigned __int128 bytes = ((unsigned __int128)(rows - 1) * ld + columns) * sizeof(float);
    return bytes > SIZE_MAX || ld < columns ? SIZE_MAX : (size_t)bytes;
}

/* Below it a row's work costs less than waking the threads. */
enum { ROWS_SHARED_MIN = 4 };

status_t run_rows(kqueue_t *queue, kwork_t *work, pool_fn fn)
{
    rows_job_t job = {queue, work};
    device_run(queue->device, fn, &job, work->batch->n_rows / ROWS_SHARED_MIN);
    return STATUS_OK;
}

typedef struct {
    kdevice_t *device;
    pool_fn fn;
    void *arg;
} run_t;

static void run_checked(void *arg, uint32_t thread, uint32_t n_threads)
{
    const run_t *run = arg;
    struct busy *busy = run->device->busy;
    uint64_t begin_ns = busy != NULL ? clock_ns() : 0;
    CHECK(fpmode_is_kernel());
    run->fn(run->arg, thread, n_threads);
    if (busy != NULL)
        busy[thread].ns += clock_ns() - begin_ns;
}

void device_run(kdevice_t *device, pool_fn fn, void *arg, uint32_t units)
{
    run_t run = {device, fn, arg};
    if (units < 2)
        run_checked(&run, 0, 1);
    else
        pool_run(device->pool, run_checked, &run);
}
