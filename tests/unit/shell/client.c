/* See client.h. */
#include "tests/unit/shell/client.h"

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

#include <cmocka.h>

stage_t client_stage;
static rpc_io_t *io;
rpc_channel_t *client_channel;
pid_t client_coordinator;

status_t client_call(const char *method, const void *request,
                     const ProtobufCMessageDescriptor *reply, ProtobufCMessage **own_out)
{
    return rpc_unary_message_wait(client_channel, method, request, reply, 20000, own_out);
}

void client_nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
}

Shoal__V1__StatusResponse *client_status(void)
{
    Shoal__V1__StatusRequest request = SHOAL__V1__STATUS_REQUEST__INIT;
    ProtobufCMessage *reply = NULL;
    uint64_t until = clock_ms() + 20000;
    while (client_call("/shoal.v1.Admin/Status", &request, &shoal__v1__status_response__descriptor,
                &reply) != STATUS_OK) {
        assert_true(clock_ms() < until);
        client_nap();
    }
    return (Shoal__V1__StatusResponse *)reply;
}

void client_await_store(bool redis, const char *words)
{
    uint64_t until = clock_ms() + 20000;
    for (;;) {
        Shoal__V1__StatusResponse *status = client_status();
        bool found = strstr(redis ? status->redis : status->etcd, words) != NULL;
        if (!found && clock_ms() > until)
            fail_msg("never \"%s\": %s", words, redis ? status->redis : status->etcd);
        rpc_message_free(status);
        if (found)
            return;
        client_nap();
    }
}

status_t client_create(const char *const *lines, size_t n, const char *key, char id_out[33])
{
    Shoal__V1__JobHeader header = SHOAL__V1__JOB_HEADER__INIT;
    Shoal__V1__CreateJobRequest request = SHOAL__V1__CREATE_JOB_REQUEST__INIT;
    Shoal__V1__Item items[8], *list[8];
    char key_copy[32];
    snprintf(key_copy, sizeof key_copy, "%s", key);
    header.idempotency_key = key_copy;
    request.header = &header;
    request.items = list;
    request.n_items = n;
    for (size_t i = 0; i < n; i++) {
        shoal__v1__item__init(&items[i]);
        items[i].input_case = SHOAL__V1__ITEM__INPUT_BODY_JSON;
        union {
            const char *from;
            uint8_t *to;
        } body = {lines[i]};
        items[i].body_json = (ProtobufCBinaryData){strlen(lines[i]), body.to};
        list[i] = &items[i];
    }
    ProtobufCMessage *reply;
    status_t status =
        client_call("/shoal.v1.Jobs/Create", &request, &shoal__v1__job__descriptor, &reply);
    if (status == STATUS_OK && id_out)
        snprintf(id_out, 33, "%s", ((Shoal__V1__Job *)reply)->id);
    if (status == STATUS_OK)
        rpc_message_free(reply);
    return status;
}

status_t client_job_call(const char *method, const char *id, Shoal__V1__Job **own_out)
{
    Shoal__V1__GetJobRequest request = SHOAL__V1__GET_JOB_REQUEST__INIT; /* Cancel's looks alike */
    char copy[64];
    snprintf(copy, sizeof copy, "%s", id);
    request.id = copy;
    ProtobufCMessage *reply;
    status_t status = client_call(method, &request, &shoal__v1__job__descriptor, &reply);
    if (status == STATUS_OK && own_out)
        *own_out = (Shoal__V1__Job *)reply;
    else if (status == STATUS_OK)
        rpc_message_free(reply);
    return status;
}

const char *const client_lines[] = {"{\"custom_id\":\"a\",\"prompt\":\"x\"}",
                                   "{\"custom_id\":\"b\",\"prompt\":\"y\",\"max_tokens\":5}",
                                   "{\"prompt\":\"z\"}"};

static void deploy(void)
{
    Shoal__V1__Deployment deployment = SHOAL__V1__DEPLOYMENT__INIT;
    static char name[] = "smol", path[4096];
    snprintf(path, sizeof path, "%s", stage_model());
    deployment.name = name;
    deployment.model_path = path;
    deployment.replicas = 1;
    deployment.tp = 1;
    deployment.stages = 1;
    Shoal__V1__DeployRequest request = SHOAL__V1__DEPLOY_REQUEST__INIT;
    request.deployment = &deployment;
    ProtobufCMessage *reply;
    uint64_t until = clock_ms() + 20000;
    const ProtobufCMessageDescriptor *type = &shoal__v1__deployment__descriptor;
    while (client_call("/shoal.v1.Admin/Deploy", &request, type, &reply) != STATUS_OK) {
        if (clock_ms() > until)
            fail_msg("Deploy: %s", status_text());
        client_nap();
    }
    assert_int_equal(((Shoal__V1__Deployment *)reply)->context_max, 4096);
    rpc_message_free(reply);
    /* Until the tokenizer is open, requests are unavailable. */
    Shoal__V1__TokenizeRequest tokenize = SHOAL__V1__TOKENIZE_REQUEST__INIT;
    static char text[] = "x";
    tokenize.input_case = SHOAL__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    tokenize.text = text;
    while (client_call("/shoal.v1.Inference/Tokenize", &tokenize,
                &shoal__v1__tokenize_response__descriptor, &reply) != STATUS_OK) {
        assert_true(clock_ms() < until);
        client_nap();
    }
    rpc_message_free(reply);
}

int client_begin(void **state)
{
    (void)state;
    stage_begin(&client_stage);
    int port = stage_port();
    const char *const options[] = {"--queue-wait-ms", "300", NULL};
    client_coordinator = stage_coordinator(&client_stage, "first", port, options);
    assert_int_equal(rpc_io_open(2, &io), STATUS_OK);
    char endpoint[48];
    snprintf(endpoint, sizeof endpoint, "127.0.0.1:%d", port);
    rpc_channel_options_t channel_options = {.endpoint = endpoint};
    assert_int_equal(rpc_channel_open(io, &channel_options, &client_channel), STATUS_OK);
    deploy();
    return 0;
}

int client_end(void **state)
{
    (void)state;
    rpc_channel_close(client_channel);
    rpc_io_close(io);
    stage_end(&client_stage);
    return 0;
}
