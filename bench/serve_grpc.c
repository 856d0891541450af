/* The load as a client of Shoal sends it: one stream a request, over one channel. */
#include <stdio.h>
#include <stdlib.h>

#include "bench/serve.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"
#include "shoal/v1/inference.pb-c.h"

enum { CONNECT_MS = 10000 };

struct serve_target {
    rpc_io_t *io;
    rpc_channel_t *channel;
};

static void grpc_close(serve_target_t *take_target)
{
    if (take_target == NULL)
        return;
    if (take_target->channel != NULL)
        rpc_channel_close(take_target->channel);
    if (take_target->io != NULL)
        rpc_io_close(take_target->io);
    free(take_target);
}

static status_t grpc_open(const char *endpoint, serve_target_t **own_out)
{
    serve_target_t *target = MEM_NEW(serve_target_t);
    rpc_channel_options_t options = {.endpoint = endpoint};
    status_t status = rpc_io_open(0, &target->io);
    if (status == STATUS_OK)
        status = rpc_channel_open(target->io, &options, &target->channel);
    if (status == STATUS_OK)
        status = rpc_channel_wait_ready(target->channel, CONNECT_MS);
    if (status != STATUS_OK) {
        grpc_close(target);
        return status;
    }
    *own_out = target;
    return STATUS_OK;
}

static void on_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    serve_request_t *request = context;
    ProtobufCMessage *message = NULL;
    if (rpc_unpack(&shoal__v1__generate_response__descriptor, bytes, n, NULL, &message) !=
        STATUS_OK) {
        snprintf(request->error, sizeof request->error, "%s", status_text());
        rpc_call_cancel(call);
        return;
    }
    const Shoal__V1__GenerateResponse *response = (const Shoal__V1__GenerateResponse *)message;
    if (response->message_case == SHOAL__V1__GENERATE_RESPONSE__MESSAGE_OUTPUT) {
        const Shoal__V1__Output *output = response->output;
        if (output->n_ids > 0)
            serve_tokens(request, (uint32_t)output->n_ids);
        if (output->ended != NULL && output->ended->error != NULL)
            snprintf(request->error, sizeof request->error, "%s", output->ended->error->message);
    }
    rpc_message_free(message);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    serve_ended(context, result->status == STATUS_OK ? NULL : result->message);
}

static void grpc_send(serve_target_t *target, serve_request_t *request)
{
    Shoal__V1__TokenIds ids = SHOAL__V1__TOKEN_IDS__INIT;
    ids.ids = request->prompt;
    ids.n_ids = request->n_prompt;
    Shoal__V1__Sampling sampling = SHOAL__V1__SAMPLING__INIT;
    sampling.has_max_tokens_case = SHOAL__V1__SAMPLING__HAS_MAX_TOKENS_MAX_TOKENS;
    sampling.max_tokens = request->max_tokens;
    sampling.ignore_eos = true;
    Shoal__V1__GenerateRequest generate = SHOAL__V1__GENERATE_REQUEST__INIT;
    generate.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS;
    generate.token_ids = &ids;
    generate.sampling = &sampling;
    rpc_call_options_t options = {
        .method = "/shoal.v1.Inference/Generate",
        .handlers = {.on_message = on_message, .on_end = on_end},
        .context = request,
    };
    rpc_call_t *call;
    if (rpc_call_start(target->channel, &options, &call) != STATUS_OK) {
        serve_ended(request, status_text());
        return;
    }
    /* When the request cannot be sent the call ends, and on_end tells it. */
    if (rpc_call_send_message(call, &generate) == STATUS_OK)
        rpc_call_half_close(call);
    else
        rpc_call_cancel(call);
    rpc_call_unref(call);
}

const serve_target_ops_t serve_grpc = {grpc_open, grpc_send, grpc_close};
