/* Many readers of one job: what they see, and that Redis is not asked once a reader. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "shoal/v1/jobs.pb-c.h"
#include "tests/unit/shell/client.h"

#include <cmocka.h>

enum { WATCHERS = 40, MANY = 40000 };

static rpc_stream_t *watch(const char *id, uint64_t after)
{
    Shoal__V1__WatchJobRequest request = SHOAL__V1__WATCH_JOB_REQUEST__INIT;
    char copy[33];
    snprintf(copy, sizeof copy, "%s", id);
    request.id = copy;
    request.after_version = after;
    buffer_t bytes = {0};
    rpc_pack(&request, &bytes);
    rpc_stream_t *stream;
    assert_int_equal(rpc_stream_open(client_channel, "/shoal.v1.Jobs/Watch", 60000, &stream),
                     STATUS_OK);
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    rpc_stream_half_close(stream);
    buffer_release(&bytes);
    return stream;
}

/* The next snapshot's state; -1 at the end of the stream. */
static int next_state(rpc_stream_t *stream, uint64_t timeout_ms, uint64_t *version_out)
{
    buffer_t bytes = {0};
    bool ended = false;
    int state = -1;
    assert_int_equal(rpc_stream_read(stream, timeout_ms, &bytes, &ended), STATUS_OK);
    if (!ended) {
        ProtobufCMessage *job;
        assert_int_equal(
            rpc_unpack(&shoal__v1__job__descriptor, bytes.data, bytes.size, NULL, &job), STATUS_OK);
        state = (int)((Shoal__V1__Job *)job)->state;
        *version_out = ((Shoal__V1__Job *)job)->version;
        rpc_message_free(job);
    }
    buffer_release(&bytes);
    return state;
}

/* Calls of our functions that Redis has served so far. */
static unsigned long calls(void)
{
    char command[256];
    unsigned long n = 0;
    snprintf(command, sizeof command,
             "redis-cli -s '%s' info commandstats | "
             "sed -n 's/^cmdstat_fcall:calls=\\([0-9]*\\),.*/\\1/p'",
             client_stage.redis + 5);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    assert_int_equal(fscanf(out, "%lu", &n), 1);
    pclose(out);
    return n;
}

static void test_watchers_of_one_job_share_one_look_and_all_see_its_end(void **state)
{
    (void)state;
    char id[33];
    uint64_t version = 0;
    rpc_stream_t *streams[WATCHERS];
    assert_int_equal(client_create(client_lines, 3, "", id), STATUS_OK);
    for (size_t i = 0; i < WATCHERS; i++)
        streams[i] = watch(id, 0);
    for (size_t i = 0; i < WATCHERS; i++)
        assert_int_equal(next_state(streams[i], 10000, &version), SHOAL__V1__JOB__STATE__QUEUED);
    unsigned long before = calls();
    nanosleep(&(struct timespec){.tv_sec = 2}, NULL); /* a rate is measured */
    unsigned long rate = calls() - before;
    if (rate > 8) /* 40 watchers of their own would make 400; 200 ms without slowing down 11 */
        fail_msg("%lu calls in 2 s for %d watchers of a job that does not change", rate, WATCHERS);
    assert_int_equal(client_job_call("/shoal.v1.Jobs/Cancel", id, NULL), STATUS_OK);
    uint64_t until = clock_ms() + 6000;
    for (size_t i = 0; i < WATCHERS; i++) {
        uint64_t last = version;
        assert_int_equal(next_state(streams[i], 10000, &last), SHOAL__V1__JOB__STATE__CANCELLED);
        assert_true(last > version);
        assert_int_equal(next_state(streams[i], 10000, &last), -1);
        rpc_stream_close(streams[i]);
    }
    assert_true(clock_ms() < until);
    /* Who comes after the end, knowing all or nothing, is told at once. */
    rpc_stream_t *late = watch(id, 0);
    assert_int_equal(next_state(late, 10000, &version), SHOAL__V1__JOB__STATE__CANCELLED);
    assert_int_equal(next_state(late, 10000, &version), -1);
    rpc_stream_close(late);
}

static void test_watchers_that_leave_are_forgotten_and_a_deleted_job_ends_the_rest(void **state)
{
    (void)state;
    char id[33];
    uint64_t version = 0;
    assert_int_equal(client_create(client_lines, 1, "", id), STATUS_OK);
    rpc_stream_t *stays = watch(id, 0);
    for (size_t i = 0; i < 8; i++) {
        rpc_stream_t *leaves = watch(id, 0);
        if (i % 2)
            assert_int_equal(next_state(leaves, 10000, &version), SHOAL__V1__JOB__STATE__QUEUED);
        rpc_stream_close(leaves);
    }
    assert_int_equal(next_state(stays, 10000, &version), SHOAL__V1__JOB__STATE__QUEUED);
    Shoal__V1__DeleteJobRequest delete = SHOAL__V1__DELETE_JOB_REQUEST__INIT;
    delete.id = id;
    ProtobufCMessage *reply;
    assert_int_equal(client_call("/shoal.v1.Jobs/Delete", &delete,
                                 &shoal__v1__delete_job_response__descriptor, &reply),
                     STATUS_OK);
    rpc_message_free(reply);
    buffer_t bytes = {0};
    bool ended = false;
    assert_int_equal(rpc_stream_read(stays, 10000, &bytes, &ended), STATUS_NOT_FOUND);
    assert_non_null(strstr(status_text(), id));
    rpc_stream_close(stays);
    rpc_stream_t *unknown = watch("0123456789abcdef0123456789abcdef", 0);
    assert_int_equal(rpc_stream_read(unknown, 10000, &bytes, &ended), STATUS_NOT_FOUND);
    rpc_stream_close(unknown);
    buffer_release(&bytes);
}

/* Submits MANY items and cancels them; their results are then as many. */
static void make_many(char id_out[33])
{
    rpc_stream_t *stream;
    assert_int_equal(rpc_stream_open(client_channel, "/shoal.v1.Jobs/Submit", 60000, &stream),
                     STATUS_OK);
    Shoal__V1__JobHeader header = SHOAL__V1__JOB_HEADER__INIT;
    Shoal__V1__SubmitJobRequest first = SHOAL__V1__SUBMIT_JOB_REQUEST__INIT;
    first.message_case = SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_OPEN;
    first.open = &header;
    buffer_t bytes = {0};
    rpc_pack(&first, &bytes);
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    static Shoal__V1__Item items[1000], *list[1000];
    static char lines[1000][256];
    for (unsigned at = 0; at < MANY; at += 1000) {
        for (unsigned i = 0; i < 1000; i++) {
            int n = snprintf(lines[i], sizeof lines[i],
                             "{\"custom_id\":\"%0100u\",\"prompt\":\"x\"}", at + i);
            shoal__v1__item__init(&items[i]);
            items[i].input_case = SHOAL__V1__ITEM__INPUT_BODY_JSON;
            items[i].body_json = (ProtobufCBinaryData){(size_t)n, (uint8_t *)lines[i]};
            list[i] = &items[i];
        }
        Shoal__V1__ItemChunk chunk = SHOAL__V1__ITEM_CHUNK__INIT;
        Shoal__V1__SubmitJobRequest next = SHOAL__V1__SUBMIT_JOB_REQUEST__INIT;
        next.message_case = SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_CHUNK;
        next.chunk = &chunk;
        chunk.items = list;
        chunk.n_items = 1000;
        buffer_clear(&bytes);
        rpc_pack(&next, &bytes);
        if (rpc_stream_send(stream, bytes.data, bytes.size) != STATUS_OK)
            fail_msg("Submit: %s", status_text());
    }
    rpc_stream_half_close(stream);
    bool ended = false;
    assert_int_equal(rpc_stream_read(stream, 30000, &bytes, &ended), STATUS_OK);
    ProtobufCMessage *job;
    assert_int_equal(rpc_unpack(&shoal__v1__job__descriptor, bytes.data, bytes.size, NULL, &job),
                     STATUS_OK);
    snprintf(id_out, 33, "%s", ((Shoal__V1__Job *)job)->id);
    rpc_message_free(job);
    rpc_stream_close(stream);
    buffer_release(&bytes);
    assert_int_equal(client_job_call("/shoal.v1.Jobs/Cancel", id_out, NULL), STATUS_OK);
}

static rpc_stream_t *results(char id[33], bool follow)
{
    Shoal__V1__StreamResultsRequest request = SHOAL__V1__STREAM_RESULTS_REQUEST__INIT;
    request.id = id;
    request.follow = follow;
    buffer_t bytes = {0};
    rpc_pack(&request, &bytes);
    rpc_stream_t *stream;
    assert_int_equal(
        rpc_stream_open(client_channel, "/shoal.v1.Jobs/StreamResults", 60000, &stream), STATUS_OK);
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    rpc_stream_half_close(stream);
    buffer_release(&bytes);
    return stream;
}

static void test_a_reader_that_stands_still_gets_every_result_once_it_reads_on(void **state)
{
    (void)state;
    char id[33];
    make_many(id);
    rpc_stream_t *stream = results(id, true);
    /* Until the coordinator has stopped: the stream's queue is full, and nothing is read. */
    unsigned long last = 0;
    for (unsigned long now = calls(); now > last + 8; now = calls()) {
        last = now;
        nanosleep(&(struct timespec){.tv_nsec = 400000000}, NULL);
    }
    buffer_t bytes = {0};
    bool ended = false;
    uint64_t n = 0;
    while (rpc_stream_read(stream, 20000, &bytes, &ended) == STATUS_OK && !ended) {
        ProtobufCMessage *message;
        assert_int_equal(rpc_unpack(&shoal__v1__item_result__descriptor, bytes.data, bytes.size,
                                    NULL, &message),
                         STATUS_OK);
        assert_int_equal(((Shoal__V1__ItemResult *)message)->completion, ++n);
        rpc_message_free(message);
    }
    assert_true(ended);
    assert_int_equal(n, MANY);
    rpc_stream_close(stream);
    buffer_release(&bytes);
}

static void test_a_coordinator_that_ends_lets_its_readers_go(void **state)
{
    (void)state;
    char id[33];
    uint64_t version;
    assert_int_equal(client_create(client_lines, 2, "", id), STATUS_OK);
    rpc_stream_t *watcher = watch(id, 0), *reader = results(id, true);
    assert_int_equal(next_state(watcher, 10000, &version), SHOAL__V1__JOB__STATE__QUEUED);
    kill(client_coordinator, SIGTERM);
    assert_int_equal(stage_wait_exit(client_coordinator, 20000), 0); /* with sanitizers: no leak */
    buffer_t bytes = {0};
    bool ended = false;
    assert_int_not_equal(rpc_stream_read(watcher, 10000, &bytes, &ended), STATUS_OK);
    assert_int_not_equal(rpc_stream_read(reader, 10000, &bytes, &ended), STATUS_OK);
    rpc_stream_close(watcher);
    rpc_stream_close(reader);
    buffer_release(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watchers_of_one_job_share_one_look_and_all_see_its_end),
        cmocka_unit_test(test_watchers_that_leave_are_forgotten_and_a_deleted_job_ends_the_rest),
        cmocka_unit_test(test_a_reader_that_stands_still_gets_every_result_once_it_reads_on),
        cmocka_unit_test(test_a_coordinator_that_ends_lets_its_readers_go),
    };
    return cmocka_run_group_tests(tests, client_begin, client_end);
}
