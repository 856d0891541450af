/* What arrives as protobuf is checked before it is unpacked: truncations, garbage, bombs. */
#include "net_test.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "etcd/rpc.pb-c.h"
#include "shoal/v1/inference.pb-c.h"
#include "shoal/v1/jobs.pb-c.h"

static const ProtobufCMessageDescriptor *const request_type =
    &shoal__v1__generate_request__descriptor;

/* A request with something in every corner. */
static void make_request(buffer_t *bytes)
{
    Shoal__V1__GenerateRequest request = SHOAL__V1__GENERATE_REQUEST__INIT;
    Shoal__V1__Message parts[2] = {SHOAL__V1__MESSAGE__INIT, SHOAL__V1__MESSAGE__INIT};
    char user[] = "user";
    char content[] = "h\xc3\xa9llo \xf0\x9f\x90\x9f";
    Shoal__V1__Message *pointers[2] = {&parts[0], &parts[1]};
    for (size_t i = 0; i < 2; i++) {
        parts[i].role = user;
        parts[i].content = content;
    }
    Shoal__V1__Messages messages = SHOAL__V1__MESSAGES__INIT;
    messages.n_messages = 2;
    messages.messages = pointers;
    Shoal__V1__Sampling sampling = SHOAL__V1__SAMPLING__INIT;
    uint32_t stops[3] = {1, 200, 40000};
    sampling.n_stop_ids = 3;
    sampling.stop_ids = stops;
    sampling.has_temperature_case = SHOAL__V1__SAMPLING__HAS_TEMPERATURE_TEMPERATURE;
    sampling.temperature = 0.8f;
    request.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_MESSAGES;
    request.messages = &messages;
    request.sampling = &sampling;
    request.deadline_ms = 123456789;
    rpc_pack(&request, bytes);
}

static status_t unpack(const void *bytes, size_t n, const rpc_limits_t *limits)
{
    ProtobufCMessage *message = NULL;
    status_t status = rpc_unpack(request_type, bytes, n, limits, &message);
    rpc_message_free(message);
    return status;
}

static void test_a_message_survives_the_round_trip(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    make_request(&bytes);
    ProtobufCMessage *message;
    assert_int_equal(rpc_unpack(request_type, bytes.data, bytes.size, NULL, &message), STATUS_OK);
    Shoal__V1__GenerateRequest *request = (Shoal__V1__GenerateRequest *)message;
    assert_int_equal(request->messages->n_messages, 2);
    assert_string_equal(request->messages->messages[1]->content, "h\xc3\xa9llo \xf0\x9f\x90\x9f");
    assert_int_equal(request->sampling->n_stop_ids, 3);
    assert_int_equal(request->sampling->stop_ids[2], 40000);
    assert_int_equal(request->deadline_ms, 123456789);
    buffer_t again = {0};
    rpc_pack(request, &again);
    assert_int_equal(again.size, bytes.size);
    assert_memory_equal(again.data, bytes.data, bytes.size);
    rpc_message_free(message);
    buffer_release(&again);
    buffer_release(&bytes);
}

static void test_every_truncation_and_every_changed_byte_is_survived(void **state)
{
    (void)state;
    buffer_t bytes = {0};
    make_request(&bytes);
    size_t refused = 0;
    for (size_t n = 0; n < bytes.size; n++) {
        /* A copy of just that size, so that a read past its end is seen by the sanitizer. */
        uint8_t *cut = mem_new(n ? n : 1, 1);
        memcpy(cut, bytes.data, n);
        refused += unpack(cut, n, NULL) == STATUS_INVALID;
        free(cut);
    }
    assert_in_range(refused, bytes.size * 3 / 4, bytes.size);
    uint32_t random = 7;
    for (size_t i = 0; i < 20000; i++) {
        uint8_t *copy = mem_new(bytes.size, 1);
        memcpy(copy, bytes.data, bytes.size);
        for (unsigned changes = 0; changes < 1 + i % 4; changes++) {
            random = random * 1664525 + 1013904223;
            copy[random % bytes.size] = (uint8_t)(random >> 24);
        }
        status_t status = unpack(copy, bytes.size, NULL);
        assert_true(status == STATUS_OK || status == STATUS_INVALID);
        free(copy);
    }
    buffer_release(&bytes);
}

static void expect_refused(const void *bytes, size_t n, const char *words)
{
    assert_int_equal(unpack(bytes, n, NULL), STATUS_INVALID);
    if (!strstr(status_text(), words))
        print_error("\"%s\" lacks \"%s\"\n", status_text(), words);
    assert_non_null(strstr(status_text(), words));
}

#define REFUSED(bytes, words) expect_refused(bytes, sizeof(bytes) - 1, words)

static void test_malformed_wire_bytes_are_refused_by_name(void **state)
{
    (void)state;
    REFUSED("\x00", "no valid field");                              /* field number 0 */
    REFUSED("\x80\x80\x80\x80\x20\x00", "no valid field");          /* number 2^29 */
    REFUSED("\x0e", "no valid field");                              /* wire type 6 */
    REFUSED("\x0f", "no valid field");
    REFUSED("\x0b\x0c", "no valid field");                          /* a group */
    REFUSED("\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no valid field"); /* 11 bytes */
    REFUSED("\x38\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "no valid field"); /* over 64 bits */
    REFUSED("\x0a\x05" "abc", "no valid field");                    /* length past the end */
    REFUSED("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x", "no valid field");
    REFUSED("\x08\x01", "GenerateRequest.model: wire type 0");      /* a string as a number */
    REFUSED("\x0a\x01\xff", "GenerateRequest.model: the text");     /* UTF-8 */
    REFUSED("\x0a\x02\xc0\x80", "UTF-8");                           /* an overlong NUL */
    REFUSED("\x0a\x03\xed\xa0\x80", "UTF-8");                       /* a surrogate */
    REFUSED("\x0a\x04\xf4\x90\x80\x80", "UTF-8");                   /* past U+10FFFF */
    REFUSED("\x0a\x01\xc3", "UTF-8");                               /* cut character */
    REFUSED("\x0a\x03" "a\0b", "NUL");
    REFUSED("\x2a\x03\x5a\x01\x80", "Sampling.stop_ids: the packed");
    /* An enumerator that we do not know and a field that we do not know are no errors. */
    assert_int_equal(unpack("\xf8\x7f\x05", 3, NULL), STATUS_OK);
}

static void test_the_last_of_a_oneof_given_twice_wins(void **state)
{
    (void)state;
    ProtobufCMessage *message;
    const char bytes[] = "\x12\x01" "a" "\x1a\x00" "\x12\x01" "b";
    assert_int_equal(rpc_unpack(request_type, bytes, sizeof bytes - 1, NULL, &message), STATUS_OK);
    Shoal__V1__GenerateRequest *request = (Shoal__V1__GenerateRequest *)message;
    assert_int_equal(request->input_case, SHOAL__V1__GENERATE_REQUEST__INPUT_PROMPT);
    assert_string_equal(request->prompt, "b");
    rpc_message_free(message);
}

static void test_bombs_are_refused_before_they_are_unpacked(void **state)
{
    (void)state;
    /* 2 MB of empty items would be 80 MB of structs. */
    size_t n = 1000000;
    buffer_t bytes = {0};
    for (size_t i = 0; i < n; i++)
        buffer_append(&bytes, "\x12\x00", 2);
    ProtobufCMessage *message;
    assert_int_equal(rpc_unpack(&shoal__v1__create_job_request__descriptor, bytes.data, bytes.size,
                                NULL, &message),
                     STATUS_INVALID);
    assert_non_null(strstr(status_text(), "CreateJobRequest.items"));
    rpc_limits_t limits = rpc_limits_default;
    limits.messages_max = 10;
    assert_int_equal(rpc_unpack(&shoal__v1__create_job_request__descriptor, bytes.data, 22, &limits,
                                &message),
                     STATUS_INVALID);
    assert_int_equal(rpc_unpack(&shoal__v1__create_job_request__descriptor, bytes.data, 20, &limits,
                                &message),
                     STATUS_OK);
    rpc_message_free(message);
    /* Too long, too many elements, too deep. */
    limits = rpc_limits_default;
    limits.bytes_max = 19;
    assert_int_equal(unpack(bytes.data, 20, &limits), STATUS_INVALID);
    buffer_clear(&bytes);
    make_request(&bytes);
    limits = rpc_limits_default;
    limits.elements_max = 5;
    assert_int_equal(unpack(bytes.data, bytes.size, &limits), STATUS_OK);
    limits.elements_max = 4;
    assert_int_equal(unpack(bytes.data, bytes.size, &limits), STATUS_INVALID);
    limits = rpc_limits_default;
    limits.depth_max = 3;
    assert_int_equal(unpack(bytes.data, bytes.size, &limits), STATUS_OK);
    limits.depth_max = 2;
    assert_int_equal(unpack(bytes.data, bytes.size, &limits), STATUS_INVALID);
    assert_non_null(strstr(status_text(), "nested deeper than 2"));
    buffer_release(&bytes);
}

static void test_garbage_to_a_typed_method_is_an_invalid_argument(void **state)
{
    (void)state;
    rpc_io_t *io = net_test_io();
    rpc_server_t *server = net_test_server(io, NULL);
    rpc_channel_t *channel = net_test_channel(io, server);
    buffer_t reply = {0};
    assert_int_equal(rpc_unary_wait(channel, "/grpc.health.v1.Health/Check", "\x0a\xff", 2, 5000,
                                    &reply),
                     STATUS_INVALID);
    assert_non_null(strstr(status_text(), "HealthCheckRequest"));
    rpc_stream_t *stream;
    bool ended;
    assert_int_equal(rpc_stream_open(channel,
                                     "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 0,
                                     &stream),
                     STATUS_OK);
    assert_int_equal(rpc_stream_send(stream, "\x0f\x0f", 2), STATUS_OK);
    assert_int_equal(rpc_stream_read(stream, 5000, &reply, &ended), STATUS_INVALID);
    rpc_stream_close(stream);
    buffer_release(&reply);
    rpc_channel_close(channel);
    rpc_server_close(server, 0);
    rpc_io_close(io);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_message_survives_the_round_trip),
        cmocka_unit_test(test_every_truncation_and_every_changed_byte_is_survived),
        cmocka_unit_test(test_malformed_wire_bytes_are_refused_by_name),
        cmocka_unit_test(test_the_last_of_a_oneof_given_twice_wins),
        cmocka_unit_test(test_bombs_are_refused_before_they_are_unpacked),
        cmocka_unit_test(test_garbage_to_a_typed_method_is_an_invalid_argument),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
