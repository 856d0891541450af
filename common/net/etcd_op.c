/* One unary call to etcd: sent, retried when it may be, decoded, told once. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/net/etcd_internal.h"

struct etcd_op {
    etcd_t *etcd;
    etcd_op_state_t *next, *previous;
    etcd_call_kind_t kind;
    buffer_t request;
    etcd_done_fn done;
    void *context;
    uint64_t until_ms;
    unsigned attempt;
    size_t endpoint;
    etcd_mark_t mark;
    rpc_call_t *call; /* while one is under way */
    /* What the gRPC thread left: */
    status_t status;
    int code;
    char *message;
    buffer_t answer;
};

static const char *const methods[] = {
    [ETCD_CALL_RANGE] = "/etcdserverpb.KV/Range",
    [ETCD_CALL_PUT] = "/etcdserverpb.KV/Put",
    [ETCD_CALL_DELETE] = "/etcdserverpb.KV/DeleteRange",
    [ETCD_CALL_TXN] = "/etcdserverpb.KV/Txn",
    [ETCD_CALL_COMPACT] = "/etcdserverpb.KV/Compact",
    [ETCD_CALL_GRANT] = "/etcdserverpb.Lease/LeaseGrant",
    [ETCD_CALL_REVOKE] = "/etcdserverpb.Lease/LeaseRevoke",
    [ETCD_CALL_RESIGN] = "/etcdserverpb.KV/DeleteRange",
};

static void free_op(etcd_op_state_t *op)
{
    buffer_release(&op->request);
    buffer_release(&op->answer);
    free(op->message);
    free(op);
}

void etcd_kvs_from(arena_t *arena, Etcdserverpb__KeyValue *const *from, size_t n, etcd_kv_t *kvs)
{
    for (size_t i = 0; i < n; i++)
        kvs[i] = (etcd_kv_t){
            .key = arena_strndup(arena, from[i]->key.data ? (const char *)from[i]->key.data : "",
                                 from[i]->key.len),
            .key_size = from[i]->key.len,
            .value = from[i]->value.data ? from[i]->value.data : (const uint8_t *)"",
            .value_size = from[i]->value.len,
            .create_revision = from[i]->create_revision,
            .mod_revision = from[i]->mod_revision,
            .version = from[i]->version,
            .lease = from[i]->lease,
        };
}

/* The reads of a transaction give their keys in order; its writes only count. */
static void decode_txn(const Etcdserverpb__TxnResponse *txn, arena_t *arena,
                       etcd_result_t *result)
{
    size_t n = 0;
    for (size_t i = 0; i < txn->n_responses; i++)
        if (txn->responses[i]->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
            n += txn->responses[i]->response_range->n_kvs;
    etcd_kv_t *kvs = ARENA_NEW_ARRAY(arena, etcd_kv_t, n + 1);
    result->kvs = kvs;
    result->succeeded = txn->succeeded != 0;
    for (size_t i = 0; i < txn->n_responses; i++) {
        const Etcdserverpb__ResponseOp *op = txn->responses[i];
        if (op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE) {
            etcd_kvs_from(arena, op->response_range->kvs, op->response_range->n_kvs,
                          kvs + result->n_kvs);
            result->n_kvs += op->response_range->n_kvs;
        }
        if (op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_DELETE_RANGE)
            result->n_deleted += op->response_delete_range->deleted;
    }
}

static const ProtobufCMessageDescriptor *answer_of(etcd_call_kind_t kind)
{
    switch (kind) {
    case ETCD_CALL_RANGE: return &etcdserverpb__range_response__descriptor;
    case ETCD_CALL_PUT: return &etcdserverpb__put_response__descriptor;
    case ETCD_CALL_RESIGN:
    case ETCD_CALL_DELETE: return &etcdserverpb__delete_range_response__descriptor;
    case ETCD_CALL_TXN: return &etcdserverpb__txn_response__descriptor;
    case ETCD_CALL_COMPACT: return &etcdserverpb__compaction_response__descriptor;
    case ETCD_CALL_GRANT: return &etcdserverpb__lease_grant_response__descriptor;
    case ETCD_CALL_REVOKE: break;
    }
    return &etcdserverpb__lease_revoke_response__descriptor;
}

/* Fills the result from the answer and returns its header. */
static const Etcdserverpb__ResponseHeader *decode(etcd_call_kind_t kind,
                                                  const ProtobufCMessage *answer, arena_t *arena,
                                                  etcd_full_result_t *full)
{
    etcd_result_t *result = &full->public_part;
    switch (kind) {
    case ETCD_CALL_RANGE: {
        const Etcdserverpb__RangeResponse *range = (const void *)answer;
        etcd_kv_t *kvs = ARENA_NEW_ARRAY(arena, etcd_kv_t, range->n_kvs + 1);
        etcd_kvs_from(arena, range->kvs, range->n_kvs, kvs);
        result->kvs = kvs;
        result->n_kvs = range->n_kvs;
        full->more = range->more != 0;
        return range->header;
    }
    case ETCD_CALL_RESIGN:
    case ETCD_CALL_DELETE: {
        const Etcdserverpb__DeleteRangeResponse *deleted = (const void *)answer;
        result->n_deleted = deleted->deleted;
        return deleted->header;
    }
    case ETCD_CALL_TXN:
        decode_txn((const void *)answer, arena, result);
        return ((const Etcdserverpb__TxnResponse *)(const void *)answer)->header;
    case ETCD_CALL_GRANT: {
        const Etcdserverpb__LeaseGrantResponse *grant = (const void *)answer;
        result->lease = grant->id;
        result->ttl_s = grant->ttl;
        return grant->header;
    }
    case ETCD_CALL_PUT:
    case ETCD_CALL_COMPACT:
    case ETCD_CALL_REVOKE: break;
    }
    /* These hold a header and nothing else. */
    return ((const Etcdserverpb__PutResponse *)(const void *)answer)->header;
}

static bool last_words(const etcd_op_state_t *op)
{
    return op->kind == ETCD_CALL_REVOKE || op->kind == ETCD_CALL_RESIGN;
}

static void unlink_op(etcd_op_state_t *op)
{
    etcd_t *etcd = op->etcd;
    if (op->previous)
        op->previous->next = op->next;
    else
        etcd->ops = op->next;
    if (op->next)
        op->next->previous = op->previous;
    etcd->n_busy--;
}

/* Tells the result and frees the operation. */
static void finish(etcd_op_state_t *op)
{
    arena_t arena = {0};
    ProtobufCMessage *answer = NULL;
    etcd_full_result_t full = {.code = op->code};
    full.public_part.status = op->status;
    full.public_part.message = op->message ? op->message : "";
    if (op->status == STATUS_OK) {
        rpc_limits_t limits = {ETCD_MESSAGE_BYTES_MAX, 8, 4u << 20, 4u << 20};
        status_t status =
            rpc_unpack(answer_of(op->kind), op->answer.data, op->answer.size, &limits, &answer);
        if (status != STATUS_OK) {
            full.public_part.status = STATUS_INTERNAL;
            full.public_part.message = status_text();
        } else {
            const Etcdserverpb__ResponseHeader *header = decode(op->kind, answer, &arena, &full);
            etcd_note_header(op->etcd, header, op->mark);
            full.public_part.revision = header ? header->revision : 0;
        }
    }
    unlink_op(op);
    op->done(op->context, &full.public_part);
    rpc_message_free(answer);
    arena_release(&arena);
    free_op(op);
}

static void start(void *context);

/* On the loop: an attempt has ended. */
static void answered(void *context)
{
    etcd_op_state_t *op = context;
    etcd_t *etcd = op->etcd;
    rpc_call_unref(op->call);
    op->call = NULL;
    bool lost = op->status == STATUS_UNREACHABLE || op->status == STATUS_DEADLINE;
    if (lost) {
        if (rpc_channel_state(etcd->channels[op->endpoint]) != RPC_READY)
            op->status = STATUS_UNREACHABLE;
        char *text = mem_format("etcd at %s: %s",
                                rpc_channel_endpoint(etcd->channels[op->endpoint]), op->message);
        free(op->message);
        op->message = text;
        etcd_note_failure(etcd, op->endpoint);
        uint64_t pause = etcd_backoff(etcd, op->attempt++);
        if (op->kind == ETCD_CALL_RANGE && !atomic_load(&etcd->closing) &&
            clock_ms() + pause < op->until_ms) {
            etcd_after(etcd, pause, start, op);
            return;
        }
    } else {
        atomic_store(&etcd->reachable, true);
    }
    if (atomic_load(&etcd->closing) && op->status != STATUS_OK)
        op->status = STATUS_CANCELLED;
    finish(op);
}

/* On a gRPC thread. */
static void received(void *context, const rpc_result_t *result, const uint8_t *bytes, size_t n)
{
    etcd_op_state_t *op = context;
    op->status = result->status;
    op->code = result->code;
    free(op->message);
    op->message = mem_strdup(result->message);
    buffer_clear(&op->answer);
    buffer_append(&op->answer, bytes, n);
    etcd_post(op->etcd, answered, op);
}

static void end_with(etcd_op_state_t *op, status_t status, const char *message)
{
    op->status = status;
    free(op->message);
    op->message = mem_strdup(message);
    finish(op);
}

/* On the loop: sends the request. While there is one endpoint a request waits for its connection,
 * which is certain not to have been sent then; with several the next one is tried instead. */
static void start(void *context)
{
    etcd_op_state_t *op = context;
    etcd_t *etcd = op->etcd;
    if (atomic_load(&etcd->closing) && !last_words(op)) {
        end_with(op, STATUS_CANCELLED, "the etcd client is closing");
        return;
    }
    uint64_t now = clock_ms();
    uint64_t left = op->until_ms > now ? op->until_ms - now : 1;
    if (op->kind == ETCD_CALL_RANGE && etcd->n_channels > 1 && left > 1000)
        left = 1000;
    op->endpoint = etcd_pick(etcd);
    op->mark = etcd_mark(etcd);
    status_t status = rpc_unary_ready(etcd->channels[op->endpoint], methods[op->kind],
                                      op->request.data, op->request.size, left,
                                      etcd->n_channels == 1, received, op, &op->call);
    if (status != STATUS_OK)
        end_with(op, status, status_text());
}

static void begin(void *context)
{
    etcd_op_state_t *op = context;
    etcd_t *etcd = op->etcd;
    op->next = etcd->ops;
    if (op->next)
        op->next->previous = op;
    etcd->ops = op;
    etcd->n_busy++;
    if (op->status != STATUS_OK)
        finish(op);
    else
        start(op);
}

void etcd_call(etcd_t *etcd, etcd_call_kind_t kind, const void *message, status_t status,
               etcd_done_fn done, void *context)
{
    bool leaving = kind == ETCD_CALL_REVOKE || kind == ETCD_CALL_RESIGN;
    etcd_call_within(etcd, kind, message, leaving ? 1000 : etcd->options.timeout_ms, status, done,
                     context);
}

void etcd_call_within(etcd_t *etcd, etcd_call_kind_t kind, const void *message, unsigned timeout_ms,
                      status_t status, etcd_done_fn done, void *context)
{
    etcd_op_state_t *op = MEM_NEW(etcd_op_state_t);
    op->etcd = etcd;
    op->kind = kind;
    op->done = done;
    op->context = context;
    op->status = status;
    op->until_ms = clock_ms() + timeout_ms;
    if (status != STATUS_OK)
        op->message = mem_strdup(status_text());
    else
        rpc_pack(message, &op->request);
    etcd_post(etcd, begin, op);
}

void etcd_ops_cancel(etcd_t *etcd)
{
    for (etcd_op_state_t *op = etcd->ops; op; op = op->next)
        if (op->call && !last_words(op))
            rpc_call_cancel(op->call);
}
