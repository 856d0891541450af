/* What the files of the gRPC wrapper share; nobody else includes it. */
#ifndef SHOAL_COMMON_NET_RPC_INTERNAL_H
#define SHOAL_COMMON_NET_RPC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/net/grpc_late.h"
#include "common/net/rpc.h"

/* What a completion queue hands back. Tags are embedded in longer-lived objects. */
typedef struct rpc_tag {
    void (*run)(struct rpc_tag *tag, bool ok);
    struct rpc_tag *next; /* among those handed over to an I/O thread */
    bool ok;
} rpc_tag_t;

/* Between the start of an operation and its report lies gRPC, which ThreadSanitizer cannot look
 * into: the two sides tell it that one happens before the other. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define RPC_TAG_STARTS(tag) __tsan_release(tag)
#define RPC_TAG_REPORTS(tag) __tsan_acquire(tag)
#else
#define RPC_TAG_STARTS(tag) ((void)(tag))
#define RPC_TAG_REPORTS(tag) ((void)(tag))
#endif

struct rpc_io {
    grpc_completion_queue *queue;
    pthread_t *threads;
    unsigned n_threads;

    pthread_t second; /* runs what was handed over */
    bool has_second;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t told;
    bool stop;
    rpc_tag_t *handed, **handed_end;
    atomic_uint_least64_t n_caught; /* sends that no I/O thread had to be woken for */
};

/* A message that waits to be sent. */
typedef struct rpc_outgoing {
    struct rpc_outgoing *next;
    grpc_byte_buffer *buffer;
    size_t size;
} rpc_outgoing_t;

/* Metadata copied out of gRPC: pairs[i] point into strings of their own. */
typedef struct {
    rpc_metadata_t *pairs;
    size_t n;
} rpc_pairs_t;

/* What waits to be told to the user, in the order in which it is told. Each can wait once only,
 * since a message is read only after the one before was delivered. */
enum {
    RPC_EVENT_OPEN = 1 << 0,
    RPC_EVENT_MESSAGE = 1 << 1,
    RPC_EVENT_HALF_CLOSE = 1 << 2,
    RPC_EVENT_WRITABLE = 1 << 3,
    RPC_EVENT_END = 1 << 4,
};

struct rpc_call {
    atomic_uint refs; /* the library's (until on_end has returned), one an operation, the user's */
    rpc_io_t *io;
    rpc_server_t *server;   /* one of these two is set */
    rpc_channel_t *channel;
    rpc_handlers_t handlers;
    void *context;
    _Atomic(void *) data;
    char *method;
    rpc_pairs_t request_metadata;
    gpr_timespec deadline;
    bool one_message; /* server: unary and server-stream calls take exactly one */
    size_t message_bytes_max;
    size_t send_queue_bytes;
    rpc_call_t *next, *previous; /* in the channel's list, under its lock */

    pthread_mutex_t lock; /* of everything below */
    grpc_call *grpc;      /* NULL once the call has ended and no operation is under way */
    char *peer;
    unsigned ops;         /* batches under way */
    unsigned events;      /* RPC_EVENT_* that wait */
    bool delivering;      /* some thread is in a callback of this call */
    bool ended;           /* the end is known: nothing more is sent or read */
    bool end_told;

    rpc_outgoing_t *queue_head, *queue_tail;
    size_t queue_bytes; /* of the message in flight too */
    rpc_outgoing_t *in_flight;
    bool sending;
    bool sent_initial;
    bool finish_wanted;  /* server: finish; client: half-close */
    bool finish_sent;
    bool send_blocked;   /* a sender was turned away and is owed on_writable */
    bool send_refused;   /* gRPC took no batch: the call is over, and its end on the way */
    status_t finish_status;
    char *finish_message;
    rpc_pairs_t trailing; /* server: to send; client: received */

    bool reading;
    bool read_done;
    bool manual_read;
    unsigned read_credits;
    unsigned messages_read;
    grpc_byte_buffer *received;

    bool close_done; /* server: the close came; client: the status came */
    int server_cancelled;
    grpc_status_code status_code;
    grpc_slice status_details;
    grpc_metadata_array recv_initial, recv_trailing;
    rpc_tag_t tag_send, tag_read, tag_close, tag_initial;
};

typedef struct {
    rpc_tag_t tag;
    rpc_server_t *server;
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
} rpc_arrival_t;

/* From here on the first report that gRPC makes on this thread is kept for it instead of waking an
 * I/O thread; nothing but gRPC may be called until rpc_io_caught(), on the same thread, gives it or
 * NULL. */
void rpc_io_catch(rpc_io_t *io);
rpc_tag_t *rpc_io_caught(rpc_io_t *io, bool *ok_out);
/* Lets an I/O thread run what was caught. Any lock may be held. */
void rpc_io_hand_over(rpc_io_t *io, rpc_tag_t *tag, bool ok);
/* A send was caught and is done with. */
void rpc_io_count_caught(rpc_io_t *io);

/* A call with its tags set and one reference (the library's). Takes `grpc`. */
rpc_call_t *rpc_call_new(rpc_io_t *io, grpc_call *take_grpc, const rpc_handlers_t *handlers,
                         void *context);
/* Starts the batch that reports the end of the call, and tells OPEN on a server. */
void rpc_call_begin_server(rpc_call_t *call);
void rpc_call_begin_client(rpc_call_t *call, const rpc_metadata_t *metadata, size_t n_metadata,
                           bool wait_for_ready);
/* Starts whatever sending or reading is possible; the lock is held. */
void rpc_call_send_pump(rpc_call_t *call);
void rpc_call_read_pump(rpc_call_t *call);
/* Sets events and runs the callbacks unless another thread is at it. Lock held; returns without. */
void rpc_call_tell(rpc_call_t *call, unsigned events);
/* Queues a copy of the bytes regardless of the limit; lock held. */
void rpc_call_enqueue(rpc_call_t *call, const void *bytes, size_t n);
void rpc_call_drop_queue(rpc_call_t *call);
/* Starts a batch with a reference and a count for it; lock held. False when gRPC refused it. */
bool rpc_call_batch(rpc_call_t *call, const grpc_op *ops, size_t n_ops, rpc_tag_t *tag);
void rpc_call_op_done(rpc_call_t *call);
/* What the tag of a sending batch runs. */
void rpc_call_send_done(rpc_tag_t *tag, bool ok);

/* The owner of the call (server or channel) is told that on_end has returned. */
void rpc_server_call_ended(rpc_server_t *server);
void rpc_channel_call_ended(rpc_channel_t *channel, rpc_call_t *call);
/* Starts a call; with `only_message` it is sent and the sending side closed along with it. */
status_t rpc_channel_start_call(rpc_channel_t *channel, const rpc_call_options_t *options,
                                const void *only_message, size_t n, rpc_call_t **own_call_out)
    MUST_USE;

void rpc_pairs_copy(rpc_pairs_t *pairs, const grpc_metadata_array *from);
void rpc_pairs_add(rpc_pairs_t *pairs, const char *key, const char *value);
const char *rpc_pairs_find(const rpc_metadata_t *pairs, size_t n, const char *key);
void rpc_pairs_release(rpc_pairs_t *pairs);
/* gRPC's view of pairs; illegal ones are left out. Release with rpc_grpc_metadata_release. */
size_t rpc_grpc_metadata_make(const rpc_metadata_t *pairs, size_t n, grpc_metadata *out);
void rpc_grpc_metadata_release(grpc_metadata *metadata, size_t n);
bool rpc_metadata_legal(const rpc_metadata_t *pair);
/* The status that a peer's code and trailing metadata stand for. */
status_t rpc_status_received(int code, const rpc_metadata_t *trailing, size_t n);
grpc_byte_buffer *rpc_buffer_make(const void *bytes, size_t n);

/* The standard services, answered inside the library. */
typedef struct rpc_health rpc_health_t;
typedef struct rpc_reflection rpc_reflection_t;
rpc_health_t *rpc_health_new(const rpc_method_t *methods, size_t n_methods);
void rpc_health_set(rpc_health_t *health, const char *service, bool serving);
/* Ends every watch, so that a closing server does not wait for them. */
void rpc_health_stop(rpc_health_t *health);
void rpc_health_free(rpc_health_t *take_health);
rpc_reflection_t *rpc_reflection_new(const rpc_method_t *methods, size_t n_methods);
void rpc_reflection_free(rpc_reflection_t *take_reflection);
#define RPC_SERVICE_METHODS_MAX 4
/* Fills `methods`, returns how many. */
size_t rpc_health_methods(rpc_health_t *health, rpc_method_t *methods);
size_t rpc_reflection_methods(rpc_reflection_t *reflection, rpc_method_t *methods);

/* The serialized FileDescriptorSet of shoal_proto. */
extern const unsigned char reflection_protoset[];
extern const unsigned char reflection_protoset_end[];

#endif
