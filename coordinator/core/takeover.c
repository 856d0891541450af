/* Taking a session over from a coordinator that is gone (or that the client cannot reach).
 *
 * The pointer in Redis says which replica computes the request. This coordinator raises the owner
 * number there, attaches at the leader with attach_only, and gets the whole token log back: what
 * the sequence was admitted with and its ids from 0. The text is computed anew from these, so the
 * client goes on from its n without a gap or a repeat. The coordinator of before, if it lives, is
 * told `superseded` by the leader.
 *
 * The replica that the pointer names may be gone while the old coordinator lives and moves the
 * sequence; so the pointer is read again, each RETRY_MS, until TAKE_WAIT_MS are over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/clients.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/session.h"

enum { RETRY_MS = 150, POINTER_VERSION = 1 };

typedef struct {
    uint64_t incarnation, epoch;
    uint32_t ordinal;
    char tenant[CORE_NAME_SIZE], deployment[CORE_NAME_SIZE], identity[CORE_NAME_SIZE];
} pointer_t;

static void put_number(buffer_t *out, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * i));
        buffer_append(out, &byte, 1);
    }
}

static void put_text(buffer_t *out, const char *text)
{
    put_number(out, strlen(text), 1);
    buffer_append_text(out, text);
}

uint8_t *takeover_pack(core_t *core, const session_t *session, const slot_t *slot, size_t *n_out)
{
    buffer_t out = {0};
    put_number(&out, POINTER_VERSION, 1);
    put_number(&out, core->process.incarnation, 8);
    put_number(&out, slot->epoch, 8);
    put_number(&out, slot->ordinal, 4);
    put_text(&out, session->deployment->name);
    put_text(&out, session->identity);
    put_text(&out, session->tenant);
    /* Names are long only by choice: such a request loses its tenant's name in the pointer. */
    if (out.size > JOBS_POINTER_BYTES_MAX) {
        out.size -= 1 + strlen(session->tenant);
        put_text(&out, "");
    }
    uint8_t *bytes = ARENA_NEW_ARRAY(&core->out->arena, uint8_t, out.size);
    memcpy(bytes, out.data, out.size);
    *n_out = out.size;
    buffer_release(&out);
    return bytes;
}

static bool get_number(const uint8_t **at, const uint8_t *end, size_t bytes, uint64_t *out)
{
    if ((size_t)(end - *at) < bytes)
        return false;
    *out = 0;
    for (size_t i = 0; i < bytes; i++)
        *out |= (uint64_t)(*at)[i] << (8 * i);
    *at += bytes;
    return true;
}

static bool get_text(const uint8_t **at, const uint8_t *end, char out[CORE_NAME_SIZE])
{
    uint64_t n;
    if (!get_number(at, end, 1, &n) || n >= CORE_NAME_SIZE || (size_t)(end - *at) < n)
        return false;
    memcpy(out, *at, n);
    out[n] = 0;
    *at += n;
    return true;
}

static bool unpack(const uint8_t *bytes, size_t n, pointer_t *out)
{
    const uint8_t *at = bytes, *end = bytes + n;
    uint64_t version, ordinal;
    if (!get_number(&at, end, 1, &version) || version != POINTER_VERSION ||
        !get_number(&at, end, 8, &out->incarnation) || !get_number(&at, end, 8, &out->epoch) ||
        !get_number(&at, end, 4, &ordinal) || !get_text(&at, end, out->deployment) ||
        !get_text(&at, end, out->identity) || !get_text(&at, end, out->tenant))
        return false;
    out->ordinal = (uint32_t)ordinal;
    return at == end;
}

static void ask(core_t *core, session_t *session, core_action_kind_t kind)
{
    core_action_t *action = core_act(core, kind);
    action->op = session->pointer_op = core_number(core);
    table_put(&core->pointer_ops, &session->pointer_op, sizeof session->pointer_op, session);
    action->pointer.id = core_copy(core, session->id);
    if (kind != CORE_ACTION_POINTER_TAKE)
        return;
    action->pointer.owner = session->owner;
    action->pointer.ttl_ms = POINTER_TTL_MS;
    uint8_t *bytes = ARENA_NEW_ARRAY(&core->out->arena, uint8_t, session->take_pointer_bytes + 1);
    memcpy(bytes, session->take_pointer, session->take_pointer_bytes);
    action->pointer.pointer = bytes;
    action->pointer.pointer_bytes = session->take_pointer_bytes;
}

/* A session to be taken over; NULL, with the client ended, when that cannot be tried. */
static session_t *begin(core_t *core, uint64_t client, const char *id)
{
    if (strlen(id) != CORE_ID_SIZE - 1 || session_find(core, id)) {
        clients_end(core, client, STATUS_NOT_FOUND, "no such request is running", 0);
        return NULL;
    }
    if (core->redis != CORE_STORE_UP || core->sessions.n >= CORE_SESSIONS_MAX || core->draining) {
        clients_end(core, client, STATUS_UNREACHABLE,
                    "the request is not of this coordinator, and its pointer cannot be read now",
                    0);
        return NULL;
    }
    session_t *session = session_make(core, id, NULL);
    session->taking = true;
    session->take_until_ms = core->now_ms + TAKE_WAIT_MS;
    ask(core, session, CORE_ACTION_POINTER_GET);
    return session;
}

void takeover_start(core_t *core, uint64_t client, const char *id, const uint32_t *n,
                    size_t n_choices)
{
    session_t *session = begin(core, client, id);
    if (!session)
        return;
    client_t *bound = clients_bind(core, client, session);
    for (size_t c = 0; c < n_choices && c < CORE_CHOICES_MAX; c++)
        bound->sent[c] = n[c];
}

void takeover_cancel(core_t *core, uint64_t client, const char *id)
{
    session_t *session = session_find(core, id);
    if (session && session->taking) {
        /* On its way here already, for its reader or for another cancel: it is ended when it is
         * here. Ended before, its other choices would run on, and its reader be told nothing. */
        if (session->take_canceller)
            clients_end(core, client, STATUS_UNREACHABLE,
                        "another cancel of this request is under way: try again", 0);
        else
            session->take_canceller = client;
        return;
    }
    /* Ours, but another coordinator took it and is gone now: its pointer says where it runs. */
    if (session && session->superseded && !session->client && !session->pointer_op)
        session_drop(core, session, false);
    session = begin(core, client, id);
    if (session)
        session->take_canceller = client;
}

void takeover_cancel_done(core_t *core, session_t *session, status_t status, const char *text)
{
    uint64_t client = session->take_canceller;
    session->take_canceller = 0;
    if (!client)
        return;
    if (status == STATUS_OK)
        session_cancel(core, client, session->id, false);
    else
        clients_end(core, client, status, text, 0);
}

void takeover_back(core_t *core, session_t *session)
{
    if (session->pointer_op)
        return; /* it is under way */
    session->take_held = false;
    free(session->take_pointer);
    session->take_pointer = NULL;
    ask(core, session, CORE_ACTION_POINTER_GET);
}

/* Our own log is whole: all that is needed is an owner number above everybody else's. */
static void back_pointer(core_t *core, session_t *session, const core_event_t *event)
{
    if (event->pointer_done.code != JOBS_OK) {
        if (session->client) {
            clients_end(core, session->client->id, STATUS_UNREACHABLE,
                        "another coordinator has taken this request", 0);
            clients_forget(core, session->client);
        }
        return;
    }
    session->owner = event->pointer_done.number;
    if (!session->take_pointer) {
        session->take_pointer_bytes = event->pointer_done.pointer_bytes;
        session->take_pointer = mem_new(session->take_pointer_bytes + 1, 1);
        memcpy(session->take_pointer, event->pointer_done.pointer, session->take_pointer_bytes);
        ask(core, session, CORE_ACTION_POINTER_TAKE);
        return;
    }
    session->superseded = false;
    session->forget_at_ms =
        session->n_ended == session->n_choices ? core->now_ms + KEEP_ENDED_MS : 0;
    if (!session->client)
        session->detach_at_ms = core->now_ms + core->config.detach_ms;
    session_rearm(core, session);
    for (uint32_t c = 0; c < session->n_choices && !session->dead; c++) {
        sequence_t *s = &session->choices[c];
        s->class = CLASS_CONTINUATION;
        if (s->state == SEQUENCE_NEW)
            dispatch_enqueue(core, s);
    }
    clients_push(core, session);
}

void takeover_again(core_t *core, session_t *session)
{
    session->take_held = false;
    if (core->now_ms >= session->take_until_ms) {
        session_fail(core, session, STATUS_ABORTED,
                     "the request was lost with its coordinator and its replica", 0);
        return;
    }
    session->take_by_ms = core->now_ms + RETRY_MS;
    session_rearm(core, session);
}

static void on_get(core_t *core, session_t *session, const core_event_t *event)
{
    pointer_t pointer = {0};
    if (!unpack(event->pointer_done.pointer, event->pointer_done.pointer_bytes, &pointer)) {
        session_fail(core, session, STATUS_NOT_FOUND, "the request's pointer is damaged", 0);
        return;
    }
    deployment_t *d = cluster_find(core, pointer.deployment);
    const slot_t *slot = d ? cluster_slot(d, pointer.ordinal) : NULL;
    if (!slot || !slot->active || slot->epoch != pointer.epoch || !d->tokenizer ||
        strcmp(slot->active->text_identity, pointer.identity) != 0) {
        takeover_again(core, session);
        return;
    }
    session->deployment = d;
    session->tokenizer = d->tokenizer;
    snprintf(session->identity, sizeof session->identity, "%s", pointer.identity);
    session->take_ordinal = pointer.ordinal;
    session->take_epoch = pointer.epoch;
    session->owner = event->pointer_done.number;
    free(session->take_pointer);
    session->take_pointer_bytes = event->pointer_done.pointer_bytes;
    session->take_pointer = mem_new(session->take_pointer_bytes + 1, 1);
    memcpy(session->take_pointer, event->pointer_done.pointer, session->take_pointer_bytes);
    ask(core, session, CORE_ACTION_POINTER_TAKE);
}

static void prepare_attach(session_t *session)
{
    if (!session->choices)
        session->choices = MEM_NEW_ARRAY(sequence_t, CORE_CHOICES_MAX);
    session->n_choices = 1;
    session->admitted = true;
    sequence_t *s = session->choices;
    s->session = session;
    s->class = CLASS_CONTINUATION;
    s->attach_only = true;
    text_log_start(&s->log);
}

void takeover_pointer(core_t *core, const core_event_t *event)
{
    uint64_t op = event->pointer_done.op;
    session_t *session = table_remove(&core->pointer_ops, &op, sizeof op);
    if (!session)
        return;
    session->pointer_op = 0;
    jobs_code_t code = event->pointer_done.code;
    if (session->superseded) {
        back_pointer(core, session, event);
        return;
    }
    if (!session->taking) {
        session->resumable = code == JOBS_OK;
        clients_push(core, session);
        return;
    }
    if (code == JOBS_NOT_FOUND) {
        session_fail(core, session, STATUS_NOT_FOUND, "no such request is running", 0);
    } else if (code == JOBS_CONFLICT) {
        takeover_again(core, session); /* somebody else took it in between */
    } else if (code != JOBS_OK) {
        session_fail(core, session, STATUS_UNREACHABLE, "the request's pointer cannot be read now",
                     0);
    } else if (!session->take_pointer) {
        on_get(core, session, event);
    } else {
        session->owner = event->pointer_done.number;
        session->take_held = true;
        prepare_attach(session);
        takeover_step(core, session);
    }
}

void takeover_step(core_t *core, session_t *session)
{
    session->take_by_ms = 0;
    if (!session->taking)
        return;
    if (!session->take_held) {
        free(session->take_pointer);
        session->take_pointer = NULL;
        if (!session->pointer_op)
            ask(core, session, CORE_ACTION_POINTER_GET);
        return;
    }
    sequence_t *s = session->choices;
    if (s->state != SEQUENCE_NEW)
        return;
    slot_t *slot = cluster_slot(session->deployment, session->take_ordinal);
    if (!slot || !slot->active || slot->epoch != session->take_epoch) {
        takeover_again(core, session);
        return;
    }
    if (dispatch_attach(core, s, slot))
        return;
    session->take_by_ms = core->now_ms + 20; /* its link opens */
    if (core->now_ms >= session->take_until_ms)
        takeover_again(core, session);
    session_rearm(core, session);
}

bool takeover_admitted(core_t *core, session_t *session, const Shoal__Worker__V1__Admit *admitted)
{
    if (!session->taking || !admitted->sampling || admitted->n_prompt != 1 ||
        admitted->prompt[0]->segment_case != SHOAL__V1__SEGMENT__SEGMENT_TOKENS ||
        admitted->prompt[0]->tokens->n_ids == 0)
        return false;
    core_request_t request = {
        .prompt = admitted->prompt[0]->tokens->ids,
        .n_prompt = admitted->prompt[0]->tokens->n_ids,
        .sampling = admitted->sampling,
        .priority = admitted->priority,
        .tenant = admitted->tenant,
        .adapter = admitted->adapter,
    };
    session_set_request(session, &request, core->now_ms);
    session->taking = false;
    session->take_by_ms = 0;
    session->resumable = true;
    uint64_t need = session->n_prompt + session->sampling->max_tokens;
    sequence_t *s = session->choices;
    s->attach_only = false;
    s->need = need;
    s->slot->committed += need;
    for (uint32_t c = 1; c < session->n_choices; c++) {
        s = &session->choices[c];
        s->session = session;
        s->choice = c;
        s->class = CLASS_CONTINUATION;
        s->attach_only = true;
        s->need = need;
        text_log_start(&s->log);
        if (!dispatch_attach(core, s, session->choices[0].slot))
            dispatch_enqueue(core, s);
    }
    session_rearm(core, session);
    clients_push(core, session);
    return true;
}
