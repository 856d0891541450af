/* Prepared and go: how the ranks of an epoch agree that all of them are ready. */
#include <stdio.h>
#include <string.h>

#include "worker/fabric/fabric_internal.h"

#define FORM_PREPARED 1u
#define FORM_GO 2u

typedef struct {
    uint32_t kind;
    uint32_t rank;
    uint64_t epoch;
    uint64_t kv_blocks;
    char text_identity[FABRIC_IDENTITY_BYTES_MAX];
} form_message_t;

static status_t check_prepared(fabric_t *fabric, uint32_t rank, const form_message_t *message,
                               const form_message_t *mine)
{
    if (message->kind != FORM_PREPARED || message->rank != rank ||
        message->epoch != fabric->epoch ||
        memchr(message->text_identity, 0, sizeof message->text_identity) == NULL)
        return fail(STATUS_INVALID, "rank %u (host %s) sent a malformed \"prepared\"", rank,
                    fabric->hosts[rank]);
    if (strcmp(message->text_identity, mine->text_identity) != 0)
        return fail(STATUS_CONFLICT,
                    "rank %u (host %s) computes text identity %s where the leader has %s", rank,
                    fabric->hosts[rank], message->text_identity, mine->text_identity);
    return STATUS_OK;
}

static status_t form_leader(fabric_t *fabric, const fabric_where_t *where, form_message_t *mine)
{
    form_message_t prepared;
    for (uint32_t rank = 1; rank < fabric->n_ranks; rank++) {
        TRY(fabric_receive_exact(fabric, rank, FABRIC_CONTROL, where, &prepared, sizeof prepared));
        status_t status = check_prepared(fabric, rank, &prepared, mine);
        if (status != STATUS_OK) {
            fabric_abort(fabric, status_text());
            return status;
        }
        if (prepared.kv_blocks < mine->kv_blocks)
            mine->kv_blocks = prepared.kv_blocks;
    }
    mine->kind = FORM_GO;
    for (uint32_t rank = 1; rank < fabric->n_ranks; rank++)
        TRY(fabric_send(fabric, rank, FABRIC_CONTROL, where, mine, sizeof *mine));
    return STATUS_OK;
}

status_t fabric_form(fabric_t *fabric, const char *text_identity, uint64_t kv_blocks,
                     uint32_t timeout_ms, uint64_t *kv_blocks_out)
{
    const fabric_where_t where = {"formation", fabric->epoch, -1, timeout_ms ? timeout_ms : 1};
    form_message_t mine = {FORM_PREPARED, fabric->rank, fabric->epoch, kv_blocks, ""};
    int n = snprintf(mine.text_identity, sizeof mine.text_identity, "%s", text_identity);
    if (n < 0 || (size_t)n >= sizeof mine.text_identity)
        return fail(STATUS_INVALID, "a text identity of %d bytes; at most %d are right", n,
                    FABRIC_IDENTITY_BYTES_MAX - 1);
    if (fabric->rank == 0) {
        TRY(form_leader(fabric, &where, &mine));
        *kv_blocks_out = mine.kv_blocks;
        return STATUS_OK;
    }
    TRY(fabric_send(fabric, 0, FABRIC_CONTROL, &where, &mine, sizeof mine));
    form_message_t go;
    TRY(fabric_receive_exact(fabric, 0, FABRIC_CONTROL, &where, &go, sizeof go));
    if (go.kind != FORM_GO || go.epoch != fabric->epoch || go.kv_blocks > kv_blocks)
        return fail(STATUS_INVALID, "rank 0 (host %s) sent a malformed \"go\"", fabric->hosts[0]);
    *kv_blocks_out = go.kv_blocks;
    return STATUS_OK;
}
