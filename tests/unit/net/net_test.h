/* What the tests of common/net share: a server with a method of every kind and a way to wait for
 * conditions that other threads make true. */
#ifndef SHOAL_TESTS_NET_TEST_H
#define SHOAL_TESTS_NET_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#undef fail /* cmocka has a macro of that name */
#include <pthread.h>
#include <stdatomic.h>

#include "common/base/clock.h"
#include "common/net/rpc.h"

#define WAIT_MS 20000

/* Fails the test unless the condition becomes true in time. Looks each millisecond. */
#define wait_for(condition)                                                                        \
    do {                                                                                           \
        uint64_t wait_until_ = clock_ms() + WAIT_MS;                                               \
        while (!(condition)) {                                                                     \
            if (clock_ms() > wait_until_) {                                                        \
                print_error("never came true: %s\n", #condition);                                  \
                _fail(__FILE__, __LINE__);                                                         \
            }                                                                                      \
            net_test_nap();                                                                        \
        }                                                                                          \
    } while (0)
void net_test_nap(void);

/* What the server of the tests saw. */
typedef struct {
    atomic_uint opened, messages, half_closed, ended, cancelled, deadline_passed;
    atomic_size_t bytes;
    atomic_uint refused_sends;   /* EXHAUSTED answers that /test.Echo/Count got */
    atomic_size_t sent_messages; /* that it queued */
    atomic_uint overlaps;        /* callbacks of one call that ran at the same time */
} seen_t;
extern seen_t seen;

/* Unary echoes; Silent never answers; Fail answers STATUS_EXHAUSTED with retry-after-ms 250 and the
 * request as words; Lose answers STATUS_REPLICA_LOST; Count is a server stream of "<messages>
 * <bytes each>"; Sum a client stream that answers the number of bytes; Chat echoes each message of
 * both streams; Meta answers the metadata "x-test", the peer, the method and the time left. */
rpc_io_t *net_test_io(void);
rpc_server_t *net_test_server(rpc_io_t *io, const rpc_server_options_t *options);
rpc_channel_t *net_test_channel(rpc_io_t *io, const rpc_server_t *server);

#endif
