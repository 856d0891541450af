/* The same load for llama-server: a connection and a thread a request, which read the server-sent
 * events line by line. Each event brings one token; the last one tells how many there were, because
 * ids that end inside a character come without an event of their own. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/serve.h"
#include "common/base/memory.h"

struct serve_target {
    char *host, *port;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    uint32_t n_threads; /* of requests under way */
};

typedef struct {
    serve_target_t *target;
    serve_request_t *request;
} errand_t;

static status_t http_open(const char *endpoint, serve_target_t **own_out)
{
    const char *colon = strrchr(endpoint, ':');
    if (colon == NULL || colon == endpoint || colon[1] == 0)
        return fail(STATUS_INVALID, "%s is no endpoint; HOST:PORT would be right", endpoint);
    serve_target_t *target = MEM_NEW(serve_target_t);
    target->host = mem_strndup(endpoint, (size_t)(colon - endpoint));
    target->port = mem_strdup(colon + 1);
    pthread_mutex_init(&target->lock, NULL);
    pthread_cond_init(&target->idle, NULL);
    *own_out = target;
    return STATUS_OK;
}

/* A connected stream to write to and read from, or NULL. */
static FILE *connect_to(const serve_target_t *target)
{
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    if (getaddrinfo(target->host, target->port, &wanted, &found) != 0)
        return NULL;
    FILE *stream = NULL;
    for (const struct addrinfo *at = found; at != NULL && stream == NULL; at = at->ai_next) {
        int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, at->ai_protocol);
        if (fd < 0)
            continue;
        if (connect(fd, at->ai_addr, at->ai_addrlen) == 0)
            stream = fdopen(fd, "r+");
        if (stream == NULL)
            close(fd);
    }
    freeaddrinfo(found);
    return stream;
}

static void write_request(const serve_target_t *target, const serve_request_t *request,
                          FILE *stream)
{
    char *body = NULL;
    size_t size = 0;
    FILE *text = open_memstream(&body, &size);
    CHECK(text != NULL);
    fputs("{\"prompt\":[", text);
    for (uint32_t i = 0; i < request->n_prompt; i++)
        fprintf(text, "%s%u", i ? "," : "", request->prompt[i]);
    fprintf(text,
            "],\"n_predict\":%u,\"stream\":true,\"ignore_eos\":true,\"temperature\":0,"
            "\"cache_prompt\":false}",
            request->max_tokens);
    fclose(text);
    fprintf(stream,
            "POST /completion HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\n"
            "Connection: close\r\nContent-Length: %zu\r\n\r\n",
            target->host, target->port, size);
    fwrite(body, 1, size, stream);
    fflush(stream);
    free(body);
}

/* NULL when the answer came whole. */
static const char *read_answer(serve_request_t *request, FILE *stream)
{
    char *line = NULL;
    size_t room = 0;
    const char *error = "the answer ended too early";
    if (getline(&line, &room, stream) < 0 || strstr(line, " 200 ") == NULL)
        error = "the server refused";
    else
        while (getline(&line, &room, stream) >= 0) {
            if (strncmp(line, "data: ", 6) != 0)
                continue;
            const char *total = strstr(line, "\"tokens_predicted\":");
            if (strstr(line, "\"stop\":true") == NULL) {
                serve_tokens(request, 1);
            } else if (total != NULL) {
                request->n_tokens = (uint32_t)strtoul(strchr(total, ':') + 1, NULL, 10);
                error = NULL;
                break;
            }
        }
    free(line);
    return error;
}

static void *run_errand(void *take_errand)
{
    errand_t *errand = take_errand;
    serve_target_t *target = errand->target;
    FILE *stream = connect_to(target);
    if (stream == NULL) {
        serve_ended(errand->request, "no connection");
    } else {
        write_request(target, errand->request, stream);
        serve_ended(errand->request, read_answer(errand->request, stream));
        fclose(stream);
    }
    free(errand);
    pthread_mutex_lock(&target->lock);
    target->n_threads--;
    pthread_cond_signal(&target->idle);
    pthread_mutex_unlock(&target->lock);
    return NULL;
}

static void http_send(serve_target_t *target, serve_request_t *request)
{
    errand_t *errand = MEM_NEW(errand_t);
    *errand = (errand_t){target, request};
    pthread_mutex_lock(&target->lock);
    target->n_threads++;
    pthread_mutex_unlock(&target->lock);
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_errand, errand) == 0) {
        pthread_detach(thread);
        return;
    }
    pthread_mutex_lock(&target->lock);
    target->n_threads--;
    pthread_mutex_unlock(&target->lock);
    free(errand);
    serve_ended(request, "no thread for the request");
}

static void http_close(serve_target_t *take_target)
{
    if (take_target == NULL)
        return;
    pthread_mutex_lock(&take_target->lock);
    while (take_target->n_threads > 0)
        pthread_cond_wait(&take_target->idle, &take_target->lock);
    pthread_mutex_unlock(&take_target->lock);
    free(take_target->host);
    free(take_target->port);
    free(take_target);
}

const serve_target_ops_t serve_http = {http_open, http_send, http_close};
