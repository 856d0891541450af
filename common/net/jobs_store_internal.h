/* What the parts of the job store share: the store (jobs_store.c: connection, library, durability
 * gate), the operations (jobs_store_ops.c) and the reading of answers (jobs_store_reply.c). */
#ifndef SHOAL_COMMON_NET_JOBS_STORE_INTERNAL_H
#define SHOAL_COMMON_NET_JOBS_STORE_INTERNAL_H

#include <hiredis/hiredis.h>
#include <pthread.h>

#include "common/base/memory.h"
#include "common/net/jobs_store.h"
#include "common/net/redis.h"

/* The library as it is loaded, both files joined; written by jobs_lua.cmake. */
extern const unsigned char jobs_lua[];
extern const size_t jobs_lua_bytes;

typedef enum { GATE_UNKNOWN, GATE_OPEN, GATE_SHUT } gate_t;

struct jobs_store {
    redis_t *redis;
    char *prefix;
    uint64_t jobs_bytes_max;
    void (*on_health)(void *user, const jobs_health_t *health);
    void *user;

    pthread_mutex_t lock; /* guards all below */
    char uuid[33];
    uint64_t incarnation;
    bool library_ok;
    bool library_checking;
    gate_t gate;
    char library_why[200];
    char gate_why[200];

    /* The I/O thread's alone: what the look at the gate under way has found, and when it began. */
    char look_why[200];
    uint64_t looked_ms;
    uint64_t gate_ms;
};

/* What an answer carries beside code and message. */
typedef enum {
    SHAPE_PLAIN,
    SHAPE_NUMBER,
    SHAPE_JOB,
    SHAPE_JOBS,
    SHAPE_ITEMS,
    SHAPE_COMMIT, /* OK: maybe a number; DUP: a record */
    SHAPE_RESULTS,
    SHAPE_PROCESSES,
    SHAPE_POINTER,
    SHAPE_META,
} shape_t;

/* Reads Redis's answer into *out, whose arrays are made in the arena and whose texts point into the
 * reply. An answer of another shape becomes JOBS_INVALID. */
void jobs_reply_read(const redisReply *reply, shape_t shape, arena_t *arena, jobs_reply_t *out);

/* The code for an error that Redis itself gave instead of running the function. */
jobs_code_t jobs_code_of_error(const char *error);

/* Starts the check of the library and the gate; on the I/O thread. */
void jobs_store_check(jobs_store_t *store);

#endif
