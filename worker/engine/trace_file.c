/* See trace_file.h. */
#include "worker/engine/trace_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"

enum { OP_BYTES = 48, LINE_BYTES = 320 };

status_t trace_write(const trace_t *trace, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return fail(STATUS_IO, "cannot write the trace %s: %s", path, strerror(errno));
    for (uint32_t i = 0; i < trace_count(trace); i++) {
        const trace_event_t *e = trace_at(trace, i);
        fprintf(file,
                "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64
                " %u %u %u %u %s\n",
                e->step, e->begin_ns, e->end_ns, e->busy_ns, e->operations, e->bytes, e->rows,
                e->n, e->k, e->threads, e->op);
    }
    bool lost = ferror(file) != 0;
    if (fclose(file) != 0 || lost)
        return fail(STATUS_IO, "the trace %s was not written whole: %s", path, strerror(errno));
    return STATUS_OK;
}

void trace_finish(trace_t *take_trace, const char *path)
{
    if (!take_trace)
        return;
    if (trace_write(take_trace, path) != STATUS_OK)
        log_error("%s", status_text());
    trace_free(take_trace);
}

static bool read_line(const char *line, arena_t *arena, trace_event_t *out)
{
    int at = 0;
    int n = sscanf(line,
                   "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
                   " %u %u %u %u %n",
                   &out->step, &out->begin_ns, &out->end_ns, &out->busy_ns, &out->operations,
                   &out->bytes, &out->rows, &out->n, &out->k, &out->threads, &at);
    size_t length = n == 10 ? strcspn(line + at, "\n") : 0;
    if (length == 0 || length >= OP_BYTES || out->end_ns < out->begin_ns)
        return false;
    char *op = arena_new(arena, length + 1, 1);
    memcpy(op, line + at, length);
    op[length] = 0;
    out->op = op;
    return true;
}

status_t trace_read(const char *path, arena_t *arena, trace_event_t **events_out, uint32_t *n_out)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return fail(STATUS_IO, "cannot read the trace %s: %s", path, strerror(errno));
    char line[LINE_BYTES];
    uint32_t lines = 0, n = 0;
    for (int c; (c = getc(file)) != EOF;)
        lines += c == '\n';
    rewind(file);
    trace_event_t *events = ARENA_NEW_ARRAY(arena, trace_event_t, lines + 1);
    while (n < lines && fgets(line, sizeof line, file)) {
        if (!read_line(line, arena, &events[n])) {
            fclose(file);
            return fail(STATUS_INVALID, "line %u of %s is no event of a trace", n + 1, path);
        }
        n++;
    }
    fclose(file);
    *events_out = events;
    *n_out = n;
    return STATUS_OK;
}

void trace_span(trace_t *trace, const char *op, uint64_t begin_ns, uint32_t rows)
{
    if (!trace)
        return;
    uint64_t now = clock_ns();
    const trace_event_t event = {.op = op,
                                 .begin_ns = begin_ns,
                                 .end_ns = now,
                                 .busy_ns = now - begin_ns,
                                 .rows = rows,
                                 .threads = 1};
    trace_add(trace, &event);
}
