/* See offline_profile.h. Rows of the table are sums over the calls of one op on one rank; matmuls
 * of different shapes are different ops. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/offline_profile.h"

#define ROWS_MAX 128u

typedef struct {
    const char *op;
    uint32_t n, k, calls;
    uint64_t ns, busy_ns, capacity_ns; /* capacity: time x threads that took part */
    uint64_t operations, bytes;
    double least_ns; /* that the machine's peaks allow */
} row_t;

static bool is_step(const trace_event_t *event)
{
    return strcmp(event->op, "step") == 0;
}

/* An earlier stage's part of the head, whose ops are events of their own. */
static bool is_head_part(const trace_event_t *event)
{
    return strcmp(event->op, "head part") == 0;
}

/* Host calls that move bytes between ranks. */
static bool is_link(const row_t *row)
{
    return strncmp(row->op, "exchange", 8) == 0 || strncmp(row->op, "receive", 7) == 0 ||
           strncmp(row->op, "send", 4) == 0 || strncmp(row->op, "gather of", 9) == 0;
}

/* Of the steps with that many rows, the fastest of the later half. */
static uint64_t fastest_step(const profile_t *profile, uint32_t rows)
{
    uint32_t n = 0, seen = 0;
    uint64_t least = UINT64_MAX, step = 0;
    for (uint32_t pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < profile->n_events[0]; i++) {
            const trace_event_t *event = &profile->events[0][i];
            uint64_t ns = event->end_ns - event->begin_ns;
            if (!is_step(event) || event->rows != rows)
                continue;
            if (pass == 0) {
                n++;
            } else if (seen++ >= n / 2 && ns < least) {
                least = ns;
                step = event->step;
            }
        }
    return step;
}

void profile_choose(profile_t *profile, uint32_t batch)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < profile->n_events[0]; i++) {
        const trace_event_t *event = &profile->events[0][i];
        if (is_step(event) && event->rows > most)
            most = event->rows;
    }
    profile->prefill_step = most > batch ? fastest_step(profile, most) : 0;
    profile->decode_step = fastest_step(profile, batch);
}

static double least_time(const kpeak_t *peak, const trace_event_t *event)
{
    double rate = strcmp(event->op, "attention") == 0 ? peak->bf16_gflops : peak->int8_gops;
    double compute = rate > 0 ? (double)event->operations / rate : 0;
    double read = peak->read_gb > 0 ? (double)event->bytes / peak->read_gb : 0;
    return compute > read ? compute : read; /* 1 G/s is 1 a nanosecond */
}

static row_t *find_row(row_t *rows, uint32_t *n, const trace_event_t *event)
{
    for (uint32_t i = 0; i < *n; i++)
        if (strcmp(rows[i].op, event->op) == 0 && rows[i].n == event->n && rows[i].k == event->k)
            return &rows[i];
    if (*n == ROWS_MAX)
        return &rows[ROWS_MAX - 1];
    rows[*n] = (row_t){.op = event->op, .n = event->n, .k = event->k};
    return &rows[(*n)++];
}

static int compare_rows(const void *a, const void *b)
{
    const row_t *x = a, *y = b;
    return x->ns > y->ns ? -1 : x->ns < y->ns;
}

/* Sums up one step of one rank; returns the rows, the step's own event, and its time with that of the
 * rank's parts of the head. */
static uint32_t sum_rows(const profile_t *profile, uint32_t rank, uint64_t step, row_t *rows,
                         const trace_event_t **step_out, uint64_t *ns_out)
{
    uint32_t n = 0;
    *step_out = NULL;
    *ns_out = 0;
    for (uint32_t i = 0; i < profile->n_events[rank]; i++) {
        const trace_event_t *event = &profile->events[rank][i];
        if (event->step != step)
            continue;
        if (is_step(event) || is_head_part(event)) {
            *step_out = is_step(event) ? event : *step_out;
            *ns_out += event->end_ns - event->begin_ns;
            continue;
        }
        row_t *row = find_row(rows, &n, event);
        uint64_t ns = event->end_ns - event->begin_ns;
        row->calls++;
        row->ns += ns;
        row->busy_ns += event->busy_ns;
        row->capacity_ns += ns * event->threads;
        row->operations += event->operations;
        row->bytes += event->bytes;
        row->least_ns += least_time(&profile->peak, event);
    }
    qsort(rows, n, sizeof *rows, compare_rows);
    return n;
}

static void print_row(FILE *out, uint32_t rank, const row_t *row, double step_us)
{
    char name[64], gops[16] = "-", gb[16] = "-", roof[16] = "-";
    double ns = (double)row->ns > 0 ? (double)row->ns : 1;
    bool link = is_link(row);
    if (row->n > 0)
        snprintf(name, sizeof name, "%s %ux%u", row->op, row->n, row->k);
    else
        snprintf(name, sizeof name, "%s", row->op);
    if (row->operations > 0)
        snprintf(gops, sizeof gops, "%.1f", (double)row->operations / ns);
    if (row->operations > 0 || link)
        snprintf(gb, sizeof gb, "%.2f", (double)row->bytes / ns);
    if (row->operations > 0 && row->least_ns > 0)
        snprintf(roof, sizeof roof, "%.1f%%", 100 * row->least_ns / ns);
    fprintf(out, "%4u %-24s %6u %10.1f %6.1f%% %6.1f%% %8s %8s %9s\n", rank, name, row->calls,
            ns / 1e3, ns / 10 / step_us, 100 * (double)row->busy_ns / (double)row->capacity_ns,
            gops, gb, roof);
}

static void print_row_json(FILE *out, const char *phase, const trace_event_t *step,
                           uint64_t step_ns, uint32_t rank, const row_t *row)
{
    double ns = (double)row->ns > 0 ? (double)row->ns : 1;
    fprintf(out,
            "{\"phase\":\"%s\",\"step\":%" PRIu64 ",\"rows\":%u,\"rank\":%u,\"op\":\"%s\",\"n\":%u,"
            "\"k\":%u,\"calls\":%u,\"us\":%.1f,\"share\":%.4f,\"busy\":%.4f,\"operations\":%" PRIu64
            ",\"bytes\":%" PRIu64 ",\"of_roof\":%.4f}\n",
            phase, step->step, step->rows, rank, row->op, row->n, row->k, row->calls, ns / 1e3,
            ns / (double)step_ns,
            (double)row->busy_ns / (double)row->capacity_ns, row->operations, row->bytes,
            row->operations > 0 ? row->least_ns / ns : 0);
}

static void print_step_json(const profile_t *profile, FILE *out, const char *phase, uint64_t number)
{
    row_t rows[ROWS_MAX];
    const trace_event_t *step;
    uint64_t ns;
    for (uint32_t rank = 0; rank < profile->n_ranks && number > 0; rank++) {
        uint32_t n = sum_rows(profile, rank, number, rows, &step, &ns);
        for (uint32_t i = 0; step && i < n; i++)
            print_row_json(out, phase, step, ns, rank, &rows[i]);
    }
}

/* The time from the end of this step to the beginning of the next one on this rank. */
static double gap_us(const profile_t *profile, uint32_t rank, const trace_event_t *step)
{
    uint64_t next = 0;
    for (uint32_t i = 0; i < profile->n_events[rank]; i++) {
        const trace_event_t *event = &profile->events[rank][i];
        if (is_step(event) && event->begin_ns >= step->end_ns && event->step == step->step + 1)
            next = event->begin_ns;
    }
    return next > 0 ? (double)(next - step->end_ns) / 1e3 : 0;
}

static void print_step(const profile_t *profile, FILE *out, const char *phase, uint64_t number)
{
    row_t rows[ROWS_MAX];
    row_t slowest = {0};
    uint32_t slowest_rank = 0;
    const trace_event_t *step;
    uint64_t ns;
    for (uint32_t rank = 0; rank < profile->n_ranks && number > 0; rank++) {
        uint32_t n = sum_rows(profile, rank, number, rows, &step, &ns);
        if (!step)
            continue;
        double us = (double)ns / 1e3, in_ops = 0;
        if (rank == 0)
            fprintf(out, "%s step %" PRIu64 ": %u rows\n%4s %-24s %6s %10s %7s %7s %8s %8s %9s\n",
                    phase, number, step->rows, "RANK", "OP", "CALLS", "US", "SHARE", "BUSY", "GOPS",
                    "GB/S", "OF_ROOF");
        for (uint32_t i = 0; i < n; i++) {
            print_row(out, rank, &rows[i], us);
            in_ops += (double)rows[i].ns / 1e3;
            if (is_link(&rows[i]) && rows[i].ns > slowest.ns) {
                slowest = rows[i];
                slowest_rank = rank;
            }
        }
        fprintf(out, "%4u %-24s %6s %10.1f %6.1f%%\n", rank, "(between ops)", "", us - in_ops,
                100 * (us - in_ops) / us);
        fprintf(out, "%4u %-24s %6u %10.1f %6.1f%%\n", rank, "(step)", 1, us, 100.0);
        fprintf(out, "%4u %-24s %6s %10.1f\n", rank, "(to the next step)", "",
                gap_us(profile, rank, step));
    }
    if (slowest.calls > 0)
        fprintf(out, "slowest link: %s of rank %u, %u calls of %.1f us and %.1f KiB\n", slowest.op,
                slowest_rank, slowest.calls, (double)slowest.ns / 1e3 / slowest.calls,
                (double)slowest.bytes / 1024 / slowest.calls);
}

void profile_print(const profile_t *profile, bool json, FILE *out)
{
    if (json) {
        print_step_json(profile, out, "prefill", profile->prefill_step);
        print_step_json(profile, out, "decode", profile->decode_step);
        return;
    }
    fprintf(out, "peak of a rank's threads: %.0f GOPS int8, %.0f GFLOP/s bf16, read %.1f GB/s\n",
            profile->peak.int8_gops, profile->peak.bf16_gflops, profile->peak.read_gb);
    print_step(profile, out, "prefill", profile->prefill_step);
    print_step(profile, out, "decode", profile->decode_step);
}

static void write_event(FILE *file, uint32_t rank, const trace_event_t *e, uint64_t zero_ns)
{
    fprintf(file,
            ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":%u,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,"
            "\"args\":{\"step\":%" PRIu64 ",\"rows\":%u,\"n\":%u,\"k\":%u,\"threads\":%u,"
            "\"busy_us\":%.3f,\"operations\":%" PRIu64 ",\"bytes\":%" PRIu64 "}}",
            e->op, rank, is_step(e) ? 0 : 1, (double)(e->begin_ns - zero_ns) / 1e3,
            (double)(e->end_ns - e->begin_ns) / 1e3, e->step, e->rows, e->n, e->k, e->threads,
            (double)e->busy_ns / 1e3, e->operations, e->bytes);
}

status_t profile_write(const profile_t *profile, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        return fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    uint64_t zero_ns = UINT64_MAX;
    fprintf(file, "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[");
    for (uint32_t rank = 0; rank < profile->n_ranks; rank++) {
        fprintf(file,
                "%s\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%u,\"tid\":0,"
                "\"args\":{\"name\":\"rank %u\"}}",
                rank ? "," : "", rank, rank);
        for (uint32_t i = 0; i < profile->n_events[rank]; i++)
            if (profile->events[rank][i].begin_ns < zero_ns)
                zero_ns = profile->events[rank][i].begin_ns;
    }
    for (uint32_t rank = 0; rank < profile->n_ranks; rank++)
        for (uint32_t i = 0; i < profile->n_events[rank]; i++) {
            const trace_event_t *event = &profile->events[rank][i];
            if (event->step != 0 &&
                (event->step == profile->prefill_step || event->step == profile->decode_step))
                write_event(file, rank, event, zero_ns);
        }
    fprintf(file, "\n]}\n");
    bool lost = ferror(file) != 0;
    if (fclose(file) != 0 || lost)
        return fail(STATUS_IO, "%s was not written whole: %s", path, strerror(errno));
    return STATUS_OK;
}
