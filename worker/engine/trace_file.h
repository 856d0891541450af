/* A rank's trace (kernels/trace.h) as a file: text, one event a line, so that the parent of several
 * ranks can put their traces together. Times are those of the host's monotonic clock, which all
 * processes of a host share. */
#ifndef SHOAL_WORKER_ENGINE_TRACE_FILE_H
#define SHOAL_WORKER_ENGINE_TRACE_FILE_H

#include "common/base/memory.h"
#include "common/base/status.h"
#include "kernels/trace.h"

status_t trace_write(const trace_t *trace, const char *path) MUST_USE;

/* Writes it, saying in the log why it could not, and frees it; nothing when it is NULL. */
void trace_finish(trace_t *take_trace, const char *path);

/* All events of a file, oldest first, and their names, in the arena. A file that is not one of
 * these is refused with its line. */
status_t trace_read(const char *path, arena_t *arena, trace_event_t **events_out,
                    uint32_t *n_out) MUST_USE;

/* An event that is no op of a queue, from begin_ns until now; nothing without a trace. */
void trace_span(trace_t *trace, const char *op, uint64_t begin_ns, uint32_t rows);

#endif
