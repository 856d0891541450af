/* Streams: order, flow control, half-close, cancellation, slow readers, health. */
#include "net_test.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"
#include "common/net/rpc_message.h"
#include "grpc/health/v1/health.pb-c.h"

typedef struct {
    rpc_io_t *io;
    rpc_server_t *server;
    rpc_channel_t *channel;
} world_t;

static world_t open_world(void)
{
    memset(&seen, 0, sizeof seen);
    world_t world = {.io = net_test_io()};
    world.server = net_test_server(world.io, NULL);
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

static rpc_stream_t *open_stream(world_t *world, const char *method)
{
    rpc_stream_t *stream;
    assert_int_equal(rpc_stream_open(world->channel, method, 0, &stream), STATUS_OK);
    return stream;
}

static void test_a_server_stream_arrives_whole_and_in_order(void **state)
{
    (void)state;
    world_t world = open_world();
    rpc_stream_t *stream = open_stream(&world, "/test.Echo/Count");
    assert_int_equal(rpc_stream_send(stream, "2000 100", 8), STATUS_OK);
    rpc_stream_half_close(stream);
    buffer_t message = {0};
    bool ended;
    for (size_t left = 2000; left; left--) {
        assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
        assert_false(ended);
        assert_int_equal(message.size, 100);
        assert_int_equal(strtoul(buffer_text(&message), NULL, 10), left);
    }
    assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
    assert_true(ended);
    buffer_release(&message);
    rpc_stream_close(stream);
    close_world(&world);
}

static void test_a_client_stream_is_answered_at_its_half_close(void **state)
{
    (void)state;
    world_t world = open_world();
    rpc_stream_t *stream = open_stream(&world, "/test.Echo/Sum");
    static char bytes[5000];
    for (size_t i = 0; i < 400; i++)
        assert_int_equal(rpc_stream_send(stream, bytes, sizeof bytes), STATUS_OK);
    rpc_stream_half_close(stream);
    buffer_t message = {0};
    bool ended;
    assert_int_equal(rpc_stream_read(stream, 10000, &message, &ended), STATUS_OK);
    assert_string_equal(buffer_text(&message), "2000000");
    assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
    assert_true(ended);
    assert_int_equal(rpc_stream_send(stream, bytes, 1), STATUS_CANCELLED);
    buffer_release(&message);
    rpc_stream_close(stream);
    close_world(&world);
}

static void test_a_cut_client_stream_is_not_taken_for_a_finished_one(void **state)
{
    (void)state;
    world_t world = open_world();
    for (unsigned i = 0; i < 20; i++) {
        rpc_stream_t *stream = open_stream(&world, "/test.Echo/Sum");
        assert_int_equal(rpc_stream_send(stream, "abc", 3), STATUS_OK);
        wait_for(seen.messages == i + 1);
        rpc_stream_close(stream);
        wait_for(seen.ended == i + 1);
    }
    assert_int_equal(seen.cancelled, 20);
    assert_int_equal(seen.half_closed, 0);
    close_world(&world);
}

static void test_both_sides_of_a_bidi_stream_talk_at_once(void **state)
{
    (void)state;
    world_t world = open_world();
    rpc_stream_t *stream = open_stream(&world, "/test.Echo/Chat");
    buffer_t message = {0};
    bool ended;
    for (unsigned i = 0; i < 500; i++) {
        assert_int_equal(rpc_stream_send(stream, &i, sizeof i), STATUS_OK);
        if (i % 2)
            continue;
        assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
    }
    rpc_stream_half_close(stream);
    for (unsigned i = 250; i < 500; i++) {
        assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
        assert_int_equal(message.size, sizeof i);
        assert_memory_equal(message.data, &i, sizeof i);
    }
    assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
    assert_true(ended);
    buffer_release(&message);
    rpc_stream_close(stream);
    close_world(&world);
}

/* Of 400 messages there and back. gRPC may be at work for the call on another thread now and then; the
 * rule is that the sender hears at once that its message was written. */
static void test_a_message_that_is_written_at_once_wakes_no_thread(void **state)
{
    (void)state;
    world_t world = open_world();
    rpc_stream_t *stream = open_stream(&world, "/test.Echo/Chat");
    buffer_t message = {0};
    bool ended;
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(rpc_stream_send(stream, &i, sizeof i), STATUS_OK);
        assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
        assert_memory_equal(message.data, &i, sizeof i);
    }
    assert_in_range(atomic_load(&world.io->n_caught), 200, 410);
    buffer_release(&message);
    rpc_stream_close(stream);
    close_world(&world);
}

static void test_a_slow_reader_stops_the_sender_and_costs_no_memory(void **state)
{
    (void)state;
    world_t world = open_world();
    rpc_stream_t *stream = open_stream(&world, "/test.Echo/Count");
    size_t before = mallinfo2().uordblks;
    /* 20,000 messages of 10 kB: 200 MB, of which almost nothing may be on the way. */
    assert_int_equal(rpc_stream_send(stream, "20000 10000", 11), STATUS_OK);
    rpc_stream_half_close(stream);
    wait_for(seen.refused_sends > 0);
    usleep(200000); /* time for a sender that does not stop to give itself away */
    size_t sent = seen.sent_messages;
    assert_in_range(sent, 1, 1500);
    assert_in_range(mallinfo2().uordblks, 0, before + (24u << 20));
    /* And it goes on as it is read. */
    buffer_t message = {0};
    bool ended;
    for (size_t i = 0; i < 3000; i++)
        assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_OK);
    wait_for(seen.sent_messages > sent);
    assert_in_range(mallinfo2().uordblks, 0, before + (24u << 20));
    buffer_release(&message);
    rpc_stream_close(stream);
    wait_for(seen.ended == 1);
    assert_int_equal(seen.cancelled, 1);
    close_world(&world);
}

static atomic_uint got_messages, got_end;
static void granted_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    (void)call;
    (void)context;
    (void)bytes;
    (void)n;
    atomic_fetch_add(&got_messages, 1);
}
static void granted_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    (void)context;
    (void)result;
    atomic_fetch_add(&got_end, 1);
}

static void test_a_manual_reader_gets_just_the_messages_it_grants(void **state)
{
    (void)state;
    world_t world = open_world();
    atomic_store(&got_messages, 0);
    atomic_store(&got_end, 0);
    rpc_call_options_t options = {.method = "/test.Echo/Count",
                                  .manual_read = true,
                                  .handlers = {.on_message = granted_message,
                                               .on_end = granted_end}};
    rpc_call_t *call;
    assert_int_equal(rpc_call_start(world.channel, &options, &call), STATUS_OK);
    assert_int_equal(rpc_call_send(call, "10 5", 4), STATUS_OK);
    rpc_call_half_close(call);
    rpc_call_read(call, 3);
    wait_for(got_messages == 3);
    usleep(50000);
    assert_int_equal(got_messages, 3);
    assert_int_equal(got_end, 0);
    rpc_call_read(call, 100);
    wait_for(got_end == 1);
    assert_int_equal(got_messages, 10);
    rpc_call_unref(call);
    close_world(&world);
}

static void test_a_reader_can_be_woken_and_a_wait_can_time_out(void **state)
{
    (void)state;
    world_t world = open_world();
    rpc_stream_t *stream = open_stream(&world, "/test.Echo/Chat");
    buffer_t message = {0};
    bool ended;
    assert_int_equal(rpc_stream_read(stream, 50, &message, &ended), STATUS_TIMEOUT);
    rpc_stream_cancel(stream);
    assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_CANCELLED);
    rpc_stream_close(stream);
    stream = open_stream(&world, "/test.Echo/Nothing");
    assert_int_equal(rpc_stream_read(stream, 5000, &message, &ended), STATUS_UNSUPPORTED);
    rpc_stream_close(stream);
    buffer_release(&message);
    close_world(&world);
}

static Grpc__Health__V1__HealthCheckResponse__ServingStatus health_in(const buffer_t *bytes)
{
    ProtobufCMessage *message;
    assert_int_equal(rpc_unpack(&grpc__health__v1__health_check_response__descriptor, bytes->data,
                                bytes->size, NULL, &message),
                     STATUS_OK);
    Grpc__Health__V1__HealthCheckResponse__ServingStatus status =
        ((Grpc__Health__V1__HealthCheckResponse *)message)->status;
    rpc_message_free(message);
    return status;
}

static void test_health_is_checked_and_watched(void **state)
{
    (void)state;
    world_t world = open_world();
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    char service[] = "test.Echo";
    request.service = service;
    buffer_t bytes = {0};
    buffer_t reply = {0};
    rpc_pack(&request, &bytes);
    rpc_stream_t *stream = open_stream(&world, "/grpc.health.v1.Health/Watch");
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    bool ended;
    assert_int_equal(rpc_stream_read(stream, 5000, &reply, &ended), STATUS_OK);
    assert_int_equal(health_in(&reply), 1);
    rpc_server_set_serving(world.server, "test.Echo", false);
    assert_int_equal(rpc_stream_read(stream, 5000, &reply, &ended), STATUS_OK);
    assert_int_equal(health_in(&reply), 2);
    buffer_clear(&reply);
    assert_int_equal(rpc_unary_wait(world.channel, "/grpc.health.v1.Health/Check", bytes.data,
                                    bytes.size, 5000, &reply),
                     STATUS_OK);
    assert_int_equal(health_in(&reply), 2);
    char nobody[] = "test.Nobody";
    request.service = nobody;
    buffer_clear(&bytes);
    rpc_pack(&request, &bytes);
    assert_int_equal(rpc_unary_wait(world.channel, "/grpc.health.v1.Health/Check", bytes.data,
                                    bytes.size, 5000, &reply),
                     STATUS_NOT_FOUND);
    /* A closing server ends the watch by itself, well within its grace. */
    uint64_t start = clock_ms();
    rpc_server_close(world.server, 10000);
    assert_in_range(clock_ms() - start, 0, 5000);
    assert_int_equal(rpc_stream_read(stream, 5000, &reply, &ended), STATUS_UNREACHABLE);
    rpc_stream_close(stream);
    rpc_channel_close(world.channel);
    rpc_io_close(world.io);
    buffer_release(&bytes);
    buffer_release(&reply);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_server_stream_arrives_whole_and_in_order),
        cmocka_unit_test(test_a_client_stream_is_answered_at_its_half_close),
        cmocka_unit_test(test_a_cut_client_stream_is_not_taken_for_a_finished_one),
        cmocka_unit_test(test_both_sides_of_a_bidi_stream_talk_at_once),
        cmocka_unit_test(test_a_message_that_is_written_at_once_wakes_no_thread),
        cmocka_unit_test(test_a_slow_reader_stops_the_sender_and_costs_no_memory),
        cmocka_unit_test(test_a_manual_reader_gets_just_the_messages_it_grants),
        cmocka_unit_test(test_a_reader_can_be_woken_and_a_wait_can_time_out),
        cmocka_unit_test(test_health_is_checked_and_watched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
