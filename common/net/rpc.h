/* gRPC, wrapped once: servers and clients, unary and streams, deadlines, cancellation and limits.
 *
 * What it owns: the gRPC library's life, completion queues and their threads, channels, calls. What
 * it must not know: what a message means. Messages are bytes here; rpc_message.h turns them into
 * protobuf-c structs and back, with limits.
 *
 * Threads. Every callback runs on a thread of an rpc_io_t, never inside a call that the user makes.
 * Callbacks of one call never overlap and come in order; those of different calls run in parallel.
 * A callback must not block: two threads serve all sockets of the process. Work that takes longer
 * is handed to another thread, which answers with the functions below: all functions that take an
 * rpc_call_t may be called from any thread, at any time while the caller holds a reference, also
 * after the call has ended (they then do nothing or return STATUS_CANCELLED).
 *
 * Processes. gRPC does not survive fork(): start child processes before rpc_io_open, or with
 * posix_spawn. */
#ifndef SHOAL_COMMON_NET_RPC_H
#define SHOAL_COMMON_NET_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"

typedef struct rpc_io rpc_io_t;
typedef struct rpc_server rpc_server_t;
typedef struct rpc_channel rpc_channel_t;
typedef struct rpc_call rpc_call_t;
typedef struct rpc_stream rpc_stream_t;

#define RPC_MESSAGE_BYTES_MAX (4u << 20) /* default, in and out */
#define RPC_SEND_QUEUE_BYTES (256u << 10) /* default; a call is writable while less is queued */
#define RPC_METADATA_MAX 16              /* pairs that a caller may add to a call */

/* ---- the I/O threads ---- */

/* Starts gRPC and `n_threads` threads (0 takes 2, the least that keeps other calls alive while one
 * callback runs). One for a process is enough; several may exist. */
status_t rpc_io_open(unsigned n_threads, rpc_io_t **own_io_out) MUST_USE;
/* Every server and channel on it must have been closed. Not from a callback. */
void rpc_io_close(rpc_io_t *take_io);

/* ---- metadata, results, status codes ---- */

/* Keys are lower case; values are printable ASCII. */
typedef struct {
    const char *key;
    const char *value;
} rpc_metadata_t;

/* How a call ended. Borrowed for the callback. */
typedef struct {
    status_t status;     /* STATUS_OK, or the peer's, mapped back as rpc_status_from_code does */
    int code;            /* gRPC's number; 0 is OK */
    const char *message; /* the peer's words or gRPC's; "" when there are none; never NULL */
    const rpc_metadata_t *trailing;
    size_t n_trailing;
    /* Server: the client is gone, cancelled, or its deadline has passed. `status` is DEADLINE when
     * it has passed by this machine's clock, else CANCELLED: a client whose deadline passes says
     * no more than one that cancels, and its word may be here a moment before. */
    bool cancelled;
} rpc_result_t;

/* The value of a trailing metadata key, or NULL. */
const char *rpc_result_metadata(const rpc_result_t *result, const char *key);

/* Our codes on the wire: INVALID 3, NOT_FOUND 5, REFUSED 9, CONFLICT 6, EXHAUSTED 8, CANCELLED 1,
 * DEADLINE 4, STALE 10, UNSUPPORTED 12, UNREACHABLE 14, TIMEOUT 4, PEER_LOST 14, POISONED 9,
 * ABORTED, REPLICA_LOST 10, the others INTERNAL 13. Servers of ours also send the trailing metadata
 * "shoal-status" with the exact name, which a client of ours restores. */
int rpc_code_from_status(status_t status);
/* The other way: 1 CANCELLED, 3 and 11 INVALID, 4 DEADLINE, 5 NOT_FOUND, 6 CONFLICT, 7, 9 and 16
 * REFUSED, 8 EXHAUSTED, 10 STALE, 12 UNSUPPORTED, 14 UNREACHABLE, 15 IO, 2 and 13 INTERNAL. */
status_t rpc_status_from_code(int code);

/* ---- calls, on both sides ---- */

typedef struct {
    /* Server only: a call has arrived. Metadata, peer and deadline can be read from the call. Here
     * the handler usually makes its own state and keeps it with rpc_call_set_data. */
    void (*on_open)(rpc_call_t *call, void *context);
    /* One message; the bytes are borrowed. The next one is read only after this returns (or, with
     * manual_read, only when rpc_call_read has granted it), so a call holds one message at most. */
    void (*on_message)(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n);
    /* Server streams: the client sends no more. Never for RPC_UNARY and RPC_SERVER_STREAM, whose
     * only message implies it. */
    void (*on_half_close)(rpc_call_t *call, void *context);
    /* A send was refused or found the queue full before; there is room again. */
    void (*on_writable)(rpc_call_t *call, void *context);
    /* The last callback, exactly once for every call that was opened or started: finished,
     * cancelled, lost or shut down. On a server it also says that the answer went out. */
    void (*on_end)(rpc_call_t *call, void *context, const rpc_result_t *result);
} rpc_handlers_t;

/* A reference keeps the memory of a call alive, not the call going. The library holds one until
 * on_end has returned, so callbacks need none. */
void rpc_call_ref(rpc_call_t *call);
void rpc_call_unref(rpc_call_t *take_call);

/* A word of the user's, carried along. */
void rpc_call_set_data(rpc_call_t *call, void *data);
void *rpc_call_data(const rpc_call_t *call);

/* Of a server's call. Valid while a reference is held. */
const char *rpc_call_method(const rpc_call_t *call); /* "/shoal.v1.Jobs/Get" */
const char *rpc_call_peer(const rpc_call_t *call);   /* "ipv4:127.0.0.1:40112" */
const char *rpc_call_metadata(const rpc_call_t *call, const char *key); /* NULL when absent */
/* Milliseconds until the call's deadline, 0 when it has passed, UINT64_MAX when there is none. */
uint64_t rpc_call_ms_left(const rpc_call_t *call);

/* Queues a message; the bytes are copied. STATUS_OK: it will be sent, in order, unless the call
 * ends before. STATUS_EXHAUSTED: the queue is full, nothing was taken, on_writable will come.
 * STATUS_INVALID: over the message limit. STATUS_CANCELLED: the call has ended or is finishing. */
status_t rpc_call_send(rpc_call_t *call, const void *bytes, size_t n) MUST_USE;
/* False while a send would be refused; then on_writable will come. */
bool rpc_call_writable(rpc_call_t *call);

/* Grants `n` more messages to a call that was opened with manual_read. */
void rpc_call_read(rpc_call_t *call, unsigned n);

/* Server: ends the call after the queued messages, with our status, words for the client (NULL is
 * "") and trailing metadata such as {"retry-after-ms", "250"}. Only the first finish counts. */
void rpc_call_finish(rpc_call_t *call, status_t status, const char *message,
                     const rpc_metadata_t *trailing, size_t n_trailing);
/* Server: the answer of a unary or client-stream call, then OK. */
void rpc_call_reply(rpc_call_t *call, const void *bytes, size_t n);
/* Server: finishes with `code` and this thread's status_text(). */
void rpc_call_fail(rpc_call_t *call, status_t code);

/* Client: no more messages from this side, after the queued ones. */
void rpc_call_half_close(rpc_call_t *call);
/* Either side: drops the call now. on_end still comes, STATUS_CANCELLED unless it had ended. */
void rpc_call_cancel(rpc_call_t *call);

/* ---- server ---- */

typedef enum { RPC_UNARY, RPC_CLIENT_STREAM, RPC_SERVER_STREAM, RPC_BIDI } rpc_kind_t;

typedef struct {
    const char *name; /* "/package.Service/Method"; kept by the caller while the server lives */
    rpc_kind_t kind;
    rpc_handlers_t handlers; /* unset ones are skipped */
    void *context;
    bool manual_read;
} rpc_method_t;

typedef struct {
    const char *listen; /* "host:port", "[::]:port" or "unix:/path"; port 0 takes a free one */
    const rpc_method_t *methods; /* copied */
    size_t n_methods;
    size_t message_bytes_max;   /* 0: RPC_MESSAGE_BYTES_MAX; over it RESOURCE_EXHAUSTED */
    size_t send_queue_bytes;    /* 0: RPC_SEND_QUEUE_BYTES */
    unsigned calls_max;         /* 0: 100,000; over it RESOURCE_EXHAUSTED with retry-after-ms */
    unsigned streams_max;       /* calls of one connection; 0: 10,000 */
    unsigned keepalive_ms;      /* pings an idle connection; 0: 10,000 */
    unsigned keepalive_timeout_ms; /* 0: 5,000 */
    bool no_services;           /* leaves out health and reflection */
} rpc_server_options_t;

/* Listens and serves. The health service reports "" and every service of the methods as SERVING
 * until told otherwise; reflection serves the descriptors compiled into the program. A method that
 * nobody registered answers UNIMPLEMENTED. STATUS_IO when the address cannot be listened on. */
status_t rpc_server_open(rpc_io_t *io, const rpc_server_options_t *options,
                         rpc_server_t **own_server_out) MUST_USE;
/* The port that was taken; 0 for unix sockets. */
unsigned rpc_server_port(const rpc_server_t *server);
/* Calls under way, health watches and reflection included. */
unsigned rpc_server_calls(const rpc_server_t *server);
/* Health of one service ("shoal.v1.Jobs") or of all ("" sets every one). */
void rpc_server_set_serving(rpc_server_t *server, const char *service, bool serving);
/* Refuses new calls, gives those under way `grace_ms` to end, cancels the rest, and returns when
 * the last on_end has returned. Not from a callback. */
void rpc_server_close(rpc_server_t *take_server, unsigned grace_ms);

/* ---- client ---- */

typedef enum {
    RPC_IDLE,       /* no connection wanted yet */
    RPC_CONNECTING,
    RPC_READY,
    RPC_FAILING, /* gRPC waits before it tries again; calls fail at once: STATUS_UNREACHABLE */
} rpc_state_t;

typedef struct {
    const char *endpoint;     /* "host:port", "http://host:port", "unix:/path" or "unix:path" */
    size_t message_bytes_max; /* 0: RPC_MESSAGE_BYTES_MAX */
    size_t send_queue_bytes;  /* 0: RPC_SEND_QUEUE_BYTES */
    unsigned keepalive_ms;    /* 0: 10,000 */
    unsigned keepalive_timeout_ms; /* 0: 5,000 */
    unsigned backoff_ms_max;  /* longest pause between connection attempts; 0: 2,000 */
    /* Told of each change, in order, never two at once; may be NULL. */
    void (*on_state)(void *context, rpc_state_t state);
    void *context;
} rpc_channel_options_t;

/* Does not connect by itself: the first call, rpc_channel_connect or rpc_channel_wait_ready does.
 * STATUS_INVALID for an endpoint that cannot be one. */
status_t rpc_channel_open(rpc_io_t *io, const rpc_channel_options_t *options,
                          rpc_channel_t **own_channel_out) MUST_USE;
/* Cancels the calls under way; returns when the last on_end has returned. Not from a callback. */
void rpc_channel_close(rpc_channel_t *take_channel);
const char *rpc_channel_endpoint(const rpc_channel_t *channel);
void rpc_channel_connect(rpc_channel_t *channel);
rpc_state_t rpc_channel_state(rpc_channel_t *channel);
/* Blocks until connected; STATUS_UNREACHABLE names the endpoint. Not from a callback. */
status_t rpc_channel_wait_ready(rpc_channel_t *channel, unsigned timeout_ms) MUST_USE;
/* The same for who has somewhere else to go: gives up as soon as an attempt has failed. */
status_t rpc_channel_wait_attempt(rpc_channel_t *channel, unsigned timeout_ms) MUST_USE;

typedef struct {
    const char *method;      /* "/shoal.v1.Jobs/Watch" */
    uint64_t timeout_ms;     /* 0: no deadline */
    const rpc_metadata_t *metadata;
    size_t n_metadata;       /* at most RPC_METADATA_MAX */
    bool wait_for_ready;     /* waits for a connection instead of failing while there is none */
    bool manual_read;        /* messages come only as rpc_call_read grants them */
    rpc_handlers_t handlers; /* on_message, on_writable, on_end */
    void *context;
    void *data;              /* as rpc_call_set_data, before any callback can run */
} rpc_call_options_t;

/* Starts a call; messages follow with rpc_call_send, then rpc_call_half_close. The caller gets a
 * reference. On failure (a closing channel, bad metadata) no callback will come. */
status_t rpc_call_start(rpc_channel_t *channel, const rpc_call_options_t *options,
                        rpc_call_t **own_call_out) MUST_USE;

/* One message there, one back. `done` comes exactly once; with STATUS_OK bytes holds the answer. An
 * answer that is missing is STATUS_INTERNAL. Started calls can be cancelled through *own_call_out
 * (a reference; pass NULL when not wanted). On failure `done` does not come. */
typedef void (*rpc_unary_fn)(void *context, const rpc_result_t *result, const uint8_t *bytes,
                             size_t n);
status_t rpc_unary(rpc_channel_t *channel, const char *method, const void *bytes, size_t n,
                   uint64_t timeout_ms, rpc_unary_fn done, void *context,
                   rpc_call_t **own_call_out) MUST_USE;

/* The same; with `wait_for_ready` the request waits, unsent, until there is a connection. */
status_t rpc_unary_ready(rpc_channel_t *channel, const char *method, const void *bytes, size_t n,
                         uint64_t timeout_ms, bool wait_for_ready, rpc_unary_fn done, void *context,
                         rpc_call_t **own_call_out) MUST_USE;

/* ---- client, blocking: for the command line and for tests; never from a callback ---- */

/* The answer is appended to *reply. On failure status_text() is the server's message. */
status_t rpc_unary_wait(rpc_channel_t *channel, const char *method, const void *bytes, size_t n,
                        uint64_t timeout_ms, buffer_t *reply) MUST_USE;

status_t rpc_stream_open(rpc_channel_t *channel, const char *method, uint64_t timeout_ms,
                         rpc_stream_t **own_stream_out) MUST_USE;
/* Blocks while the queue is full. Fails with the call's own status once it has ended. */
status_t rpc_stream_send(rpc_stream_t *stream, const void *bytes, size_t n) MUST_USE;
void rpc_stream_half_close(rpc_stream_t *stream);
/* Replaces *message by the next one. *ended_out is true when the stream ended well and there is no
 * message; a stream that ended otherwise gives its status. STATUS_TIMEOUT: nothing came in
 * `timeout_ms` (0 waits for ever); the stream goes on. */
status_t rpc_stream_read(rpc_stream_t *stream, uint64_t timeout_ms, buffer_t *message,
                         bool *ended_out) MUST_USE;
/* Cancels what is still under way. */
void rpc_stream_close(rpc_stream_t *take_stream);
/* For a signal handler's thread: wakes readers, which then get STATUS_CANCELLED. */
void rpc_stream_cancel(rpc_stream_t *stream);

#endif
