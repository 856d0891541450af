/* The parts of bench-serve, which puts load on a running server and says what its clients see. A
 * target (serve_grpc.c, serve_http.c) sends a request and tells of tokens and of the end; serve.c
 * decides when a request is sent; serve_report.c makes figures and a plot of what was noted. */
#ifndef SHOAL_BENCH_SERVE_H
#define SHOAL_BENCH_SERVE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

/* Rung when a request has ended, and at every message while a prompt waits for the moment to join: a
 * client that woke a thread for each token would take processor time from the server beside it. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool at_messages;
} serve_bell_t;

/* One request. Until it is `done` the target's threads write to it, one at a time; `n_tokens` and
 * `done` are read by others under the bell's lock. */
typedef struct {
    serve_bell_t *bell;
    uint32_t *prompt;
    uint32_t n_prompt, max_tokens;
    uint64_t due_ns, sent_ns; /* an open loop's wait for a late sender is part of its latency */
    uint64_t *event_ns;       /* when each message with tokens came; room for max_tokens */
    uint32_t n_events, n_tokens;
    bool started, done;
    char error[160]; /* "" while all is well */
} serve_request_t;

/* For targets: tokens came now; the request has ended (`error` NULL: well). Any thread. */
void serve_tokens(serve_request_t *request, uint32_t n);
void serve_ended(serve_request_t *request, const char *error);

typedef struct serve_target serve_target_t;
typedef struct {
    status_t (*open)(const char *endpoint, serve_target_t **own_out);
    /* Sends; what happens then is told through the request. A failure here is told there too. */
    void (*send)(serve_target_t *target, serve_request_t *request);
    void (*close)(serve_target_t *take_target);
} serve_target_ops_t;

extern const serve_target_ops_t serve_grpc; /* shoal.v1.Inference/Generate */
extern const serve_target_ops_t serve_http; /* llama-server's POST /completion */

typedef struct {
    const serve_request_t *requests;
    size_t n_requests;
    /* A long prompt that came while the others ran, or NULL. Of it "join" tells: its ttft_ms, n_running
     * (streams that ran before it came and still when its first token did), and the gaps of streams
     * before, during and after; a part of fewer than 100 gaps has no quantiles. */
    const serve_request_t *joined;
    double ttft_ms_good, gap_ms_good; /* a request counts as good when it kept both */
} serve_report_t;

/* A line of JSON on standard output. */
void serve_print(const serve_report_t *report);
/* Distribution of first tokens and of gaps, as SVG. */
status_t serve_plot(const serve_report_t *report, const char *path) MUST_USE;

#endif
