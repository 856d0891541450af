/* See client.h. */
#include "cli/client.h"

#include <stdlib.h>
#include <string.h>

#include "cli/command.h"
#include "common/base/memory.h"
#include "common/net/rpc_message.h"

enum { CONNECT_MS = 3000, CALL_MS = 30000, POLL_MS = 200 };

struct client {
    char *endpoints[ENDPOINTS_MAX];
    size_t n_endpoints, at;
    rpc_io_t *io;
    rpc_channel_t *channel;
};

status_t client_open(const cluster_options_t *where, client_t **own_out)
{
    client_t *client = MEM_NEW(client_t);
    status_t status = cluster_endpoints(where, client->endpoints, &client->n_endpoints);
    if (status == STATUS_OK)
        status = rpc_io_open(0, &client->io);
    if (status != STATUS_OK) {
        client_close(client);
        return status;
    }
    *own_out = client;
    return STATUS_OK;
}

void client_close(client_t *take_client)
{
    if (take_client == NULL)
        return;
    if (take_client->channel != NULL)
        rpc_channel_close(take_client->channel);
    if (take_client->io != NULL)
        rpc_io_close(take_client->io);
    for (size_t i = 0; i < take_client->n_endpoints; i++)
        free(take_client->endpoints[i]);
    free(take_client);
}

void client_add_endpoint(client_t *client, const char *endpoint)
{
    for (size_t i = 0; i < client->n_endpoints; i++)
        if (strcmp(client->endpoints[i], endpoint) == 0)
            return;
    if (client->n_endpoints < ENDPOINTS_MAX)
        client->endpoints[client->n_endpoints++] = mem_strdup(endpoint);
}

void client_next(client_t *client)
{
    if (client->channel != NULL)
        rpc_channel_close(client->channel);
    client->channel = NULL;
    client->at = (client->at + 1) % client->n_endpoints;
}

status_t client_channel(client_t *client, rpc_channel_t **out)
{
    for (size_t tried = 0; tried < client->n_endpoints; tried++) {
        if (client->channel == NULL) {
            rpc_channel_options_t options = {.endpoint = client->endpoints[client->at]};
            TRY(rpc_channel_open(client->io, &options, &client->channel));
        }
        /* A refused connection costs no time while another endpoint is left. The last one may be
         * about to start, and is waited for. */
        bool last = tried + 1 == client->n_endpoints;
        status_t status = last ? rpc_channel_wait_ready(client->channel, CONNECT_MS)
                               : rpc_channel_wait_attempt(client->channel, CONNECT_MS);
        if (status == STATUS_OK) {
            *out = client->channel;
            return STATUS_OK;
        }
        client_next(client);
    }
    char list[256] = "";
    for (size_t i = 0; i < client->n_endpoints; i++) {
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", client->endpoints[i]);
    }
    return fail(STATUS_UNREACHABLE, "no coordinator answers at %s; is the cluster up (`shoal up`)?", list);
}

status_t client_call(client_t *client, const char *method, const void *request,
                     const ProtobufCMessageDescriptor *reply_descriptor, void *own_reply_out)
{
    status_t status = STATUS_OK;
    for (size_t tried = 0; tried <= client->n_endpoints; tried++) {
        rpc_channel_t *channel;
        TRY(client_channel(client, &channel));
        ProtobufCMessage *reply;
        status = rpc_unary_message_wait(channel, method, request, reply_descriptor, CALL_MS, &reply);
        if (status == STATUS_OK) {
            *(ProtobufCMessage **)own_reply_out = reply;
            return STATUS_OK;
        }
        if (status != STATUS_UNREACHABLE || command_interrupted)
            break;
        client_next(client);
    }
    return status;
}

status_t client_stream(client_t *client, const char *method, const void *request,
                       rpc_stream_t **own_out)
{
    rpc_channel_t *channel;
    TRY(client_channel(client, &channel));
    rpc_stream_t *stream;
    TRY(rpc_stream_open(channel, method, 0, &stream));
    buffer_t bytes = {0};
    rpc_pack(request, &bytes);
    status_t status = rpc_stream_send(stream, bytes.data, bytes.size);
    buffer_release(&bytes);
    if (status != STATUS_OK) {
        rpc_stream_close(stream);
        return status;
    }
    rpc_stream_half_close(stream);
    *own_out = stream;
    return STATUS_OK;
}

status_t client_read(rpc_stream_t *stream, const ProtobufCMessageDescriptor *descriptor,
                     void *own_message_out)
{
    buffer_t bytes = {0};
    bool ended = false;
    status_t status;
    do {
        if (command_interrupted) {
            buffer_release(&bytes);
            return fail(STATUS_CANCELLED, "interrupted");
        }
        status = rpc_stream_read(stream, POLL_MS, &bytes, &ended);
    } while (status == STATUS_TIMEOUT);
    ProtobufCMessage *message = NULL;
    if (status == STATUS_OK && !ended)
        status = rpc_unpack(descriptor, bytes.data, bytes.size, NULL, &message);
    buffer_release(&bytes);
    if (status == STATUS_OK)
        *(ProtobufCMessage **)own_message_out = message;
    return status;
}
