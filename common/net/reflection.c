/* Server reflection, v1 and v1alpha, over the descriptors compiled into the program. The two
 * versions have the same messages with the same numbers, so one implementation serves both. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"
#include "common/net/rpc_message.h"
#include "common/net/rpc_wire.h"
#include "grpc/reflection/v1/reflection.pb-c.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest request_t;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_t;

typedef struct {
    wire_t bytes; /* a FileDescriptorProto */
    wire_t name;
    wire_t package;
} file_t;

typedef struct {
    char *name; /* "shoal.v1.Jobs.Get" */
    size_t file;
} symbol_t;

struct rpc_reflection {
    file_t *files;
    size_t n_files, files_capacity;
    symbol_t *symbols; /* messages, enums, services and methods */
    size_t n_symbols, symbols_capacity;
    char **services; /* those that this server serves */
    size_t n_services, services_capacity;
};

/* Field numbers of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1, FILE_PACKAGE = 2, FILE_DEPENDENCY = 3, FILE_MESSAGE = 4, FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1,
    MESSAGE_NESTED = 3, MESSAGE_ENUM = 4,
    SERVICE_METHOD = 2,
};

static bool same(wire_t text, const char *name)
{
    return wire_left(&text) == strlen(name) && memcmp(text.at, name, strlen(name)) == 0;
}

/* The next field with this number; false at the end. */
static bool next_of(wire_t *wire, uint32_t number, wire_t *out)
{
    wire_field_t field;
    while (wire->at < wire->end && wire_field(wire, &field)) {
        if (field.number == number && field.type == WIRE_BYTES) {
            *out = field.bytes;
            return true;
        }
    }
    return false;
}

static wire_t first_of(wire_t wire, uint32_t number)
{
    wire_t found = {wire.end, wire.end};
    next_of(&wire, number, &found);
    return found;
}

/* Adds scope.name and returns it. */
static const char *add_symbol(rpc_reflection_t *reflection, const char *scope, wire_t element,
                              size_t file)
{
    wire_t name = first_of(element, ANY_NAME);
    MEM_GROW(reflection->symbols, reflection->symbols_capacity, reflection->n_symbols + 1);
    char *full = mem_format("%s%s%.*s", scope, scope[0] ? "." : "", (int)wire_left(&name),
                            (const char *)name.at);
    reflection->symbols[reflection->n_symbols++] = (symbol_t){full, file};
    return full;
}

static void add_all(rpc_reflection_t *reflection, const char *scope, wire_t wire, uint32_t number,
                    size_t file)
{
    wire_t element;
    while (next_of(&wire, number, &element))
        add_symbol(reflection, scope, element, file);
}

static void add_message(rpc_reflection_t *reflection, const char *scope, wire_t message,
                        size_t file, unsigned depth)
{
    const char *name = add_symbol(reflection, scope, message, file);
    add_all(reflection, name, message, MESSAGE_ENUM, file);
    wire_t rest = message;
    wire_t nested;
    while (depth < 16 && next_of(&rest, MESSAGE_NESTED, &nested))
        add_message(reflection, name, nested, file, depth + 1);
}

static void add_file(rpc_reflection_t *reflection, wire_t bytes)
{
    size_t index = reflection->n_files;
    MEM_GROW(reflection->files, reflection->files_capacity, index + 1);
    reflection->files[reflection->n_files++] =
        (file_t){bytes, first_of(bytes, FILE_NAME), first_of(bytes, FILE_PACKAGE)};
    wire_t package = reflection->files[index].package;
    char *scope = mem_strndup((const char *)package.at, wire_left(&package));
    wire_t rest = bytes;
    wire_t element;
    while (next_of(&rest, FILE_MESSAGE, &element))
        add_message(reflection, scope, element, index, 0);
    add_all(reflection, scope, bytes, FILE_ENUM, index);
    rest = bytes;
    while (next_of(&rest, FILE_SERVICE, &element)) {
        const char *service = add_symbol(reflection, scope, element, index);
        add_all(reflection, service, element, SERVICE_METHOD, index);
    }
    free(scope);
}

static void add_service(rpc_reflection_t *reflection, const char *method)
{
    const char *slash = strrchr(method, '/');
    if (!slash || slash == method)
        return;
    size_t n = (size_t)(slash - method - 1);
    for (size_t i = 0; i < reflection->n_services; i++)
        if (strlen(reflection->services[i]) == n &&
            memcmp(reflection->services[i], method + 1, n) == 0)
            return;
    MEM_GROW(reflection->services, reflection->services_capacity, reflection->n_services + 1);
    reflection->services[reflection->n_services++] = mem_strndup(method + 1, n);
}

rpc_reflection_t *rpc_reflection_new(const rpc_method_t *methods, size_t n_methods)
{
    rpc_reflection_t *reflection = MEM_NEW(rpc_reflection_t);
    wire_t set = {reflection_protoset, reflection_protoset_end};
    wire_t file;
    while (next_of(&set, SET_FILE, &file))
        add_file(reflection, file);
    for (size_t i = 0; i < n_methods; i++)
        add_service(reflection, methods[i].name);
    add_service(reflection, "/grpc.health.v1.Health/Check");
    add_service(reflection, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    add_service(reflection, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");
    return reflection;
}

void rpc_reflection_free(rpc_reflection_t *take_reflection)
{
    for (size_t i = 0; i < take_reflection->n_symbols; i++)
        free(take_reflection->symbols[i].name);
    for (size_t i = 0; i < take_reflection->n_services; i++)
        free(take_reflection->services[i]);
    free(take_reflection->symbols);
    free(take_reflection->services);
    free(take_reflection->files);
    free(take_reflection);
}

/* ---- answers ---- */

static size_t find_file(const rpc_reflection_t *reflection, wire_t name)
{
    for (size_t i = 0; i < reflection->n_files; i++) {
        wire_t known = reflection->files[i].name;
        if (wire_left(&known) == wire_left(&name) &&
            memcmp(known.at, name.at, wire_left(&name)) == 0)
            return i;
    }
    return SIZE_MAX;
}

/* The file and all that it imports, each once, the asked one first. */
static size_t closure_of(const rpc_reflection_t *reflection, size_t file, size_t *files)
{
    size_t n = 1;
    files[0] = file;
    for (size_t i = 0; i < n; i++) {
        wire_t rest = reflection->files[files[i]].bytes;
        wire_t name;
        while (next_of(&rest, FILE_DEPENDENCY, &name)) {
            size_t found = find_file(reflection, name);
            bool known = found == SIZE_MAX;
            for (size_t j = 0; j < n && !known; j++)
                known = files[j] == found;
            if (!known)
                files[n++] = found;
        }
    }
    return n;
}

static void send_error(rpc_call_t *call, response_t *response, int code, const char *what,
                       const char *name)
{
    char *text = mem_format("%s \"%.200s\"", what, name);
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = code;
    error.error_message = text;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response->error_response = &error;
    status_t status = rpc_call_send_message(call, response);
    if (status != STATUS_OK)
        rpc_call_fail(call, status);
    free(text);
}

static void send_files(const rpc_reflection_t *reflection, rpc_call_t *call, response_t *response,
                       size_t file)
{
    size_t *files = MEM_NEW_ARRAY(size_t, reflection->n_files);
    size_t n = closure_of(reflection, file, files);
    ProtobufCBinaryData *data = MEM_NEW_ARRAY(ProtobufCBinaryData, n);
    for (size_t i = 0; i < n; i++) {
        wire_t bytes = reflection->files[files[i]].bytes;
        data[i].data = (uint8_t *)(uintptr_t)bytes.at;
        data[i].len = wire_left(&bytes);
    }
    Grpc__Reflection__V1__FileDescriptorResponse body =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    body.n_file_descriptor_proto = n;
    body.file_descriptor_proto = data;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response->file_descriptor_response = &body;
    status_t status = rpc_call_send_message(call, response);
    if (status != STATUS_OK)
        rpc_call_fail(call, status);
    free(data);
    free(files);
}

static void send_services(const rpc_reflection_t *reflection, rpc_call_t *call,
                          response_t *response)
{
    size_t n = reflection->n_services;
    Grpc__Reflection__V1__ServiceResponse *services =
        MEM_NEW_ARRAY(Grpc__Reflection__V1__ServiceResponse, n);
    Grpc__Reflection__V1__ServiceResponse **pointers =
        MEM_NEW_ARRAY(Grpc__Reflection__V1__ServiceResponse *, n);
    for (size_t i = 0; i < n; i++) {
        grpc__reflection__v1__service_response__init(&services[i]);
        services[i].name = reflection->services[i];
        pointers[i] = &services[i];
    }
    Grpc__Reflection__V1__ListServiceResponse body =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    body.n_service = n;
    body.service = pointers;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response->list_services_response = &body;
    status_t status = rpc_call_send_message(call, response);
    if (status != STATUS_OK)
        rpc_call_fail(call, status);
    free(services);
    free(pointers);
}

static void answer(const rpc_reflection_t *reflection, rpc_call_t *call, request_t *request)
{
    response_t response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    response.valid_host = request->host;
    response.original_request = request;
    const char *name;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        send_services(reflection, call, &response);
        return;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        name = request->file_by_filename;
        for (size_t i = 0; i < reflection->n_files; i++) {
            if (same(reflection->files[i].name, name)) {
                send_files(reflection, call, &response, i);
                return;
            }
        }
        send_error(call, &response, GRPC_STATUS_NOT_FOUND, "no file", name);
        return;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        name = request->file_containing_symbol;
        for (size_t i = 0; i < reflection->n_symbols; i++) {
            if (strcmp(reflection->symbols[i].name, name) == 0) {
                send_files(reflection, call, &response, reflection->symbols[i].file);
                return;
            }
        }
        send_error(call, &response, GRPC_STATUS_NOT_FOUND, "no symbol", name);
        return;
    default:
        /* proto3 has no extensions, so there is nothing to say about them. */
        send_error(call, &response, GRPC_STATUS_NOT_FOUND, "no extension", "");
        return;
    }
}

static void info_message(rpc_call_t *call, void *context, const uint8_t *bytes, size_t n)
{
    ProtobufCMessage *message;
    status_t status = rpc_unpack(&grpc__reflection__v1__server_reflection_request__descriptor,
                                 bytes, n, NULL, &message);
    if (status != STATUS_OK) {
        rpc_call_fail(call, status);
        return;
    }
    answer(context, call, (request_t *)message);
    rpc_message_free(message);
}

static void info_half_close(rpc_call_t *call, void *context)
{
    (void)context;
    rpc_call_finish(call, STATUS_OK, "", NULL, 0);
}

size_t rpc_reflection_methods(rpc_reflection_t *reflection, rpc_method_t *methods)
{
    static const char *const names[] = {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    };
    for (size_t i = 0; i < 2; i++)
        methods[i] = (rpc_method_t){.name = names[i],
                                    .kind = RPC_BIDI,
                                    .handlers = {.on_message = info_message,
                                                 .on_half_close = info_half_close},
                                    .context = reflection};
    return 2;
}
