/* A TCP relay in front of a server, which a test can cut: connections break and new ones are
 * refused until it is joined again. */
#ifndef SHOAL_TESTS_TCP_PROXY_H
#define SHOAL_TESTS_TCP_PROXY_H

#include <pthread.h>
#include <stdatomic.h>

#define PROXY_PAIRS_MAX 32

typedef struct {
    unsigned port;   /* that it listens on, at 127.0.0.1 */
    unsigned target; /* the server's port */
    atomic_bool is_cut;
    atomic_uint delay_ms; /* that each piece of bytes waits before it goes on */
    atomic_bool stop;
    atomic_uint rounds; /* of the thread; each begins with closing what a cut breaks */
    pthread_t thread;
    int listener;
    int pairs[PROXY_PAIRS_MAX][2]; /* -1: free */
} tcp_proxy_t;

void tcp_proxy_open(tcp_proxy_t *proxy, unsigned target);
/* Returns when every connection is closed. */
void tcp_proxy_cut(tcp_proxy_t *proxy);
void tcp_proxy_join(tcp_proxy_t *proxy);
void tcp_proxy_close(tcp_proxy_t *proxy);

#endif
