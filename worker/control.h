/* The words between an agent (or the offline mode) and the rank processes it spawned: small checked
 * messages over a SOCK_SEQPACKET socketpair, whose end on the rank's side is descriptor
 * CONTROL_FD. One message is one packet; a packet of another version, an unknown kind or a wrong
 * length is refused with STATUS_INVALID and the channel is closed by whoever read it.
 *
 *   parent → rank: START (once), EPOCH (each formation), DRAIN, STOP
 *   rank → parent: HELLO (answers START), BEAT, LOADED, PREPARED, ACTIVE, FAILED
 *
 * A rank lives over epochs: after FAILED it waits for the next EPOCH with its weights in place; an
 * EPOCH that arrives while another one runs ends that one. */
#ifndef SHOAL_WORKER_CONTROL_H
#define SHOAL_WORKER_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "worker/fabric/fabric.h"

#define CONTROL_VERSION 5u
#define CONTROL_FD 3
#define CONTROL_MESSAGE_BYTES_MAX ((size_t)128 << 10)
#define CONTROL_BEAT_MS 100u
#define CONTROL_SILENCE_MS 600u /* without a beat for so long, the parent kills the rank */
#define CONTROL_SESSIONS_MAX 256
#define CONTROL_SESSION_BYTES 33 /* 32 hex digits and a NUL */

typedef enum {
    CONTROL_START = 1,
    CONTROL_EPOCH = 2,
    CONTROL_DRAIN = 3,
    CONTROL_STOP = 4,
    CONTROL_HELLO = 16,
    CONTROL_BEAT = 17,
    CONTROL_LOADED = 18,
    CONTROL_PREPARED = 19,
    CONTROL_ACTIVE = 20,
    CONTROL_FAILED = 21,
} control_kind_t;

/* What a rank is for as long as it lives: which slice of which model, on which resources. Texts are
 * NUL-terminated. Two equal ones mean that a living rank can be kept for the next epoch. */
typedef struct {
    char replica[192];       /* "<deployment>/<ordinal>" */
    char model_path[1024];   /* on this host */
    char model_digest[80];   /* "sha256:…"; "" when it is to be computed */
    char activations[8];     /* "native" | "f32" */
    char kv[8];              /* the cache's type (common/model/kv_type.h) */
    char quantize[8];        /* "" | "q8" | "q4" | "fp8" */
    char host[FABRIC_HOST_BYTES_MAX];
    char address[64];        /* IP address that the endpoint and the leader's service listen on */
    char data_dir[512];      /* for caches; "" for none */
    uint32_t rank, n_ranks;  /* rank = stage * tp + slice */
    uint32_t tp, stages;
    uint32_t stage, slice;
    uint32_t expert_groups, attention_slices; /* the plan's cut, as plan_cut() */
    uint32_t attention_replicas;
    bool shared_head; /* every stage has a part of the head */
    uint32_t layer_first, layer_count;
    uint32_t threads;
    uint8_t in_node;            /* bound to this NUMA node, as numa_bind() */
    uint32_t numa_node;
    uint32_t context_max;
    uint32_t step_timeout_ms;   /* 0: the fabric's default */
    uint64_t kv_tokens_max;     /* 0: what fits into memory_bytes */
    uint64_t prefill_tokens_max;/* 0: the default */
    uint64_t memory_bytes;      /* what this rank may use; 0: no limit given */
    uint64_t pack_cache_bytes;  /* that packed weights may take under data_dir; 0: none are kept */
    uint64_t pack_cache_bytes_min; /* smaller ones are not kept */
    uint8_t spans_hosts;        /* some rank is on another host: an endpoint is opened */
    uint8_t serve;              /* rank 0 offers the Engine service (false in offline mode) */
    uint32_t speculate_max;     /* tokens guessed ahead; 0: none */
    uint8_t prefix_cache_off;   /* no prefix reuse */
    uint8_t whole_prompts;      /* as rank_config_t's */
    uint8_t beyond_context;     /* offline mode only: context_max may pass the trained one */
    char draft_path[1024], draft_digest[80]; /* of rank 0; "" for none */
    char trace_path[512];       /* as rank_config_t's; "" for none */
} rank_start_t;

/* One formation. The shared memory's descriptor travels with the message. */
typedef struct {
    uint64_t incarnation, epoch;
    uint32_t formation_ms; /* what is left of the formation's deadline */
    uint32_t n_peers;
    struct {
        char host[FABRIC_HOST_BYTES_MAX];
        uint32_t address_bytes;
        uint8_t address[FABRIC_ADDRESS_BYTES_MAX];
    } peers[FABRIC_RANKS_MAX]; /* in order of rank, this one's own included */
} rank_epoch_t;

typedef struct {
    int64_t pid;
    uint32_t address_bytes; /* 0 when the rank opened no endpoint */
    uint8_t address[FABRIC_ADDRESS_BYTES_MAX];
} control_hello_t;

/* `progress` rises with each piece of work; `busy` says that work is under way, so that a busy rank
 * whose progress stands still is seen to be stuck although it beats. `cpu_ms` is the processor time
 * that the process has used: what computes slowly uses it, what waits for ever does not. */
typedef struct {
    uint64_t progress;
    uint64_t cpu_ms;
    uint32_t sequences; /* of a leader: running and waiting */
    uint8_t busy;
    uint8_t loading;        /* of a rank that has not said LOADED: `progress` counts pages as well */
    uint8_t loaded_percent; /* while it loads */
} control_beat_t;

typedef struct {
    uint64_t epoch;
    uint64_t kv_blocks; /* that this rank can hold */
} control_prepared_t;

/* From rank 0 only: the replica is usable. */
typedef struct {
    uint64_t epoch;
    uint64_t kv_tokens;
    char leader[80]; /* host:port of the Engine service; "" without one */
    char text_identity[FABRIC_IDENTITY_BYTES_MAX];
} control_active_t;

/* An epoch ended on this rank, or (epoch 0) the rank cannot do its work at all and exits. */
typedef struct {
    uint64_t epoch;
    uint32_t status;    /* a status_t */
    uint32_t lost_rank; /* UINT32_MAX when none is named */
    uint8_t silent;     /* that rank was lost by silence or a broken link */
    char lost_host[FABRIC_HOST_BYTES_MAX];
    char text[STATUS_TEXT_MAX];
    uint32_t n_sessions; /* of the step under way, when this rank knows them */
    char sessions[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES];
} control_failed_t;

typedef struct {
    control_kind_t kind;
    /* EPOCH: the shared memory. START of a leader: its step page (step_page.h). Else -1. Closed by
     * the receiver. */
    int fd;
    union {
        rank_start_t start;
        rank_epoch_t epoch;
        control_hello_t hello;
        control_beat_t beat;
        control_prepared_t prepared;
        control_active_t active;
        control_failed_t failed;
    };
} control_message_t;

/* Sends one message if the socket has room for it now, which *sent_out says; never waits.
 * STATUS_PEER_LOST when the other side is gone. Any thread. */
status_t control_try_send(int socket, const control_message_t *message, bool *sent_out) MUST_USE;
/* Sends one message and waits for room as long as the other side lives: a parent that is stopped
 * for a while must not miss a word. STATUS_PEER_LOST when it is gone. Any thread of a rank; a
 * parent, which has other ranks to look after, uses control_try_send. */
status_t control_send(int socket, const control_message_t *message) MUST_USE;

/* Reads the next message without waiting; *got_out is false when none is there. STATUS_PEER_LOST
 * when the other side is gone, STATUS_INVALID for a packet that must not be. */
status_t control_receive(int socket, control_message_t *out, bool *got_out) MUST_USE;

/* The codec by itself, for tests: bytes ↔ message. Encode writes at most CONTROL_MESSAGE_BYTES_MAX
 * bytes and returns how many. */
size_t control_encode(const control_message_t *message, uint8_t *out);
status_t control_decode(const uint8_t *bytes, size_t n, control_message_t *out) MUST_USE;

#endif
