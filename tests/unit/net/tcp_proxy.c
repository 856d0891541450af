/* One thread that polls every socket of the relay. See tcp_proxy.h. */
#include "tcp_proxy.h"

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net_test.h"

static struct sockaddr_in address_of(unsigned port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void close_pair(int pair[2])
{
    close(pair[0]);
    close(pair[1]);
    pair[0] = pair[1] = -1;
}

static void accept_one(tcp_proxy_t *proxy)
{
    int fd = accept(proxy->listener, NULL, NULL);
    if (fd < 0)
        return;
    for (size_t i = 0; i < PROXY_PAIRS_MAX && !atomic_load(&proxy->is_cut); i++) {
        if (proxy->pairs[i][0] >= 0)
            continue;
        int to = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in target = address_of(proxy->target);
        if (connect(to, (struct sockaddr *)(void *)&target, sizeof target) != 0) {
            close(to);
            break;
        }
        proxy->pairs[i][0] = fd;
        proxy->pairs[i][1] = to;
        return;
    }
    close(fd);
}

/* False when the connection is over. */
static bool relay(int from, int to, unsigned delay_ms)
{
    char bytes[65536];
    ssize_t n = read(from, bytes, sizeof bytes);
    usleep(delay_ms * 1000);
    for (ssize_t at = 0; at < n;) {
        ssize_t sent = send(to, bytes + at, (size_t)(n - at), MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        at += sent;
    }
    return n > 0;
}

static void *run_proxy(void *context)
{
    tcp_proxy_t *proxy = context;
    while (!atomic_load(&proxy->stop)) {
        struct pollfd fds[1 + 2 * PROXY_PAIRS_MAX] = {{.fd = proxy->listener, .events = POLLIN}};
        for (size_t i = 0; i < PROXY_PAIRS_MAX; i++) {
            if (atomic_load(&proxy->is_cut) && proxy->pairs[i][0] >= 0)
                close_pair(proxy->pairs[i]);
            for (size_t side = 0; side < 2; side++)
                fds[1 + 2 * i + side] =
                    (struct pollfd){.fd = proxy->pairs[i][side], .events = POLLIN};
        }
        poll(fds, 1 + 2 * PROXY_PAIRS_MAX, 5);
        if (fds[0].revents)
            accept_one(proxy);
        for (size_t i = 0; i < PROXY_PAIRS_MAX; i++)
            for (size_t side = 0; side < 2; side++)
                if (fds[1 + 2 * i + side].revents && proxy->pairs[i][0] >= 0 &&
                    !relay(proxy->pairs[i][side], proxy->pairs[i][1 - side], proxy->delay_ms))
                    close_pair(proxy->pairs[i]);
        atomic_fetch_add(&proxy->rounds, 1);
    }
    for (size_t i = 0; i < PROXY_PAIRS_MAX; i++)
        if (proxy->pairs[i][0] >= 0)
            close_pair(proxy->pairs[i]);
    close(proxy->listener);
    return NULL;
}

void tcp_proxy_open(tcp_proxy_t *proxy, unsigned target)
{
    struct sockaddr_in any = address_of(0);
    socklen_t size = sizeof any;
    *proxy = (tcp_proxy_t){.target = target};
    for (size_t i = 0; i < PROXY_PAIRS_MAX; i++)
        proxy->pairs[i][0] = proxy->pairs[i][1] = -1;
    proxy->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(proxy->listener, (struct sockaddr *)(void *)&any, size), 0);
    assert_int_equal(getsockname(proxy->listener, (struct sockaddr *)(void *)&any, &size), 0);
    proxy->port = ntohs(any.sin_port);
    assert_int_equal(listen(proxy->listener, 64), 0);
    assert_int_equal(pthread_create(&proxy->thread, NULL, run_proxy, proxy), 0);
}

void tcp_proxy_cut(tcp_proxy_t *proxy)
{
    atomic_store(&proxy->is_cut, true);
    /* The round that runs may still accept one, which the next closes before it ends. */
    unsigned before = atomic_load(&proxy->rounds);
    while (atomic_load(&proxy->rounds) - before < 2)
        net_test_nap();
}

void tcp_proxy_join(tcp_proxy_t *proxy)
{
    atomic_store(&proxy->is_cut, false);
}

void tcp_proxy_close(tcp_proxy_t *proxy)
{
    atomic_store(&proxy->stop, true);
    pthread_join(proxy->thread, NULL);
}
