/* What service.c (the pump and the service's life) and service_in.c (what comes in) share. */
#ifndef SHOAL_WORKER_SERVICE_INTERNAL_H
#define SHOAL_WORKER_SERVICE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/base/memory.h"
#include "common/net/rpc.h"
#include "worker/service.h"
#include "worker/service_book.h"
#include "worker/service_message.h"

#define SERVICE_REFUSALS_MAX 1024u /* of one stream, not yet sent */
#define SERVICE_UNREAD "too many ends of sequences were not read"
#define SERVICE_MESSAGE_BYTES_MAX ((size_t)16 << 20)

typedef struct refusal refusal_t;
struct refusal {
    refusal_t *next;
    char session[64];
    uint32_t choice;
    uint64_t owner;
    const char *code;
    char words[STATUS_TEXT_MAX];
};

typedef struct stream stream_t;
struct stream {
    stream_t *next;
    service_t *service;
    rpc_call_t *call;       /* a reference */
    uint32_t leader_stream; /* 0 once the epoch is over */
    _Atomic bool dirty;     /* something may be owed */
    uint64_t sent_ms;
    buffer_t unsent;        /* a message that found the queue full */
    refusal_t *refusals, **refusals_end;
    uint32_t n_refusals;
};

struct service {
    char replica[192];
    rpc_io_t *io;
    rpc_server_t *server;
    pthread_t pump;
    bool pumping;
    int wake; /* eventfd */
    _Atomic bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t passed; /* the pump went over all streams */
    /* Under the mutex. */
    stream_t *streams;
    leader_t *leader; /* of the active epoch */
    uint64_t epoch, passes;
    char text_identity[128];
    uint32_t context_max;
    bool draining;
    service_book_t *book;
    arena_t arena;
};

/* Wakes the pump. */
void service_ring(service_t *service);
/* From the leader, with its lock held: only the bell. `context` is a stream. */
void service_on_wake(void *context);
/* What the stream's coordinator may have committed; with the mutex held. */
uint64_t service_credit(service_t *service, const stream_t *stream);

/* ---- service_in.c: handlers of Attach, on the I/O threads ---- */
extern const rpc_handlers_t service_handlers;

#endif
