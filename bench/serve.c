/* bench-serve: load on a running server, and what its clients see.
 *
 * Open loop (--rate): requests are sent when they are due, whether or not the server keeps up, so a
 * server that falls behind is seen to fall behind. Closed loop (--clients): so many clients, each
 * sends its next request when the last one has been answered. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/serve.h"
#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/base/options.h"

enum { REQUESTS_MAX = 1000000, FIRST_ID = 100, JOINED_TOKENS = 8 };

typedef struct {
    const char *endpoint, *kind, *plot;
    int64_t n_requests, n_clients, n_warm, burst, prompt, gen, vocab, join, seed;
    int64_t ttft_good, gap_good; /* ms */
    double rate, shared;

    uint64_t random;
    const serve_target_ops_t *ops;
    serve_target_t *target;
    serve_bell_t bell;
    serve_request_t *requests; /* the warming ones first, the one that joins last */
} serve_t;

void serve_tokens(serve_request_t *request, uint32_t n)
{
    uint64_t now = clock_ns();
    pthread_mutex_lock(&request->bell->lock);
    /* A server that sends more messages than it was asked for tokens is none of ours to measure. */
    if (request->n_events < request->max_tokens)
        request->event_ns[request->n_events++] = now;
    request->n_tokens += n;
    if (request->bell->at_messages)
        pthread_cond_broadcast(&request->bell->changed);
    pthread_mutex_unlock(&request->bell->lock);
}

void serve_ended(serve_request_t *request, const char *error)
{
    pthread_mutex_lock(&request->bell->lock);
    if (error != NULL && request->error[0] == 0)
        snprintf(request->error, sizeof request->error, "%s", error[0] ? error : "failed");
    if (request->error[0] == 0 && request->n_events == 0)
        snprintf(request->error, sizeof request->error, "no token came");
    request->done = true;
    pthread_cond_broadcast(&request->bell->changed);
    pthread_mutex_unlock(&request->bell->lock);
}

/* xorshift64*; the same load for the same seed. */
static double draw(serve_t *serve)
{
    serve->random ^= serve->random >> 12;
    serve->random ^= serve->random << 25;
    serve->random ^= serve->random >> 27;
    return (double)(serve->random * 2685821657736338717u >> 11) / 9007199254740992.0;
}

static void make_request(serve_t *serve, serve_request_t *request, uint32_t n_prompt,
                         uint32_t n_shared)
{
    *request = (serve_request_t){.bell = &serve->bell, .n_prompt = n_prompt};
    request->max_tokens = (uint32_t)serve->gen;
    request->prompt = MEM_NEW_ARRAY(uint32_t, n_prompt);
    request->event_ns = MEM_NEW_ARRAY(uint64_t, request->max_tokens);
    /* What is shared begins every prompt and depends on nothing but its place. */
    uint32_t vocab = (uint32_t)serve->vocab;
    for (uint32_t i = 0; i < n_prompt; i++)
        request->prompt[i] =
            FIRST_ID + (i < n_shared ? i * 40503u % vocab : (uint32_t)(draw(serve) * vocab));
}

static void start(serve_t *serve, serve_request_t *request, uint64_t due_ns)
{
    request->sent_ns = clock_ns();
    request->due_ns = due_ns ? due_ns : request->sent_ns;
    request->started = true;
    serve->ops->send(serve->target, request);
}

static void wait_until(uint64_t when_ns)
{
    struct timespec at = {.tv_sec = (time_t)(when_ns / 1000000000u),
                          .tv_nsec = (long)(when_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) != 0)
        continue;
}

static void wait_done(serve_t *serve, const serve_request_t *request)
{
    pthread_mutex_lock(&serve->bell.lock);
    while (!request->done)
        pthread_cond_wait(&serve->bell.changed, &serve->bell.lock);
    pthread_mutex_unlock(&serve->bell.lock);
}

/* Bursts arrive as a Poisson process; those of one burst are due together. */
static void open_loop(serve_t *serve, serve_request_t *requests)
{
    uint64_t due_ns = clock_ns();
    for (int64_t i = 0; i < serve->n_requests; i++) {
        if (i > 0 && i % serve->burst == 0) {
            double mean_s = (double)serve->burst / serve->rate;
            due_ns += (uint64_t)(-log(1 - draw(serve)) * mean_s * 1e9);
        }
        wait_until(due_ns);
        start(serve, &requests[i], due_ns);
    }
}

static int64_t count_done(const serve_request_t *requests, int64_t n)
{
    int64_t done = 0;
    for (int64_t i = 0; i < n; i++)
        done += requests[i].done;
    return done;
}

/* True once each of the first clients' streams runs and an eighth of its text is there: of its tokens,
 * since a message may bring several that were guessed. */
static bool time_to_join(const serve_t *serve, const serve_request_t *requests)
{
    for (int64_t i = 0; i < serve->n_clients && i < serve->n_requests; i++)
        if (requests[i].n_tokens * 8 < requests[i].max_tokens && !requests[i].done)
            return false;
    return true;
}

static void closed_loop(serve_t *serve, serve_request_t *requests, serve_request_t *joining)
{
    int64_t sent = 0;
    bool joined = joining == NULL;
    int64_t n_first = serve->n_clients < serve->n_requests ? serve->n_clients : serve->n_requests;
    while (sent < serve->n_requests || !joined) {
        pthread_mutex_lock(&serve->bell.lock);
        bool join_now = false, send_now = false;
        serve->bell.at_messages = !joined;
        for (;;) {
            join_now = !joined && sent >= n_first && time_to_join(serve, requests);
            send_now = sent < serve->n_requests &&
                       sent - count_done(requests, sent) < serve->n_clients;
            if (join_now || send_now)
                break;
            pthread_cond_wait(&serve->bell.changed, &serve->bell.lock);
        }
        pthread_mutex_unlock(&serve->bell.lock);
        if (join_now) {
            start(serve, joining, 0);
            joined = true;
        } else {
            start(serve, &requests[sent++], 0);
        }
    }
}

static status_t drive(serve_t *serve)
{
    size_t n = (size_t)(serve->n_warm + serve->n_requests);
    serve->requests = MEM_NEW_ARRAY(serve_request_t, n + 1);
    uint32_t n_shared = (uint32_t)(serve->shared * (double)serve->prompt);
    for (size_t i = 0; i < n; i++)
        make_request(serve, &serve->requests[i], (uint32_t)serve->prompt, n_shared);
    serve_request_t *joining = serve->join > 0 ? &serve->requests[n] : NULL;
    if (joining != NULL) {
        make_request(serve, joining, (uint32_t)serve->join, 0);
        if (joining->max_tokens > JOINED_TOKENS)
            joining->max_tokens = JOINED_TOKENS; /* it is its prompt that is looked at */
    }
    for (int64_t i = 0; i < serve->n_warm; i++) {
        start(serve, &serve->requests[i], 0);
        wait_done(serve, &serve->requests[i]);
    }
    serve_request_t *measured = serve->requests + serve->n_warm;
    if (serve->rate > 0)
        open_loop(serve, measured);
    else
        closed_loop(serve, measured, joining);
    for (int64_t i = 0; i < serve->n_requests; i++)
        wait_done(serve, &measured[i]);
    if (joining != NULL)
        wait_done(serve, joining);
    serve_report_t report = {.requests = measured,
                             .n_requests = (size_t)serve->n_requests,
                             .joined = joining,
                             .ttft_ms_good = (double)serve->ttft_good,
                             .gap_ms_good = (double)serve->gap_good};
    serve_print(&report);
    return serve->plot != NULL ? serve_plot(&report, serve->plot) : STATUS_OK;
}

static status_t run(serve_t *serve)
{
    if (serve->endpoint == NULL)
        return fail(STATUS_INVALID, "--endpoint is needed; HOST:PORT of a coordinator");
    if (strcmp(serve->kind, "grpc") != 0 && strcmp(serve->kind, "http") != 0)
        return fail(STATUS_INVALID, "--kind is \"%s\"; grpc or http would be right", serve->kind);
    if (serve->rate > 0 && serve->join > 0)
        return fail(STATUS_INVALID, "--join goes with --clients, not with --rate");
    serve->ops = serve->kind[0] == 'g' ? &serve_grpc : &serve_http;
    serve->random = (uint64_t)serve->seed * 2654435769u + 1;
    pthread_mutex_init(&serve->bell.lock, NULL);
    pthread_cond_init(&serve->bell.changed, NULL);
    TRY(serve->ops->open(serve->endpoint, &serve->target));
    status_t status = drive(serve);
    /* Closing waits for the last callbacks, so the requests may go after it. */
    serve->ops->close(serve->target);
    for (int64_t i = 0; i <= serve->n_warm + serve->n_requests; i++) {
        free(serve->requests[i].prompt);
        free(serve->requests[i].event_ns);
    }
    free(serve->requests);
    return status;
}

int main(int argc, char **argv)
{
    serve_t serve = {0};
    const option_t options[] = {
        {"endpoint", OPTION_TEXT, &serve.endpoint, NULL, "HOST:PORT", "the server", 0, 0},
        {"kind", OPTION_TEXT, &serve.kind, "grpc", "grpc|http", "Shoal, or llama-server", 0, 0},
        {"requests", OPTION_INTEGER, &serve.n_requests, "64", "N", "in all", 1, REQUESTS_MAX},
        {"warm", OPTION_INTEGER, &serve.n_warm, "1", "N", "requests before, not counted", 0, 1000},
        {"clients", OPTION_INTEGER, &serve.n_clients, "16", "N", "of the closed loop", 1, 4096},
        {"rate", OPTION_REAL, &serve.rate, "0", "R", "requests a second; 0 is the closed loop", 0,
         1e6},
        {"burst", OPTION_INTEGER, &serve.burst, "1", "N", "requests due together", 1, 4096},
        {"prompt", OPTION_INTEGER, &serve.prompt, "128", "N", "tokens of each prompt", 1, 1e6},
        {"gen", OPTION_INTEGER, &serve.gen, "64", "N", "tokens of each answer", 1, 1e6},
        {"shared", OPTION_REAL, &serve.shared, "0", "S",
         "share of the prompt that all begin with", 0, 1},
        {"join", OPTION_INTEGER, &serve.join, "0", "N",
         "tokens of one more prompt that comes while all clients' streams run", 0, 1e6},
        {"vocab", OPTION_INTEGER, &serve.vocab, "31000", "N", "ids are from 100 to this many more",
         1, 1e6},
        {"seed", OPTION_INTEGER, &serve.seed, "1", "N", "of prompts and arrivals", 0, 1e9},
        {"ttft-good", OPTION_DURATION_MS, &serve.ttft_good, "1s", "TIME", "for goodput", 0, 0},
        {"gap-good", OPTION_DURATION_MS, &serve.gap_good, "100ms", "TIME",
         "between tokens (p99 of a request), for goodput", 0, 0},
        {"plot", OPTION_TEXT, &serve.plot, NULL, "FILE", "writes the distributions as SVG", 0, 0},
        {0},
    };
    const options_help_t help = {
        .usage = "bench-serve --endpoint HOST:PORT [options]",
        .about = "Puts load on a running server and prints what its clients saw as a line of JSON.",
        .example = "bench-serve --endpoint 127.0.0.1:7070 --rate 20 --requests 400 --plot load.svg",
        .options = options,
    };
    size_t n_words = 0;
    bool want_help = false;
    status_t status = options_read(options, argc, argv, NULL, 0, &n_words, &want_help);
    if (want_help) {
        options_print_help(&help);
        return 0;
    }
    if (status == STATUS_OK)
        status = run(&serve);
    if (status == STATUS_OK)
        return 0;
    fprintf(stderr, "bench-serve: %s\n", status_text());
    return 1;
}
