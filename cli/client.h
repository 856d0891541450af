/* How commands speak to the coordinators: one of several endpoints, the next one when it is gone. */
#ifndef SHOAL_CLI_CLIENT_H
#define SHOAL_CLI_CLIENT_H

#include <protobuf-c/protobuf-c.h>

#include "cli/cluster_file.h"
#include "common/net/rpc.h"

typedef struct client client_t;

/* The row for an option table of commands that name a deployment by --model. SHOAL_MODEL is a path
 * for the commands that read a model themselves, so the name has a variable of its own. */
#define DEPLOYMENT_OPTION(name)                                                                    \
    {"model", OPTION_TEXT, &(name), NULL, "NAME", "deployment [the only one]",                     \
     .environment = "SHOAL_DEPLOYMENT"}

/* Finds the endpoints; connects with the first call. */
status_t client_open(const cluster_options_t *where, client_t **own_out) MUST_USE;
void client_close(client_t *take_client);

/* Goes on with these endpoints (as a coordinator told them), keeping the known ones. */
void client_add_endpoint(client_t *client, const char *endpoint);

/* A connected channel. After a failure with STATUS_UNREACHABLE call client_next first.
 * STATUS_UNREACHABLE names every endpoint that was tried. */
status_t client_channel(client_t *client, rpc_channel_t **out) MUST_USE;
void client_next(client_t *client);

/* A unary call that may be repeated at another coordinator when this one is gone. The reply is
 * released with rpc_message_free. */
status_t client_call(client_t *client, const char *method, const void *request,
                     const ProtobufCMessageDescriptor *reply_descriptor, void *own_reply_out) MUST_USE;

/* Opens a stream, sends one request and closes this side. */
status_t client_stream(client_t *client, const char *method, const void *request,
                       rpc_stream_t **own_out) MUST_USE;

/* The next message of a stream; NULL at its good end. Gives STATUS_CANCELLED when interrupted. */
status_t client_read(rpc_stream_t *stream, const ProtobufCMessageDescriptor *descriptor,
                     void *own_message_out) MUST_USE;

#endif
