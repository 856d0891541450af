/* The coordinator program without any host: intake and its refusals, jobs as a whole, which
 * cluster, start without stores, drain. What needs hosts is in tests/cluster. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "shoal/v1/admin.pb-c.h"
#include "shoal/v1/inference.pb-c.h"
#include "shoal/v1/jobs.pb-c.h"
#include "tests/unit/shell/client.h"

#include <cmocka.h>

static rpc_stream_t *open_stream(const char *method)
{
    rpc_stream_t *stream;
    assert_int_equal(rpc_stream_open(client_channel, method, 30000, &stream), STATUS_OK);
    return stream;
}

/* ---- intake ---- */

static void test_a_job_is_taken_listed_and_the_same_for_the_same_key(void **state)
{
    (void)state;
    char first[33], again[33];
    assert_int_equal(client_create(client_lines, 3, "k", first), STATUS_OK);
    assert_int_equal(client_create(client_lines, 3, "k", again), STATUS_OK);
    assert_string_equal(first, again);
    assert_int_equal(client_create(client_lines, 2, "k", again), STATUS_CONFLICT);
    Shoal__V1__Job *job;
    assert_int_equal(client_job_call("/shoal.v1.Jobs/Get", first, &job), STATUS_OK);
    assert_string_equal(job->model, "smol");
    assert_int_equal(job->state, SHOAL__V1__JOB__STATE__QUEUED);
    assert_int_equal(job->counts->total, 3);
    rpc_message_free(job);
    char second[33];
    assert_int_equal(client_create(client_lines, 1, "", second), STATUS_OK);
    Shoal__V1__ListJobsRequest request = SHOAL__V1__LIST_JOBS_REQUEST__INIT;
    request.page_size = 1;
    ProtobufCMessage *page;
    assert_int_equal(client_call("/shoal.v1.Jobs/List", &request,
                          &shoal__v1__list_jobs_response__descriptor, &page),
                     STATUS_OK);
    Shoal__V1__ListJobsResponse *list = (Shoal__V1__ListJobsResponse *)page;
    assert_string_equal(list->jobs[0]->id, second);
    request.page_token = list->next_page_token;
    ProtobufCMessage *next;
    assert_int_equal(client_call("/shoal.v1.Jobs/List", &request,
                          &shoal__v1__list_jobs_response__descriptor, &next),
                     STATUS_OK);
    assert_string_equal(((Shoal__V1__ListJobsResponse *)next)->jobs[0]->id, first);
    rpc_message_free(next);
    rpc_message_free(page);
}

static void test_a_wrong_line_refuses_the_job_and_names_itself(void **state)
{
    (void)state;
    static const struct {
        const char *line, *words;
    } wrong[] = {
        {"{\"prompt\":\"x\",\"custom_id\":\"a\"}", "line 2: custom_id \"a\""},
        {"{\"prompt\":\"x\",\"temperature\":9}", "line 2: temperature"},
        {"{\"prompt\":\"x\",\"colour\":1}", "colour"},
        {"{\"prompt\":\"x\"", "line 2"},
        {"[]", "line 2"},
        {"", "line 2"},
        {"{\"prompt\":\"x\",\"model\":\"other\"}", "model"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *const lines[] = {client_lines[0], wrong[i].line};
        assert_int_equal(client_create(lines, 2, "", NULL), STATUS_INVALID);
        if (!strstr(status_text(), wrong[i].words))
            fail_msg("\"%s\" does not say \"%s\"", status_text(), wrong[i].words);
    }
    assert_int_equal(client_create(client_lines, 0, "", NULL), STATUS_INVALID);
}

/* Sends one message of a Submit stream: the header when `lines` is 0, else so many items. */
static status_t submit_send(rpc_stream_t *stream, size_t first, size_t lines)
{
    Shoal__V1__SubmitJobRequest request = SHOAL__V1__SUBMIT_JOB_REQUEST__INIT;
    Shoal__V1__JobHeader header = SHOAL__V1__JOB_HEADER__INIT;
    Shoal__V1__ItemChunk chunk = SHOAL__V1__ITEM_CHUNK__INIT;
    static Shoal__V1__Item items[1001], *list[1001];
    static char text[1001][64];
    request.message_case = SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_OPEN;
    request.open = &header;
    for (size_t i = 0; i < lines; i++) {
        shoal__v1__item__init(&items[i]);
        snprintf(text[i], sizeof text[i], "{\"custom_id\":\"%zu\",\"prompt\":\"x\"}", first + i);
        items[i].input_case = SHOAL__V1__ITEM__INPUT_BODY_JSON;
        items[i].body_json = (ProtobufCBinaryData){strlen(text[i]), (uint8_t *)text[i]};
        list[i] = &items[i];
    }
    if (lines) {
        chunk.items = list;
        chunk.n_items = lines;
        request.message_case = SHOAL__V1__SUBMIT_JOB_REQUEST__MESSAGE_CHUNK;
        request.chunk = &chunk;
    }
    buffer_t bytes = {0};
    rpc_pack(&request, &bytes);
    status_t status = rpc_stream_send(stream, bytes.data, bytes.size);
    buffer_release(&bytes);
    return status;
}

static status_t submit_end(rpc_stream_t *stream, uint64_t *total_out)
{
    buffer_t message = {0};
    bool ended = false;
    rpc_stream_half_close(stream);
    status_t status = rpc_stream_read(stream, 20000, &message, &ended);
    if (status == STATUS_OK) {
        ProtobufCMessage *job;
        assert_false(ended);
        assert_int_equal(rpc_unpack(&shoal__v1__job__descriptor, message.data, message.size, NULL,
                                    &job),
                         STATUS_OK);
        *total_out = ((Shoal__V1__Job *)job)->counts->total;
        rpc_message_free(job);
    }
    buffer_release(&message);
    return status;
}

static void test_a_stream_of_chunks_becomes_one_job_or_none(void **state)
{
    (void)state;
    rpc_stream_t *stream;
    uint64_t total = 0;
    stream = open_stream("/shoal.v1.Jobs/Submit");
    assert_int_equal(submit_send(stream, 0, 0), STATUS_OK);
    assert_int_equal(submit_send(stream, 0, 1000), STATUS_OK);
    assert_int_equal(submit_send(stream, 1000, 1000), STATUS_OK);
    assert_int_equal(submit_send(stream, 2000, 500), STATUS_OK);
    assert_int_equal(submit_end(stream, &total), STATUS_OK);
    assert_int_equal(total, 2500);
    rpc_stream_close(stream);
    /* A chunk before the header, one that is too large, a custom_id of an earlier chunk. */
    for (int wrong = 0; wrong < 3; wrong++) {
        stream = open_stream("/shoal.v1.Jobs/Submit");
        status_t status = STATUS_OK;
        if (wrong > 0)
            status = submit_send(stream, 0, 0);
        if (status == STATUS_OK)
            status = submit_send(stream, 0, wrong == 1 ? 1001 : 10);
        if (status == STATUS_OK && wrong == 2)
            status = submit_send(stream, 9, 10);
        if (status == STATUS_OK)
            status = submit_end(stream, &total);
        assert_int_equal(status, STATUS_INVALID);
        rpc_stream_close(stream);
    }
}

static void test_a_client_that_leaves_amid_its_stream_leaves_no_upload(void **state)
{
    (void)state;
    rpc_stream_t *stream;
    stream = open_stream("/shoal.v1.Jobs/Submit");
    assert_int_equal(submit_send(stream, 0, 0), STATUS_OK);
    assert_int_equal(submit_send(stream, 0, 1000), STATUS_OK);
    char script[512];
    /* Fails unless `n` uploads stand in Redis. */
    const char *const check = "redis-cli -s '%s' zcard 'shoal:{test}:uploads' | grep -qx '%d'";
    uint64_t until = clock_ms() + 10000;
    for (int n = 1; n >= 0; n--) {
        snprintf(script, sizeof script, check, client_stage.redis + 5, n);
        while (system(script) != 0) {
            assert_true(clock_ms() < until);
            client_nap();
        }
        if (n == 1)
            rpc_stream_close(stream);
    }
}

/* ---- jobs as a whole ---- */

static size_t read_results(const char *id, uint64_t after, bool follow, unsigned *statuses_out)
{
    Shoal__V1__StreamResultsRequest request = SHOAL__V1__STREAM_RESULTS_REQUEST__INIT;
    char copy[33];
    snprintf(copy, sizeof copy, "%s", id);
    request.id = copy;
    request.after_completion = after;
    request.follow = follow;
    buffer_t bytes = {0};
    rpc_pack(&request, &bytes);
    rpc_stream_t *stream;
    stream = open_stream("/shoal.v1.Jobs/StreamResults");
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    rpc_stream_half_close(stream);
    size_t n = 0;
    bool ended = false;
    *statuses_out = 0;
    while (rpc_stream_read(stream, 20000, &bytes, &ended) == STATUS_OK && !ended) {
        ProtobufCMessage *message;
        assert_int_equal(rpc_unpack(&shoal__v1__item_result__descriptor, bytes.data, bytes.size,
                                    NULL, &message),
                         STATUS_OK);
        const Shoal__V1__ItemResult *result = (const Shoal__V1__ItemResult *)message;
        n++;
        assert_int_equal(result->completion, after + n);
        *statuses_out += strcmp(result->status, "cancelled") == 0;
        static const char *const ids[] = {"a", "b", ""};
        assert_string_equal(result->custom_id, ids[result->index]);
        rpc_message_free(message);
    }
    assert_true(ended);
    rpc_stream_close(stream);
    buffer_release(&bytes);
    return n;
}

static void test_a_cancelled_job_ends_its_watchers_and_has_a_result_an_item(void **state)
{
    (void)state;
    char id[33];
    unsigned cancelled;
    assert_int_equal(client_create(client_lines, 3, "", id), STATUS_OK);
    assert_int_equal(read_results(id, 0, false, &cancelled), 0);
    Shoal__V1__WatchJobRequest request = SHOAL__V1__WATCH_JOB_REQUEST__INIT;
    request.id = id;
    buffer_t bytes = {0};
    rpc_pack(&request, &bytes);
    rpc_stream_t *stream;
    stream = open_stream("/shoal.v1.Jobs/Watch");
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    rpc_stream_half_close(stream);
    bool ended = false;
    assert_int_equal(rpc_stream_read(stream, 10000, &bytes, &ended), STATUS_OK);
    assert_false(ended);
    Shoal__V1__Job *job;
    assert_int_equal(client_job_call("/shoal.v1.Jobs/Cancel", id, &job), STATUS_OK);
    assert_int_equal(job->state, SHOAL__V1__JOB__STATE__CANCELLED);
    assert_int_equal(job->counts->cancelled, 3);
    rpc_message_free(job);
    while (!ended)
        assert_int_equal(rpc_stream_read(stream, 10000, &bytes, &ended), STATUS_OK);
    rpc_stream_close(stream);
    buffer_release(&bytes);
    assert_int_equal(read_results(id, 0, true, &cancelled), 3);
    assert_int_equal(cancelled, 3);
    assert_int_equal(read_results(id, 2, true, &cancelled), 1);
    Shoal__V1__DeleteJobRequest delete = SHOAL__V1__DELETE_JOB_REQUEST__INIT;
    delete.id = id;
    ProtobufCMessage *reply;
    assert_int_equal(client_call("/shoal.v1.Jobs/Delete", &delete,
                          &shoal__v1__delete_job_response__descriptor, &reply),
                     STATUS_OK);
    rpc_message_free(reply);
    assert_int_equal(client_job_call("/shoal.v1.Jobs/Get", id, NULL), STATUS_NOT_FOUND);
    assert_int_equal(client_job_call("/shoal.v1.Jobs/Get", "nonsense", NULL), STATUS_INVALID);
}

/* ---- requests ---- */

static void test_a_request_without_a_replica_is_refused_with_a_retry_time(void **state)
{
    (void)state;
    Shoal__V1__GenerateRequest request = SHOAL__V1__GENERATE_REQUEST__INIT;
    static char prompt[] = "hello";
    request.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_PROMPT;
    request.prompt = prompt;
    buffer_t bytes = {0};
    bool ended;
    rpc_pack(&request, &bytes);
    rpc_stream_t *stream;
    stream = open_stream("/shoal.v1.Inference/Generate");
    assert_int_equal(rpc_stream_send(stream, bytes.data, bytes.size), STATUS_OK);
    assert_int_equal(rpc_stream_read(stream, 15000, &bytes, &ended), STATUS_EXHAUSTED);
    rpc_stream_close(stream);
    buffer_release(&bytes);
    Shoal__V1__CancelRequest cancel = SHOAL__V1__CANCEL_REQUEST__INIT;
    static char id[] = "0123456789abcdef0123456789abcdef";
    cancel.id = id;
    ProtobufCMessage *reply;
    assert_int_equal(client_call("/shoal.v1.Inference/Cancel", &cancel,
                          &shoal__v1__cancel_response__descriptor, &reply),
                     STATUS_NOT_FOUND);
}

static void test_text_goes_to_ids_and_back(void **state)
{
    (void)state;
    Shoal__V1__TokenizeRequest request = SHOAL__V1__TOKENIZE_REQUEST__INIT;
    static char text[] = "Hello <|im_end|> 🙂";
    request.input_case = SHOAL__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    request.text = text;
    ProtobufCMessage *there, *back;
    const ProtobufCMessageDescriptor *type = &shoal__v1__tokenize_response__descriptor;
    const char *const method = "/shoal.v1.Inference/Tokenize";
    assert_int_equal(client_call(method, &request, type, &there), STATUS_OK);
    Shoal__V1__TokenIds ids = SHOAL__V1__TOKEN_IDS__INIT;
    ids.ids = ((Shoal__V1__TokenizeResponse *)there)->ids;
    ids.n_ids = ((Shoal__V1__TokenizeResponse *)there)->n_ids;
    assert_true(ids.n_ids > 5);
    request.input_case = SHOAL__V1__TOKENIZE_REQUEST__INPUT_IDS;
    request.ids = &ids;
    assert_int_equal(client_call(method, &request, type, &back), STATUS_OK);
    assert_string_equal(((Shoal__V1__TokenizeResponse *)back)->text, text);
    rpc_message_free(back);
    ids.ids[0] = 1u << 30;
    assert_int_equal(client_call(method, &request, type, &back), STATUS_INVALID);
    rpc_message_free(there);
}

/* ---- stores ---- */

static void test_a_redis_that_may_lose_jobs_and_an_emptied_one_are_named(void **state)
{
    (void)state;
    stage_restart_redis(&client_stage, false); /* the gate is looked at again on each connection */
    client_await_store(true, "ok");
    stage_redis(&client_stage, "config set appendfsync everysec");
    stage_redis(&client_stage, "client kill type normal");
    client_await_store(true, "appendfsync");
    assert_int_equal(client_create(client_lines, 1, "", NULL), STATUS_UNREACHABLE);
    assert_non_null(strstr(status_text(), "appendfsync"));
    stage_redis(&client_stage, "config set appendfsync always");
    client_await_store(true, "ok");
    Shoal__V1__AdoptRequest adopt = SHOAL__V1__ADOPT_REQUEST__INIT;
    static char name[] = "redis";
    adopt.store = name;
    ProtobufCMessage *reply;
    const ProtobufCMessageDescriptor *type = &shoal__v1__adopt_response__descriptor;
    assert_int_equal(client_call("/shoal.v1.Admin/Adopt", &adopt, type, &reply), STATUS_REFUSED);
    stage_restart_redis(&client_stage, true);
    client_await_store(true, "shoal adopt redis");
    assert_int_equal(client_create(client_lines, 1, "", NULL), STATUS_UNREACHABLE);
    assert_non_null(strstr(status_text(), "adopt redis"));
    assert_int_equal(client_call("/shoal.v1.Admin/Adopt", &adopt, type, &reply), STATUS_OK);
    assert_int_equal(((Shoal__V1__AdoptResponse *)reply)->incarnation, 2);
    rpc_message_free(reply);
    client_await_store(true, "ok");
    assert_int_equal(client_create(client_lines, 1, "", NULL), STATUS_OK);
}

static void test_a_coordinator_without_its_stores_says_so_and_exits_6(void **state)
{
    (void)state;
    stage_t nowhere = client_stage;
    snprintf(nowhere.redis, sizeof nowhere.redis, "unix:%s/none", client_stage.dir);
    const char *const options[] = {"--store-wait", "400ms", NULL};
    pid_t pid = stage_coordinator(&nowhere, "lonely", stage_port(), options);
    assert_int_equal(stage_wait_exit(pid, 10000), 6);
    snprintf(nowhere.redis, sizeof nowhere.redis, "%s", client_stage.redis);
    snprintf(nowhere.etcd, sizeof nowhere.etcd, "127.0.0.1:1");
    pid = stage_coordinator(&nowhere, "lonely", stage_port(), options);
    assert_int_equal(stage_wait_exit(pid, 10000), 6);
    char script[128];
    snprintf(script, sizeof script, "grep -q 'waiting for redis' %s/lonely.log", client_stage.dir);
    assert_int_equal(system(script), 0);
    snprintf(script, sizeof script, "grep -q 'waiting for etcd' %s/lonely.log", client_stage.dir);
    assert_int_equal(system(script), 0);
}

static void test_sigterm_drains_a_coordinator_and_another_is_elected_at_once(void **state)
{
    (void)state;
    pid_t other = stage_coordinator(&client_stage, "other", stage_port(), NULL);
    Shoal__V1__StatusResponse *status;
    uint64_t until = clock_ms() + 15000;
    for (size_t n = 0; n != 2; client_nap()) {
        status = client_status();
        n = status->n_coordinators;
        rpc_message_free(status);
        assert_true(clock_ms() < until);
    }
    kill(client_coordinator, SIGTERM);
    assert_int_equal(stage_wait_exit(client_coordinator, 10000), 0);
    char script[128];
    snprintf(script, sizeof script, "grep -q 'elected: this' %s/other.log", client_stage.dir);
    until = clock_ms() + 3000; /* its lease was revoked, so well within its 5 s */
    while (system(script) != 0) {
        assert_true(clock_ms() < until);
        client_nap();
    }
    kill(other, SIGTERM);
    assert_int_equal(stage_wait_exit(other, 10000), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_job_is_taken_listed_and_the_same_for_the_same_key),
        cmocka_unit_test(test_a_wrong_line_refuses_the_job_and_names_itself),
        cmocka_unit_test(test_a_stream_of_chunks_becomes_one_job_or_none),
        cmocka_unit_test(test_a_client_that_leaves_amid_its_stream_leaves_no_upload),
        cmocka_unit_test(test_a_cancelled_job_ends_its_watchers_and_has_a_result_an_item),
        cmocka_unit_test(test_a_request_without_a_replica_is_refused_with_a_retry_time),
        cmocka_unit_test(test_text_goes_to_ids_and_back),
        cmocka_unit_test(test_a_redis_that_may_lose_jobs_and_an_emptied_one_are_named),
        cmocka_unit_test(test_a_coordinator_without_its_stores_says_so_and_exits_6),
        cmocka_unit_test(test_sigterm_drains_a_coordinator_and_another_is_elected_at_once),
    };
    return cmocka_run_group_tests(tests, client_begin, client_end);
}
