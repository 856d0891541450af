/* The completion queue and its threads. A queue reads its sockets only while some thread waits in
 * it, so one callback that runs must leave another thread waiting: two are the least. */

#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

/* gRPC's own words are for debugging: what matters of them comes back as statuses. */
static void log_grpc(gpr_log_func_args *line)
{
    if (line->severity == GPR_LOG_SEVERITY_ERROR)
        log_debug("gRPC: %s", line->message);
}

/* ---- reports on the thread that made them ---- */

/* gRPC mostly writes a message inside the call that sends it, and would then wake an I/O thread only
 * to say so: for each of sixteen streams at each step, on processors that a model is computed on. */
void rpc_io_catch(rpc_io_t *io)
{
    grpc_completion_queue_thread_local_cache_init(io->queue);
}

rpc_tag_t *rpc_io_caught(rpc_io_t *io, bool *ok_out)
{
    void *tag = NULL;
    int ok = 0;
    if (!grpc_completion_queue_thread_local_cache_flush(io->queue, &tag, &ok))
        return NULL;
    RPC_TAG_REPORTS(tag);
    *ok_out = ok != 0;
    return tag;
}

void rpc_io_hand_over(rpc_io_t *io, rpc_tag_t *tag, bool ok)
{
    RPC_TAG_STARTS(tag);
    pthread_mutex_lock(&io->lock);
    tag->next = NULL;
    tag->ok = ok;
    *io->handed_end = tag;
    io->handed_end = &tag->next;
    pthread_cond_signal(&io->told);
    pthread_mutex_unlock(&io->lock);
}

void rpc_io_count_caught(rpc_io_t *io)
{
    atomic_fetch_add_explicit(&io->n_caught, 1, memory_order_relaxed);
}

/* gRPC has no way to put a report back into its queue, so those that were caught and are not for the
 * thread that caught them have a thread of their own. There are few. */
static void *run_handed(void *context)
{
    rpc_io_t *io = context;
    pthread_mutex_lock(&io->lock);
    for (;;) {
        rpc_tag_t *tag = io->handed;
        if (!tag && io->stop)
            break;
        if (!tag) {
            pthread_cond_wait(&io->told, &io->lock);
            continue;
        }
        io->handed = tag->next;
        if (!io->handed)
            io->handed_end = &io->handed;
        pthread_mutex_unlock(&io->lock);
        RPC_TAG_REPORTS(tag);
        tag->run(tag, tag->ok);
        pthread_mutex_lock(&io->lock);
    }
    pthread_mutex_unlock(&io->lock);
    return NULL;
}

static void stop_second(rpc_io_t *io)
{
    pthread_mutex_lock(&io->lock);
    io->stop = true;
    pthread_cond_signal(&io->told);
    pthread_mutex_unlock(&io->lock);
    if (io->has_second)
        pthread_join(io->second, NULL);
    pthread_mutex_destroy(&io->lock);
    pthread_cond_destroy(&io->told);
}

/* ---- the queue ---- */

static void *run_queue(void *context)
{
    rpc_io_t *io = context;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(io->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE) {
            rpc_tag_t *tag = event.tag;
            RPC_TAG_REPORTS(tag);
            tag->run(tag, event.success != 0);
        }
    }
}

status_t rpc_io_open(unsigned n_threads, rpc_io_t **own_io_out)
{
    TRY(grpc_late_open());
    rpc_io_t *io = MEM_NEW(rpc_io_t);
    unsigned wanted = n_threads ? n_threads : 2;
    gpr_set_log_function(log_grpc);
    grpc_init();
    pthread_mutex_init(&io->lock, NULL);
    pthread_cond_init(&io->told, NULL);
    io->handed_end = &io->handed;
    io->queue = grpc_completion_queue_create_for_next(NULL);
    io->threads = MEM_NEW_ARRAY(pthread_t, wanted);
    for (; io->n_threads < wanted; io->n_threads++) {
        if (pthread_create(&io->threads[io->n_threads], NULL, run_queue, io) != 0) {
            rpc_io_close(io);
            return fail(STATUS_EXHAUSTED, "cannot start %u threads for gRPC", wanted);
        }
    }
    io->has_second = pthread_create(&io->second, NULL, run_handed, io) == 0;
    if (!io->has_second) {
        rpc_io_close(io);
        return fail(STATUS_EXHAUSTED, "cannot start the second thread for gRPC");
    }
    *own_io_out = io;
    return STATUS_OK;
}

void rpc_io_close(rpc_io_t *take_io)
{
    grpc_completion_queue_shutdown(take_io->queue);
    for (unsigned i = 0; i < take_io->n_threads; i++)
        pthread_join(take_io->threads[i], NULL);
    /* Without a thread (start failed) nothing was ever queued but the shutdown itself. */
    if (take_io->n_threads == 0)
        run_queue(take_io);
    stop_second(take_io);
    grpc_completion_queue_destroy(take_io->queue);
    free(take_io->threads);
    free(take_io);
    grpc_shutdown_blocking();
}

grpc_byte_buffer *rpc_buffer_make(const void *bytes, size_t n)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(n ? bytes : "", n);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}
