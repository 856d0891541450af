/* An asynchronous Redis client: one connection, one I/O thread, commands pipelined in the order
 * they were given. It knows nothing about jobs; jobs_store.h builds on it.
 *
 * Contract: a call that was accepted (STATUS_OK) ends in exactly one callback, on the I/O thread,
 * never inside the call itself. A lost connection ends every call under way with
 * STATUS_UNREACHABLE, which means that nobody knows whether Redis executed it: the caller repeats,
 * so commands that change something must be safe to repeat. While there is no connection, calls end
 * with STATUS_UNREACHABLE as soon as the I/O thread sees them. A connection on which the oldest
 * call waits longer than `call_timeout_ms` is given up (a stopped Redis looks like that).
 * Reconnects wait 50 ms, doubling to 2 s, each with jitter. */
#ifndef SHOAL_COMMON_NET_REDIS_H
#define SHOAL_COMMON_NET_REDIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct redisReply; /* hiredis/hiredis.h */

typedef struct redis redis_t;

/* `reply` is borrowed for the call and NULL unless status is STATUS_OK. An error that Redis itself
 * answered is STATUS_REFUSED with its words in `error`. `error` is "" on STATUS_OK. */
typedef void (*redis_reply_fn)(void *user, status_t status, const char *error,
                               const struct redisReply *reply);

/* Runs on the I/O thread on each change. `error` says why a connection ended. */
typedef void (*redis_state_fn)(void *user, bool connected, const char *error);

typedef struct {
    const char *url;            /* redis://[:password@]host[:port], host:port, or unix:/path */
    uint64_t call_timeout_ms;   /* 0 takes 5,000 */
    size_t calls_max;           /* waiting and under way together; 0 takes 65,536 */
    size_t bytes_max;           /* of the commands that are not yet answered; 0 takes 256 MiB */
    redis_state_fn on_state;    /* may be NULL */
    /* Runs on the I/O thread about every `tick_ms` (0: never); may start calls. */
    void (*on_tick)(void *user);
    uint64_t tick_ms;
    void *user;
} redis_config_t;

/* Starts the thread, which connects by itself. STATUS_INVALID when the URL makes no sense. */
status_t redis_open(const redis_config_t *config, redis_t **own_redis_out) MUST_USE;

/* Ends every call with its callback, then the thread. Must not run on the I/O thread. */
void redis_close(redis_t *take_redis);

/* Sends one command of n_args binary-safe arguments, copied here. Any thread. STATUS_EXHAUSTED (a
 * written maximum is reached) and STATUS_CANCELLED (closing) mean that no callback follows. */
status_t redis_call(redis_t *redis, size_t n_args, const char *const *args, const size_t *sizes,
                    redis_reply_fn fn, void *user) MUST_USE;

/* The same with NUL-terminated arguments. */
status_t redis_call_text(redis_t *redis, size_t n_args, const char *const *args, redis_reply_fn fn,
                         void *user) MUST_USE;

bool redis_connected(const redis_t *redis);

#endif
