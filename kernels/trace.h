/* Where a step's time goes: one event for each op of a queue, written into memory that was taken
 * before. A queue without a trace pays one branch an op. With one it pays two readings of the clock
 * for the op and two for each thread that takes part, so it may stay on while requests are served;
 * when the ring is full, the oldest events are written over.
 *
 * One thread writes, the queue's own; whoever reads waits until the queue stands still. */
#ifndef SHOAL_KERNELS_TRACE_H
#define SHOAL_KERNELS_TRACE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *op; /* a constant text */
    uint64_t begin_ns, end_ns;
    uint64_t busy_ns;           /* that all threads together spent in the op's functions */
    uint64_t operations, bytes; /* multiplications and additions; read from memory at least */
    uint32_t rows, n, k;        /* rows of the batch; of a matmul also its outputs and inputs */
    uint32_t threads;           /* that shared it, 1 when it was not shared out */
    uint64_t step;
} trace_event_t;

typedef struct {
    trace_event_t *events; /* [capacity], a ring */
    uint32_t capacity;
    uint64_t n_added;
    uint64_t step; /* of the events that are added now; the owner sets it */
    /* What the event in work is called and how many bytes it moves, when a host call says so. */
    const char *label;
    uint64_t label_bytes;
} trace_t;

trace_t *trace_new(uint32_t capacity);
void trace_free(trace_t *take_trace);

/* The step is filled in here. */
void trace_add(trace_t *trace, const trace_event_t *event);

/* Kept events, oldest first: trace_at(trace, 0) … trace_at(trace, trace_count(trace) - 1). */
uint32_t trace_count(const trace_t *trace);
const trace_event_t *trace_at(const trace_t *trace, uint32_t i);

#endif
