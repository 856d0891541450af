/* The operations that users start: requests are made and checked here, on the caller's thread. */
#include <stdlib.h>
#include <string.h>

#include "common/net/etcd_internal.h"

status_t etcd_check_key(const char *key)
{
    size_t n = key ? strlen(key) : 0;
    if (n == 0 || n > ETCD_KEY_BYTES_MAX)
        return fail(STATUS_INVALID, "an etcd key of %zu bytes; it must have 1 to %d", n,
                    ETCD_KEY_BYTES_MAX);
    return STATUS_OK;
}

static status_t check_value(const char *key, size_t value_size)
{
    if (value_size > ETCD_VALUE_BYTES_MAX)
        return fail(STATUS_INVALID, "etcd key %s: a value of %zu bytes is over the limit of %u",
                    key, value_size, ETCD_VALUE_BYTES_MAX);
    return STATUS_OK;
}

static ProtobufCBinaryData binary(const void *bytes, size_t n)
{
    return (ProtobufCBinaryData){n, (uint8_t *)(uintptr_t)bytes};
}

static ProtobufCBinaryData binary_text(const char *text)
{
    return binary(text, text ? strlen(text) : 0);
}

void etcd_get(etcd_t *etcd, const char *key, etcd_done_fn done, void *context)
{
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = binary_text(key);
    etcd_call(etcd, ETCD_CALL_RANGE, &request, etcd_check_key(key), done, context);
}

void etcd_page(etcd_t *etcd, const void *from, size_t from_size, const char *prefix,
               int64_t revision, etcd_done_fn done, void *context)
{
    size_t end_size;
    char *end = etcd_prefix_end(prefix, &end_size);
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = binary(from, from_size);
    request.range_end = binary(end, end_size);
    request.limit = etcd->options.page_keys;
    request.revision = revision;
    etcd_call(etcd, ETCD_CALL_RANGE, &request, STATUS_OK, done, context);
    free(end);
}

void etcd_put(etcd_t *etcd, const char *key, const void *value, size_t value_size, int64_t lease,
              etcd_done_fn done, void *context)
{
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = binary_text(key);
    request.value = binary(value, value_size);
    request.lease = lease;
    status_t status = etcd_check_key(key);
    if (status == STATUS_OK)
        status = check_value(key, value_size);
    etcd_call(etcd, ETCD_CALL_PUT, &request, status, done, context);
}

void etcd_delete(etcd_t *etcd, const char *key, etcd_done_fn done, void *context)
{
    Etcdserverpb__DeleteRangeRequest request = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    request.key = binary_text(key);
    etcd_call(etcd, ETCD_CALL_DELETE, &request, etcd_check_key(key), done, context);
}

void etcd_delete_prefix(etcd_t *etcd, const char *prefix, etcd_done_fn done, void *context)
{
    status_t status = etcd_check_key(prefix);
    size_t end_size = 0;
    char *end = status == STATUS_OK ? etcd_prefix_end(prefix, &end_size) : NULL;
    Etcdserverpb__DeleteRangeRequest request = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    request.key = binary_text(prefix);
    request.range_end = binary(end, end_size);
    etcd_call(etcd, ETCD_CALL_DELETE, &request, status, done, context);
    free(end);
}

void etcd_compact(etcd_t *etcd, int64_t revision, etcd_done_fn done, void *context)
{
    Etcdserverpb__CompactionRequest request = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    request.revision = revision;
    request.physical = true;
    etcd_call(etcd, ETCD_CALL_COMPACT, &request, STATUS_OK, done, context);
}

/* ---- transactions ---- */

static status_t make_compare(const etcd_compare_t *from, Etcdserverpb__Compare *to)
{
    static const Etcdserverpb__Compare__CompareResult relations[] = {
        [ETCD_EQUAL] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL,
        [ETCD_GREATER] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER,
        [ETCD_LESS] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS,
        [ETCD_NOT_EQUAL] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL,
    };
    TRY(etcd_check_key(from->key));
    etcdserverpb__compare__init(to);
    to->result = relations[from->relation];
    to->key = binary_text(from->key);
    switch (from->target) {
    case ETCD_MOD_REVISION:
        to->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
        to->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
        to->mod_revision = from->number;
        break;
    case ETCD_CREATE_REVISION:
        to->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
        to->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
        to->create_revision = from->number;
        break;
    case ETCD_VERSION:
        to->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION;
        to->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
        to->version = from->number;
        break;
    case ETCD_VALUE:
        to->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE;
        to->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE;
        to->value = binary(from->value, from->value_size);
        break;
    case ETCD_LEASE:
        to->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE;
        to->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE;
        to->lease = from->number;
        break;
    }
    return STATUS_OK;
}

static ProtobufCBinaryData arena_end(arena_t *arena, const char *prefix)
{
    size_t size;
    char *end = etcd_prefix_end(prefix, &size);
    char *copy = arena_strndup(arena, end, size);
    free(end);
    return binary(copy, size);
}

static status_t make_op(arena_t *arena, const etcd_op_t *from, Etcdserverpb__RequestOp *to)
{
    TRY(etcd_check_key(from->key));
    etcdserverpb__request_op__init(to);
    switch (from->kind) {
    case ETCD_PUT: {
        TRY(check_value(from->key, from->value_size));
        Etcdserverpb__PutRequest *put = ARENA_NEW_ARRAY(arena, Etcdserverpb__PutRequest, 1);
        etcdserverpb__put_request__init(put);
        put->key = binary_text(from->key);
        put->value = binary(from->value, from->value_size);
        put->lease = from->lease;
        to->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        to->request_put = put;
        return STATUS_OK;
    }
    case ETCD_DELETE:
    case ETCD_DELETE_PREFIX: {
        Etcdserverpb__DeleteRangeRequest *gone =
            ARENA_NEW_ARRAY(arena, Etcdserverpb__DeleteRangeRequest, 1);
        etcdserverpb__delete_range_request__init(gone);
        gone->key = binary_text(from->key);
        if (from->kind == ETCD_DELETE_PREFIX)
            gone->range_end = arena_end(arena, from->key);
        to->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        to->request_delete_range = gone;
        return STATUS_OK;
    }
    case ETCD_GET:
    case ETCD_GET_PREFIX: break;
    }
    Etcdserverpb__RangeRequest *range = ARENA_NEW_ARRAY(arena, Etcdserverpb__RangeRequest, 1);
    etcdserverpb__range_request__init(range);
    range->key = binary_text(from->key);
    if (from->kind == ETCD_GET_PREFIX)
        range->range_end = arena_end(arena, from->key);
    to->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    to->request_range = range;
    return STATUS_OK;
}

static status_t make_ops(arena_t *arena, const etcd_op_t *from, size_t n,
                         Etcdserverpb__RequestOp ***out)
{
    Etcdserverpb__RequestOp **ops = ARENA_NEW_ARRAY(arena, Etcdserverpb__RequestOp *, n + 1);
    for (size_t i = 0; i < n; i++) {
        ops[i] = ARENA_NEW_ARRAY(arena, Etcdserverpb__RequestOp, 1);
        TRY(make_op(arena, &from[i], ops[i]));
    }
    *out = ops;
    return STATUS_OK;
}

static status_t make_txn(arena_t *arena, const etcd_txn_t *txn, Etcdserverpb__TxnRequest *request)
{
    if (txn->n_compares > ETCD_TXN_OPS_MAX || txn->n_then > ETCD_TXN_OPS_MAX ||
        txn->n_otherwise > ETCD_TXN_OPS_MAX)
        return fail(STATUS_INVALID,
                    "an etcd transaction of %zu compares and %zu or %zu operations; at most %d of "
                    "each",
                    txn->n_compares, txn->n_then, txn->n_otherwise, ETCD_TXN_OPS_MAX);
    Etcdserverpb__Compare **compares =
        ARENA_NEW_ARRAY(arena, Etcdserverpb__Compare *, txn->n_compares + 1);
    for (size_t i = 0; i < txn->n_compares; i++) {
        compares[i] = ARENA_NEW_ARRAY(arena, Etcdserverpb__Compare, 1);
        TRY(make_compare(&txn->compares[i], compares[i]));
    }
    request->n_compare = txn->n_compares;
    request->compare = compares;
    request->n_success = txn->n_then;
    TRY(make_ops(arena, txn->then, txn->n_then, &request->success));
    request->n_failure = txn->n_otherwise;
    return make_ops(arena, txn->otherwise, txn->n_otherwise, &request->failure);
}

void etcd_txn(etcd_t *etcd, const etcd_txn_t *txn, etcd_done_fn done, void *context)
{
    arena_t arena = {0};
    Etcdserverpb__TxnRequest request = ETCDSERVERPB__TXN_REQUEST__INIT;
    status_t status = make_txn(&arena, txn, &request);
    etcd_call(etcd, ETCD_CALL_TXN, &request, status, done, context);
    arena_release(&arena);
}
