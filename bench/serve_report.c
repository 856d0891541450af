/* Figures and a plot of what the clients of bench-serve saw. The gap between two messages of a
 * stream is one gap, however many tokens the second one brought: that is what a reader sees. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/serve.h"
#include "common/base/memory.h"

typedef struct {
    double *values; /* milliseconds, sorted */
    size_t n, capacity;
} series_t;

static void series_add(series_t *series, double ms)
{
    MEM_GROW(series->values, series->capacity, series->n + 1);
    series->values[series->n++] = ms;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void series_sort(series_t *series)
{
    if (series->n > 0)
        qsort(series->values, series->n, sizeof *series->values, compare);
}

/* The smallest value that at least this share of all does not exceed; 0 when there is none. */
static double quantile(const series_t *series, double share)
{
    if (series->n == 0)
        return 0;
    size_t rank = (size_t)ceil(share * (double)series->n);
    return series->values[rank > 0 ? rank - 1 : 0];
}

static double between_ms(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

static double ttft_ms(const serve_request_t *request)
{
    return between_ms(request->due_ns, request->event_ns[0]);
}

static bool answered(const serve_request_t *request)
{
    return request->done && request->error[0] == 0 && request->n_events > 0;
}

/* Unsorted. */
static void add_gaps(const serve_request_t *request, series_t *gaps)
{
    for (uint32_t i = 1; i < request->n_events; i++)
        series_add(gaps, between_ms(request->event_ns[i - 1], request->event_ns[i]));
}

static bool good(const serve_report_t *report, const serve_request_t *request)
{
    series_t gaps = {0};
    add_gaps(request, &gaps);
    series_sort(&gaps);
    bool kept = ttft_ms(request) <= report->ttft_ms_good &&
                quantile(&gaps, 0.99) <= report->gap_ms_good;
    free(gaps.values);
    return kept;
}

typedef struct {
    series_t ttft, gaps;
    size_t n_failed;
    uint64_t tokens, good_tokens, begin_ns, end_ns;
    const char *error; /* of the first that failed */
} summary_t;

static summary_t sum_up(const serve_report_t *report)
{
    summary_t sum = {.begin_ns = UINT64_MAX};
    for (size_t i = 0; i < report->n_requests; i++) {
        const serve_request_t *one = &report->requests[i];
        if (!answered(one)) {
            sum.n_failed++;
            if (sum.error == NULL)
                sum.error = one->error;
            continue;
        }
        uint64_t last_ns = one->event_ns[one->n_events - 1];
        sum.begin_ns = one->due_ns < sum.begin_ns ? one->due_ns : sum.begin_ns;
        sum.end_ns = last_ns > sum.end_ns ? last_ns : sum.end_ns;
        sum.tokens += one->n_tokens;
        sum.good_tokens += good(report, one) ? one->n_tokens : 0;
        series_add(&sum.ttft, ttft_ms(one));
        add_gaps(one, &sum.gaps);
    }
    if (report->joined != NULL && !answered(report->joined)) {
        sum.n_failed++;
        sum.error = sum.error != NULL ? sum.error : report->joined->error;
    }
    series_sort(&sum.ttft);
    series_sort(&sum.gaps);
    return sum;
}

static void summary_release(summary_t *sum)
{
    free(sum->ttft.values);
    free(sum->gaps.values);
}

/* Gaps of one part of a run; with fewer of them the 99th percentile is only the longest. */
enum { GAPS_MIN = 100 };

static void print_gaps(const char *part, series_t *gaps)
{
    series_sort(gaps);
    printf(", \"%sn_gaps\": %zu", part, gaps->n);
    if (gaps->n >= GAPS_MIN)
        printf(", \"%sgap_ms_p50\": %.2f, \"%sgap_ms_p99\": %.2f", part, quantile(gaps, 0.5), part,
               quantile(gaps, 0.99));
    free(gaps->values);
}

/* The gaps of the streams before a long prompt came, while it was computed, and after its first token.
 * A gap belongs to the time of the prompt when any of it does: one that a whole prompt made begins
 * before it came and ends with its first token. */
static void print_joined(const serve_report_t *report)
{
    const serve_request_t *joined = report->joined;
    if (joined == NULL || !answered(joined))
        return;
    series_t before = {0}, during = {0}, after = {0};
    uint64_t from_ns = joined->sent_ns, to_ns = joined->event_ns[0], all_run_ns = 0;
    size_t n_running = 0;
    /* While the streams themselves begin, their own prompts lengthen the gaps of those before. */
    for (size_t i = 0; i < report->n_requests; i++) {
        const serve_request_t *one = &report->requests[i];
        if (answered(one) && one->event_ns[0] < from_ns && one->event_ns[0] > all_run_ns)
            all_run_ns = one->event_ns[0];
        n_running += answered(one) && one->event_ns[0] < from_ns &&
                     one->event_ns[one->n_events - 1] > to_ns;
    }
    for (size_t i = 0; i < report->n_requests; i++) {
        const serve_request_t *one = &report->requests[i];
        for (uint32_t k = 1; answered(one) && k < one->n_events; k++) {
            uint64_t begin_ns = one->event_ns[k - 1], end_ns = one->event_ns[k];
            series_t *part = end_ns <= from_ns ? &before : begin_ns < to_ns ? &during : &after;
            if (part != &before || begin_ns >= all_run_ns)
                series_add(part, between_ms(begin_ns, end_ns));
        }
    }
    printf(", \"join\": {\"prompt\": %u, \"ttft_ms\": %.2f, \"n_running\": %zu", joined->n_prompt,
           ttft_ms(joined), n_running);
    print_gaps("before_", &before);
    print_gaps("", &during);
    print_gaps("after_", &after);
    printf("}");
}

void serve_print(const serve_report_t *report)
{
    summary_t sum = sum_up(report);
    double seconds = sum.end_ns > sum.begin_ns ? between_ms(sum.begin_ns, sum.end_ns) / 1e3 : 0;
    printf("{\"requests\": %zu, \"failed\": %zu, \"tokens\": %llu, \"seconds\": %.3f, "
           "\"tokens_per_s\": %.1f, \"goodput_tokens_per_s\": %.1f, \"ttft_ms_p50\": %.2f, "
           "\"ttft_ms_p99\": %.2f, \"gap_ms_p50\": %.2f, \"gap_ms_p99\": %.2f",
           report->n_requests, sum.n_failed, (unsigned long long)sum.tokens, seconds,
           seconds > 0 ? (double)sum.tokens / seconds : 0,
           seconds > 0 ? (double)sum.good_tokens / seconds : 0, quantile(&sum.ttft, 0.5),
           quantile(&sum.ttft, 0.99), quantile(&sum.gaps, 0.5), quantile(&sum.gaps, 0.99));
    print_joined(report);
    printf("}\n");
    fflush(stdout);
    if (sum.error != NULL)
        fprintf(stderr, "bench-serve: %zu failed, the first: %s\n", sum.n_failed, sum.error);
    summary_release(&sum);
}

/* ---- the plot ---- */

enum { WIDTH = 720, HEIGHT = 420, LEFT = 60, RIGHT = 20, TOP = 40, BOTTOM = 50 };

static double x_of(double ms, double decades_from, double decades_to)
{
    double at = (log10(ms) - decades_from) / (decades_to - decades_from);
    return LEFT + at * (WIDTH - LEFT - RIGHT);
}

static double y_of(double share)
{
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
}

static void plot_axes(FILE *file, double from, double to)
{
    for (int i = 0; i <= 4; i++)
        fprintf(file,
                "<line x1='%d' y1='%.1f' x2='%d' y2='%.1f' stroke='#ddd'/>"
                "<text x='%d' y='%.1f' text-anchor='end'>%d %%</text>\n",
                LEFT, y_of(i / 4.0), WIDTH - RIGHT, y_of(i / 4.0), LEFT - 6, y_of(i / 4.0) + 4,
                25 * i);
    for (double decade = from; decade <= to; decade++)
        fprintf(file,
                "<line x1='%.1f' y1='%d' x2='%.1f' y2='%d' stroke='#ddd'/>"
                "<text x='%.1f' y='%d' text-anchor='middle'>%g ms</text>\n",
                x_of(pow(10, decade), from, to), TOP, x_of(pow(10, decade), from, to),
                HEIGHT - BOTTOM, x_of(pow(10, decade), from, to), HEIGHT - BOTTOM + 18,
                pow(10, decade));
}

/* At most a thousand corners, however many values there are. */
static void plot_series(FILE *file, const series_t *series, double from, double to,
                        const char *colour, const char *name, int line)
{
    size_t stride = series->n / 1000 + 1;
    fprintf(file, "<polyline fill='none' stroke='%s' stroke-width='2' points='", colour);
    for (size_t i = 0; i < series->n; i += stride) {
        double ms = series->values[i] > pow(10, from) ? series->values[i] : pow(10, from);
        fprintf(file, "%.1f,%.1f ", x_of(ms, from, to),
                y_of((double)(i + 1) / (double)series->n));
    }
    fprintf(file, "'/><text x='%d' y='%d' fill='%s'>%s: p50 %.2f ms, p99 %.2f ms</text>\n",
            LEFT + 12, TOP + 16 * line, colour, name, quantile(series, 0.5),
            quantile(series, 0.99));
}

status_t serve_plot(const serve_report_t *report, const char *path)
{
    FILE *file = fopen(path, "we");
    if (file == NULL)
        return fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    summary_t sum = sum_up(report);
    double most = quantile(&sum.ttft, 1) > quantile(&sum.gaps, 1) ? quantile(&sum.ttft, 1)
                                                                  : quantile(&sum.gaps, 1);
    double from = -1, to = most > 1 ? ceil(log10(most)) : 1;
    fprintf(file,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
            "font-family='sans-serif' font-size='12'>\n"
            "<rect width='100%%' height='100%%' fill='white'/>"
            "<text x='%d' y='24'>%zu requests, share that waited at most so long</text>\n",
            WIDTH, HEIGHT, LEFT, report->n_requests);
    plot_axes(file, from, to);
    plot_series(file, &sum.ttft, from, to, "#1f5fa8", "first token", 1);
    plot_series(file, &sum.gaps, from, to, "#b5451b", "between tokens", 2);
    fputs("</svg>\n", file);
    summary_release(&sum);
    if (fclose(file) != 0)
        return fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}
