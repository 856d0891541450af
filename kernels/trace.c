/* See trace.h. */
#include "kernels/trace.h"

#include <stdlib.h>

#include "common/base/memory.h"

trace_t *trace_new(uint32_t capacity)
{
    trace_t *trace = MEM_NEW(trace_t);
    trace->events = MEM_NEW_ARRAY(trace_event_t, capacity);
    trace->capacity = capacity;
    return trace;
}

void trace_free(trace_t *take_trace)
{
    if (take_trace == NULL)
        return;
    free(take_trace->events);
    free(take_trace);
}

void trace_add(trace_t *trace, const trace_event_t *event)
{
    trace_event_t *to = &trace->events[trace->n_added++ % trace->capacity];
    *to = *event;
    to->step = trace->step;
}

uint32_t trace_count(const trace_t *trace)
{
    return trace->n_added < trace->capacity ? (uint32_t)trace->n_added : trace->capacity;
}

const trace_event_t *trace_at(const trace_t *trace, uint32_t i)
{
    uint64_t first = trace->n_added - trace_count(trace);
    return &trace->events[(first + i) % trace->capacity];
}
