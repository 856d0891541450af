/* Unary calls, limits, failures and endings of the gRPC wrapper, over real sockets. */
#include "net_test.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "tcp_proxy.h"

typedef struct {
    rpc_io_t *io;
    rpc_server_t *server;
    rpc_channel_t *channel;
} world_t;

static world_t open_world(const rpc_server_options_t *options)
{
    memset(&seen, 0, sizeof seen);
    world_t world = {.io = net_test_io()};
    world.server = net_test_server(world.io, options);
    world.channel = net_test_channel(world.io, world.server);
    return world;
}

static void close_world(world_t *world)
{
    rpc_channel_close(world->channel);
    rpc_server_close(world->server, 0);
    rpc_io_close(world->io);
    assert_int_equal(seen.opened, seen.ended);
    assert_int_equal(seen.overlaps, 0);
}

static void test_a_unary_call_brings_the_answer(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    buffer_t reply = {0};
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Unary", "hello", 5, 5000, &reply),
                     STATUS_OK);
    assert_string_equal(buffer_text(&reply), "hello");
    buffer_clear(&reply);
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Unary", NULL, 0, 5000, &reply),
                     STATUS_OK);
    assert_int_equal(reply.size, 0);
    buffer_release(&reply);
    close_world(&world);
}

static void test_a_failure_keeps_its_status_words_and_metadata(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    buffer_t reply = {0};
    const char *words = "max_tokens is 0; it must be 1 to 512 \xe2\x9c\x93";
    assert_int_equal(
        rpc_unary_wait(world.channel, "/test.Echo/Fail", words, strlen(words), 5000, &reply),
        STATUS_EXHAUSTED);
    assert_string_equal(status_text(), words);
    assert_int_equal(reply.size, 0);
    close_world(&world);
}

static void test_a_status_that_grpc_cannot_tell_apart_is_restored_exactly(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    buffer_t reply = {0};
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Lose", "", 0, 5000, &reply),
                     STATUS_REPLICA_LOST);
    assert_string_equal(status_text(), "replica m/0 was lost");
    close_world(&world);
}

static char *last_retry;
static atomic_int last_code = -1;
static void keep_result(void *context, const rpc_result_t *result, const uint8_t *bytes, size_t n)
{
    (void)context;
    (void)bytes;
    (void)n;
    const char *retry = rpc_result_metadata(result, "retry-after-ms");
    last_retry = retry ? mem_strdup(retry) : NULL;
    atomic_store(&last_code, result->code);
}

static void test_trailing_metadata_reaches_the_callback(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    atomic_store(&last_code, -1);
    assert_int_equal(
        rpc_unary(world.channel, "/test.Echo/Fail", "x", 1, 5000, keep_result, NULL, NULL),
        STATUS_OK);
    wait_for(atomic_load(&last_code) >= 0);
    assert_int_equal(atomic_load(&last_code), 8);
    assert_non_null(last_retry);
    assert_string_equal(last_retry, "250");
    free(last_retry);
    close_world(&world);
}

static void test_metadata_peer_method_and_deadline_are_known_to_the_server(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    const rpc_metadata_t metadata[] = {{"x-test", "seven"}};
    rpc_call_options_t options = {.method = "/test.Echo/Meta",
                                  .timeout_ms = 5000,
                                  .metadata = metadata,
                                  .n_metadata = 1};
    rpc_call_t *call;
    assert_int_equal(rpc_call_start(world.channel, &options, &call), STATUS_OK);
    rpc_call_unref(call);
    options.metadata = (const rpc_metadata_t[]){{"X Test", "seven"}};
    assert_int_equal(rpc_call_start(world.channel, &options, &call), STATUS_INVALID);
    buffer_t reply = {0};
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Meta", "", 0, 5000, &reply),
                     STATUS_OK);
    unsigned long long left = 0;
    char peer[64] = "";
    assert_int_equal(
        sscanf(buffer_text(&reply), "- %63s /test.Echo/Meta %llu", peer, &left), 2);
    assert_int_equal(strncmp(peer, "ipv4:127.0.0.1:", 15), 0);
    /* gRPC sends three digits, rounded up. */
    assert_in_range(left, 1000, 5100);
    buffer_release(&reply);
    close_world(&world);
}

static void test_an_unknown_method_is_refused_at_once(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    buffer_t reply = {0};
    uint64_t start = clock_ms();
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Nothing", "x", 1, 15000, &reply),
                     STATUS_UNSUPPORTED);
    assert_in_range(clock_ms() - start, 0, 5000);
    assert_non_null(strstr(status_text(), "/test.Echo/Nothing"));
    close_world(&world);
}

/* The client's word that its deadline has passed is a reset like that of a cancel, and it may be
 * there before the server's own clock says the same; so only that the call is over is told here. */
static void test_a_deadline_ends_the_call_on_both_sides(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    buffer_t reply = {0};
    assert_int_equal(rpc_channel_wait_ready(world.channel, 10000), STATUS_OK);
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Silent", "x", 1, 1000, &reply),
                     STATUS_DEADLINE);
    wait_for(seen.ended == 1);
    assert_int_equal(seen.cancelled, 1);
    close_world(&world);
}

static void test_a_server_knows_a_deadline_that_nobody_tells_it_of(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof seen);
    rpc_io_t *io = net_test_io();
    rpc_server_t *server = net_test_server(io, NULL);
    tcp_proxy_t proxy;
    tcp_proxy_open(&proxy, rpc_server_port(server));
    char *endpoint = mem_format("127.0.0.1:%u", proxy.port);
    rpc_channel_t *channel;
    rpc_channel_options_t options = {.endpoint = endpoint};
    assert_int_equal(rpc_channel_open(io, &options, &channel), STATUS_OK);
    assert_int_equal(rpc_channel_wait_ready(channel, 10000), STATUS_OK);
    rpc_call_t *call;
    atomic_store(&last_code, -1);
    assert_int_equal(rpc_unary(channel, "/test.Echo/Silent", "x", 1, 1500, keep_result, NULL, &call),
                     STATUS_OK);
    wait_for(seen.messages == 1);
    /* From here on the client's reset is later than the deadline by far. */
    atomic_store(&proxy.delay_ms, 2500);
    wait_for(seen.ended == 1);
    assert_int_equal(seen.cancelled, 1);
    assert_int_equal(seen.deadline_passed, 1);
    wait_for(atomic_load(&last_code) >= 0);
    assert_int_equal(atomic_load(&last_code), 4);
    atomic_store(&proxy.delay_ms, 0);
    rpc_call_unref(call);
    rpc_channel_close(channel);
    tcp_proxy_close(&proxy);
    rpc_server_close(server, 0);
    rpc_io_close(io);
    free(endpoint);
}

static void test_a_cancel_reaches_the_server(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    rpc_call_t *call;
    atomic_store(&last_code, -1);
    assert_int_equal(
        rpc_unary(world.channel, "/test.Echo/Silent", "x", 1, 0, keep_result, NULL, &call),
        STATUS_OK);
    wait_for(seen.messages == 1);
    rpc_call_cancel(call);
    wait_for(seen.ended == 1);
    assert_int_equal(seen.cancelled, 1);
    wait_for(atomic_load(&last_code) >= 0);
    assert_int_equal(atomic_load(&last_code), 1);
    /* A call that has ended still answers whoever holds it. */
    assert_int_equal(rpc_call_send(call, "x", 1), STATUS_CANCELLED);
    assert_false(rpc_call_writable(call));
    rpc_call_cancel(call);
    rpc_call_unref(call);
    close_world(&world);
}

static void test_a_message_over_the_limit_is_refused_on_both_sides(void **state)
{
    (void)state;
    rpc_server_options_t options = {.message_bytes_max = 10000};
    world_t world = open_world(&options);
    buffer_t reply = {0};
    char *bytes = mem_new(RPC_MESSAGE_BYTES_MAX + 1, 1);
    /* gRPC's own limit at the server, and ours before anything is sent. */
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Unary", bytes, 10001, 5000, &reply),
                     STATUS_EXHAUSTED);
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Unary", bytes,
                                    RPC_MESSAGE_BYTES_MAX + 1, 5000, &reply),
                     STATUS_INVALID);
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Unary", bytes, 10000, 5000, &reply),
                     STATUS_OK);
    assert_int_equal(reply.size, 10000);
    free(bytes);
    buffer_release(&reply);
    close_world(&world);
}

static void test_calls_over_the_maximum_get_a_time_to_come_back(void **state)
{
    (void)state;
    rpc_server_options_t options = {.calls_max = 2};
    world_t world = open_world(&options);
    rpc_call_t *calls[2];
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(rpc_unary(world.channel, "/test.Echo/Silent", "x", 1, 0, keep_result, NULL,
                                   &calls[i]),
                         STATUS_OK);
    wait_for(seen.messages == 2);
    assert_int_equal(rpc_server_calls(world.server), 2);
    atomic_store(&last_code, -1);
    assert_int_equal(
        rpc_unary(world.channel, "/test.Echo/Unary", "x", 1, 5000, keep_result, NULL, NULL),
        STATUS_OK);
    wait_for(atomic_load(&last_code) >= 0);
    assert_int_equal(atomic_load(&last_code), 8);
    assert_non_null(last_retry);
    free(last_retry);
    for (size_t i = 0; i < 2; i++) {
        rpc_call_cancel(calls[i]);
        rpc_call_unref(calls[i]);
    }
    wait_for(rpc_server_calls(world.server) == 0);
    close_world(&world);
}

static atomic_uint answers_good, answers_bad;
static void count_answer(void *context, const rpc_result_t *result, const uint8_t *bytes, size_t n)
{
    unsigned want = (unsigned)(uintptr_t)context;
    unsigned got = 0;
    if (n == sizeof got)
        memcpy(&got, bytes, n);
    bool good = result->status == STATUS_OK && n == sizeof got && got == want;
    atomic_fetch_add(good ? &answers_good : &answers_bad, 1);
}

static void test_a_thousand_calls_in_parallel_each_get_their_own_answer(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    atomic_store(&answers_good, 0);
    atomic_store(&answers_bad, 0);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(rpc_unary(world.channel, "/test.Echo/Unary", &i, sizeof i, 20000,
                                   count_answer, (void *)(uintptr_t)i, NULL),
                         STATUS_OK);
    wait_for(answers_good + answers_bad == 1000);
    assert_int_equal(answers_good, 1000);
    close_world(&world);
}

static void test_closing_ends_every_call_exactly_once(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    atomic_store(&answers_good, 0);
    atomic_store(&answers_bad, 0);
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(rpc_unary(world.channel, "/test.Echo/Silent", &i, sizeof i, 0,
                                   count_answer, NULL, NULL),
                         STATUS_OK);
    wait_for(seen.messages == 50);
    /* The server goes first, with the calls still open. */
    rpc_server_close(world.server, 50);
    assert_int_equal(seen.ended, 50);
    wait_for(answers_bad == 50);
    rpc_channel_close(world.channel);
    rpc_io_close(world.io);
    assert_int_equal(answers_bad, 50);
    assert_int_equal(answers_good, 0);
}

static void test_a_channel_that_closes_cancels_its_calls(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    atomic_store(&answers_bad, 0);
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(rpc_unary(world.channel, "/test.Echo/Silent", &i, sizeof i, 0,
                                   count_answer, NULL, NULL),
                         STATUS_OK);
    rpc_channel_close(world.channel);
    assert_int_equal(answers_bad, 50);
    rpc_server_close(world.server, 0);
    rpc_io_close(world.io);
    assert_int_equal(seen.opened, seen.ended);
}

static void test_nobody_there_is_told_at_once_and_a_server_that_comes_is_found(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof seen);
    rpc_io_t *io = net_test_io();
    rpc_server_t *server = net_test_server(io, NULL);
    unsigned port = rpc_server_port(server);
    rpc_channel_t *channel = net_test_channel(io, server);
    rpc_server_close(server, 0);
    buffer_t reply = {0};
    uint64_t start = clock_ms();
    assert_int_equal(rpc_unary_wait(channel, "/test.Echo/Unary", "x", 1, 15000, &reply),
                     STATUS_UNREACHABLE);
    assert_in_range(clock_ms() - start, 0, 3000);
    assert_int_equal(rpc_channel_wait_ready(channel, 300), STATUS_UNREACHABLE);
    char *listen = mem_format("127.0.0.1:%u", port);
    rpc_server_options_t options = {.listen = listen};
    server = net_test_server(io, &options);
    assert_int_equal(rpc_channel_wait_ready(channel, 10000), STATUS_OK);
    assert_int_equal(rpc_channel_state(channel), RPC_READY);
    assert_int_equal(rpc_unary_wait(channel, "/test.Echo/Unary", "x", 1, 5000, &reply), STATUS_OK);
    /* A port that is taken is an error that names it. */
    rpc_server_t *second;
    rpc_server_options_t same = {.listen = listen};
    assert_int_equal(rpc_server_open(io, &same, &second), STATUS_IO);
    assert_non_null(strstr(status_text(), listen));
    free(listen);
    buffer_release(&reply);
    rpc_channel_close(channel);
    rpc_server_close(server, 0);
    rpc_io_close(io);
}

static void test_a_unix_socket_serves_too_and_bad_endpoints_are_refused(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof seen);
    char dir[] = "/tmp/shoal_rpc_XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = mem_format("unix:%s/socket", dir);
    rpc_io_t *io = net_test_io();
    rpc_server_options_t options = {.listen = path};
    rpc_server_t *server = net_test_server(io, &options);
    rpc_channel_t *channel;
    rpc_channel_options_t to = {.endpoint = path};
    assert_int_equal(rpc_channel_open(io, &to, &channel), STATUS_OK);
    buffer_t reply = {0};
    assert_int_equal(rpc_unary_wait(channel, "/test.Echo/Unary", "x", 1, 5000, &reply), STATUS_OK);
    buffer_release(&reply);
    rpc_channel_close(channel);
    rpc_server_close(server, 0);
    const char *bad[] = {"", "nowhere", "host:", "host:0", "host:99999", "https://a:1", "unix:",
                         ":80", "a b:80"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        to.endpoint = bad[i];
        assert_int_equal(rpc_channel_open(io, &to, &channel), STATUS_INVALID);
    }
    rpc_io_close(io);
    unlink(path + 5);
    rmdir(dir);
    free(path);
}

/* Writes raw bytes to the server's port and waits until it hangs up or has answered something. */
static void throw_bytes(unsigned port, const void *bytes, size_t n)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct timeval soon = {.tv_usec = 200000};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)(void *)&to, sizeof to), 0);
    assert_true(write(fd, bytes, n) >= 0);
    char answer[256];
    ssize_t got = read(fd, answer, sizeof answer);
    (void)got; /* whatever it says, it must live on */
    close(fd);
}

static void test_garbage_on_the_socket_harms_nobody(void **state)
{
    (void)state;
    world_t world = open_world(NULL);
    unsigned port = rpc_server_port(world.server);
    throw_bytes(port, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27);
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                                  "\xff\xff\xff\x00\x00\x00\x00\x00\x01garbage";
    throw_bytes(port, preface, sizeof preface - 1);
    throw_bytes(port, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 28);
    buffer_t reply = {0};
    assert_int_equal(rpc_unary_wait(world.channel, "/test.Echo/Unary", "x", 1, 5000, &reply),
                     STATUS_OK);
    buffer_release(&reply);
    close_world(&world);
}

static void test_every_status_survives_the_way_over_the_wire(void **state)
{
    (void)state;
    for (int i = STATUS_OK; i <= STATUS_INTERNAL; i++) {
        if (strcmp(status_name((status_t)i), "UNKNOWN") == 0)
            continue;
        int code = rpc_code_from_status((status_t)i);
        assert_in_range(code, 0, 16);
        assert_int_equal(code == 0, i == STATUS_OK);
        assert_int_equal(rpc_code_from_status(rpc_status_from_code(code)), code);
    }
    assert_int_equal(rpc_status_from_code(11), STATUS_INVALID);
    assert_int_equal(rpc_status_from_code(99), STATUS_INTERNAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_unary_call_brings_the_answer),
        cmocka_unit_test(test_a_failure_keeps_its_status_words_and_metadata),
        cmocka_unit_test(test_a_status_that_grpc_cannot_tell_apart_is_restored_exactly),
        cmocka_unit_test(test_trailing_metadata_reaches_the_callback),
        cmocka_unit_test(test_metadata_peer_method_and_deadline_are_known_to_the_server),
        cmocka_unit_test(test_an_unknown_method_is_refused_at_once),
        cmocka_unit_test(test_a_deadline_ends_the_call_on_both_sides),
        cmocka_unit_test(test_a_server_knows_a_deadline_that_nobody_tells_it_of),
        cmocka_unit_test(test_a_cancel_reaches_the_server),
        cmocka_unit_test(test_a_message_over_the_limit_is_refused_on_both_sides),
        cmocka_unit_test(test_calls_over_the_maximum_get_a_time_to_come_back),
        cmocka_unit_test(test_a_thousand_calls_in_parallel_each_get_their_own_answer),
        cmocka_unit_test(test_closing_ends_every_call_exactly_once),
        cmocka_unit_test(test_a_channel_that_closes_cancels_its_calls),
        cmocka_unit_test(test_nobody_there_is_told_at_once_and_a_server_that_comes_is_found),
        cmocka_unit_test(test_a_unix_socket_serves_too_and_bad_endpoints_are_refused),
        cmocka_unit_test(test_garbage_on_the_socket_harms_nobody),
        cmocka_unit_test(test_every_status_survives_the_way_over_the_wire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
