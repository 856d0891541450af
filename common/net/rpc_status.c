/* Status codes and metadata between us and gRPC. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/net/rpc_internal.h"

int rpc_code_from_status(status_t status)
{
    switch (status) {
    case STATUS_OK: return GRPC_STATUS_OK;
    case STATUS_INVALID: return GRPC_STATUS_INVALID_ARGUMENT;
    case STATUS_NOT_FOUND: return GRPC_STATUS_NOT_FOUND;
    case STATUS_REFUSED:
    case STATUS_POISONED: return GRPC_STATUS_FAILED_PRECONDITION;
    case STATUS_CONFLICT: return GRPC_STATUS_ALREADY_EXISTS;
    case STATUS_EXHAUSTED: return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case STATUS_CANCELLED: return GRPC_STATUS_CANCELLED;
    case STATUS_DEADLINE:
    case STATUS_TIMEOUT: return GRPC_STATUS_DEADLINE_EXCEEDED;
    case STATUS_STALE:
    case STATUS_ABORTED:
    case STATUS_REPLICA_LOST: return GRPC_STATUS_ABORTED;
    case STATUS_UNSUPPORTED: return GRPC_STATUS_UNIMPLEMENTED;
    case STATUS_UNREACHABLE:
    case STATUS_PEER_LOST: return GRPC_STATUS_UNAVAILABLE;
    case STATUS_NUMERIC:
    case STATUS_NO_MEMORY:
    case STATUS_IO:
    case STATUS_INTERNAL: break;
    }
    return GRPC_STATUS_INTERNAL;
}

status_t rpc_status_from_code(int code)
{
    switch (code) {
    case GRPC_STATUS_OK: return STATUS_OK;
    case GRPC_STATUS_CANCELLED: return STATUS_CANCELLED;
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_OUT_OF_RANGE: return STATUS_INVALID;
    case GRPC_STATUS_DEADLINE_EXCEEDED: return STATUS_DEADLINE;
    case GRPC_STATUS_NOT_FOUND: return STATUS_NOT_FOUND;
    case GRPC_STATUS_ALREADY_EXISTS: return STATUS_CONFLICT;
    case GRPC_STATUS_PERMISSION_DENIED:
    case GRPC_STATUS_FAILED_PRECONDITION:
    case GRPC_STATUS_UNAUTHENTICATED: return STATUS_REFUSED;
    case GRPC_STATUS_RESOURCE_EXHAUSTED: return STATUS_EXHAUSTED;
    case GRPC_STATUS_ABORTED: return STATUS_STALE;
    case GRPC_STATUS_UNIMPLEMENTED: return STATUS_UNSUPPORTED;
    case GRPC_STATUS_UNAVAILABLE: return STATUS_UNREACHABLE;
    case GRPC_STATUS_DATA_LOSS: return STATUS_IO;
    default: return STATUS_INTERNAL;
    }
}

status_t rpc_status_received(int code, const rpc_metadata_t *trailing, size_t n)
{
    const char *name = rpc_pairs_find(trailing, n, "shoal-status");
    if (code == GRPC_STATUS_OK || !name)
        return rpc_status_from_code(code);
    /* The name only sharpens the code; one that does not belong to it is somebody's mistake. */
    for (int i = STATUS_INVALID; i <= STATUS_INTERNAL; i++)
        if (strcmp(status_name((status_t)i), name) == 0 &&
            rpc_code_from_status((status_t)i) == code)
            return (status_t)i;
    return rpc_status_from_code(code);
}

void rpc_pairs_add(rpc_pairs_t *pairs, const char *key, const char *value)
{
    pairs->pairs = mem_resize(pairs->pairs, pairs->n + 1, sizeof *pairs->pairs);
    pairs->pairs[pairs->n++] = (rpc_metadata_t){mem_strdup(key), mem_strdup(value)};
}

static char *text_of_slice(grpc_slice slice)
{
    return mem_strndup((const char *)GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice));
}

void rpc_pairs_copy(rpc_pairs_t *pairs, const grpc_metadata_array *from)
{
    pairs->n = from->count;
    pairs->pairs = from->count ? MEM_NEW_ARRAY(rpc_metadata_t, from->count) : NULL;
    for (size_t i = 0; i < from->count; i++)
        pairs->pairs[i] = (rpc_metadata_t){text_of_slice(from->metadata[i].key),
                                           text_of_slice(from->metadata[i].value)};
}

const char *rpc_pairs_find(const rpc_metadata_t *pairs, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(pairs[i].key, key) == 0)
            return pairs[i].value;
    return NULL;
}

void rpc_pairs_release(rpc_pairs_t *pairs)
{
    for (size_t i = 0; i < pairs->n; i++) {
        free((void *)(uintptr_t)pairs->pairs[i].key);
        free((void *)(uintptr_t)pairs->pairs[i].value);
    }
    free(pairs->pairs);
    *pairs = (rpc_pairs_t){0};
}

bool rpc_metadata_legal(const rpc_metadata_t *pair)
{
    grpc_slice key = grpc_slice_from_static_string(pair->key);
    grpc_slice value = grpc_slice_from_static_string(pair->value);
    return grpc_header_key_is_legal(key) && !grpc_is_binary_header(key) &&
           grpc_header_nonbin_value_is_legal(value);
}

size_t rpc_grpc_metadata_make(const rpc_metadata_t *pairs, size_t n, grpc_metadata *out)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n && n_out < RPC_METADATA_MAX + 1; i++) {
        if (!rpc_metadata_legal(&pairs[i]))
            continue;
        memset(&out[n_out], 0, sizeof out[n_out]);
        out[n_out].key = grpc_slice_from_copied_string(pairs[i].key);
        out[n_out].value = grpc_slice_from_copied_string(pairs[i].value);
        n_out++;
    }
    return n_out;
}

void rpc_grpc_metadata_release(grpc_metadata *metadata, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        grpc_slice_unref(metadata[i].key);
        grpc_slice_unref(metadata[i].value);
    }
}

const char *rpc_result_metadata(const rpc_result_t *result, const char *key)
{
    return rpc_pairs_find(result->trailing, result->n_trailing, key);
}
