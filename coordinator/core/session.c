/* See session.h. */
#include "coordinator/core/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/clients.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/jobs.h"

session_t *session_find(const core_t *core, const char *id)
{
    return table_get(&core->sessions, id, strlen(id));
}

/* protobuf-c has no copy: packing and unpacking is one. */
static Shoal__V1__Sampling *copy_sampling(const Shoal__V1__Sampling *from)
{
    size_t size = shoal__v1__sampling__get_packed_size(from);
    uint8_t *bytes = mem_new(size + 1, 1);
    shoal__v1__sampling__pack(from, bytes);
    Shoal__V1__Sampling *copy = shoal__v1__sampling__unpack(NULL, size, bytes);
    CHECK(copy != NULL);
    free(bytes);
    return copy;
}

/* What a request is, from here on fixed. */
void session_set_request(session_t *session, const core_request_t *request, uint64_t now_ms)
{
    session->n_prompt = request->n_prompt;
    session->prompt = MEM_NEW_ARRAY(uint32_t, request->n_prompt + 1);
    memcpy(session->prompt, request->prompt, request->n_prompt * sizeof *request->prompt);
    session->sampling = copy_sampling(request->sampling);
    session->stops = (text_stops_t){session->sampling->stop, session->sampling->n_stop};
    session->priority = request->priority;
    session->conversation = mem_strdup(text_or_empty(request->conversation));
    session->tenant = mem_strdup(text_or_empty(request->tenant));
    session->adapter = mem_strdup(text_or_empty(request->adapter));
    session->ring_key = ring_key(session->tenant, session->adapter, session->conversation,
                                 session->prompt, session->n_prompt);
    if (request->deadline_ms)
        session->deadline_at_ms = now_ms + request->deadline_ms;
    uint32_t n = session->sampling->choices;
    session->n_choices = n < 1 ? 1 : n > CORE_CHOICES_MAX ? CORE_CHOICES_MAX : n;
}

static void make_choices(session_t *session, sequence_class_t class)
{
    session->choices = MEM_NEW_ARRAY(sequence_t, session->n_choices);
    for (uint32_t c = 0; c < session->n_choices; c++) {
        sequence_t *s = &session->choices[c];
        s->session = session;
        s->choice = c;
        s->class = class;
        s->need = session->n_prompt + session->sampling->max_tokens;
        text_log_start(&s->log);
    }
}

session_t *session_make(core_t *core, const char *id, deployment_t *deployment)
{
    session_t *session = MEM_NEW(session_t);
    snprintf(session->id, sizeof session->id, "%s", id);
    session->deployment = deployment;
    session->tokenizer = deployment ? deployment->tokenizer : NULL;
    session->owner = 1;
    table_put(&core->sessions, session->id, strlen(session->id), session);
    return session;
}

void session_generate(core_t *core, uint64_t client, const core_request_t *request)
{
    deployment_t *d = cluster_find(core, request->deployment);
    if (!d || !d->record || !d->tokenizer) {
        clients_end(core, client, STATUS_NOT_FOUND, "no such model is deployed", 0);
        return;
    }
    uint64_t need = (request->n_prompt + request->sampling->max_tokens) *
                    (request->sampling->choices ? request->sampling->choices : 1);
    if (core->draining) {
        clients_end(core, client, STATUS_UNREACHABLE, "this coordinator is shutting down", 0);
        return;
    }
    if (core->sessions.n >= CORE_SESSIONS_MAX ||
        d->waiting_tokens + need > core->config.waiting_tokens_max) {
        clients_end(core, client, STATUS_EXHAUSTED, "the waiting room is full: try again later",
                    dispatch_retry_ms(core, d));
        return;
    }
    if (request->n_prompt == 0 || session_find(core, request->id)) {
        clients_end(core, client, STATUS_CONFLICT, "a request with this id exists", 0);
        return;
    }
    session_t *session = session_make(core, request->id, d);
    session_set_request(session, request, core->now_ms);
    make_choices(session, CLASS_INTERACTIVE);
    session->wait_until_ms = core->now_ms + core->config.queue_wait_ms;
    clients_bind(core, client, session);
    session_rearm(core, session);
    for (uint32_t c = 0; c < session->n_choices && !session->dead; c++)
        dispatch_enqueue(core, &session->choices[c]);
}

session_t *session_for_item(core_t *core, item_t *item, deployment_t *deployment,
                            const core_request_t *request)
{
    session_t *session = session_make(core, item->id, deployment);
    session_set_request(session, request, core->now_ms);
    session->n_choices = 1; /* an item has one result */
    session->owner = item->attempt;
    session->item = item;
    make_choices(session, CLASS_ITEM);
    sequence_t *s = session->choices;
    s->deaths = (uint32_t)(item->deaths < DEATHS_MAX ? item->deaths : DEATHS_MAX);
    s->suspect = item->deaths > 0;
    return session;
}

void session_resume(core_t *core, uint64_t client, const char *id, const uint32_t *n,
                    size_t n_choices)
{
    session_t *session = session_find(core, id);
    if (!session || session->item) {
        takeover_start(core, client, id, n, n_choices);
        return;
    }
    client_t *bound = clients_bind(core, client, session);
    for (size_t c = 0; c < n_choices && c < CORE_CHOICES_MAX; c++)
        bound->sent[c] = n[c];
    session_rearm(core, session);
    if (session->superseded)
        takeover_back(core, session);
    else
        clients_push(core, session);
}

static void cancel_all(core_t *core, session_t *session, const char *code, const char *message,
                       Shoal__V1__FinishReason finish)
{
    for (uint32_t c = 0; c < session->n_choices && !session->dead; c++)
        if (session->choices[c].state != SEQUENCE_ENDED)
            session_finish(core, &session->choices[c], finish, code, message);
}

void session_cancel(core_t *core, uint64_t client, const char *id, bool take)
{
    session_t *session = session_find(core, id);
    if (session ? session->taking || (take && session->superseded) : take) {
        takeover_cancel(core, client, id);
        return;
    }
    if (!session || session->item || session->superseded) {
        clients_end(core, client, STATUS_NOT_FOUND, "no such request is running", 0);
        return;
    }
    if (session->n_choices && session->n_ended == session->n_choices) {
        clients_end(core, client, STATUS_STALE, "the request has ended", 0);
        return;
    }
    cancel_all(core, session, "cancelled", "the request was cancelled",
               SHOAL__V1__FINISH_REASON__FINISH_REASON_CANCELLED);
    clients_end(core, client, STATUS_OK, "", 0);
}

void session_client_gone(core_t *core, uint64_t id)
{
    client_t *client = clients_find(core, id);
    if (!client)
        return;
    session_t *session = client->session;
    clients_forget(core, client);
    if (!session)
        return;
    /* A disconnect is not a cancel: whoever holds the id may go on reading for a while. */
    session->detach_at_ms = core->now_ms + core->config.detach_ms;
    if (core->config.mutant == CORE_MUTANT_CANCEL_ON_DISCONNECT)
        session->detach_at_ms = core->now_ms;
    if (session->superseded)
        session->detach_at_ms = 0;
    session_rearm(core, session);
}

static void free_choices(sequence_t *choices, uint32_t n)
{
    for (uint32_t c = 0; choices && c < n; c++) {
        sequence_t *s = &choices[c];
        for (size_t i = 0; s->logprobs && i < s->log.n; i++)
            shoal__v1__logprobs__free_unpacked(s->logprobs[i], NULL);
        free(s->logprobs);
        text_log_release(&s->log);
        free(s->error_code);
        free(s->error_message);
    }
    free(choices);
}

void session_drop(core_t *core, session_t *session, bool tell)
{
    if (session->dead)
        return;
    session->dead = true;
    CHECK(session->client == NULL);
    takeover_cancel_done(core, session, STATUS_NOT_FOUND, "no such request is running");
    for (uint32_t c = 0; c < session->n_choices; c++) {
        sequence_t *s = &session->choices[c];
        if (tell)
            dispatch_cancel(core, s);
        else
            dispatch_leave(core, s);
        s->state = SEQUENCE_ENDED;
    }
    core_wake_off(core, &session->wake);
    if (session->pointer_op)
        table_remove(&core->pointer_ops, &session->pointer_op, sizeof session->pointer_op);
    table_remove(&core->sessions, session->id, strlen(session->id));
    session->next_dead = core->dead;
    core->dead = session;
}

void session_bury(core_t *core)
{
    while (core->dead) {
        session_t *session = core->dead;
        core->dead = session->next_dead;
        free_choices(session->choices, session->n_choices);
        if (session->sampling)
            shoal__v1__sampling__free_unpacked(session->sampling, NULL);
        free(session->prompt);
        free(session->conversation);
        free(session->tenant);
        free(session->adapter);
        free(session->take_pointer);
        free(session);
    }
}

void session_fail(core_t *core, session_t *session, status_t status, const char *text,
                  uint32_t retry_after_ms)
{
    if (session->client) {
        clients_end(core, session->client->id, status, text, retry_after_ms);
        clients_forget(core, session->client);
    }
    takeover_cancel_done(core, session, status, text);
    session_drop(core, session, true);
}

static void keep_logprobs(sequence_t *s, Shoal__V1__Logprobs *from)
{
    MEM_GROW(s->logprobs, s->logprobs_capacity, s->log.n);
    size_t size = shoal__v1__logprobs__get_packed_size(from);
    uint8_t *bytes = mem_new(size + 1, 1);
    shoal__v1__logprobs__pack(from, bytes);
    s->logprobs[s->log.n - 1] = shoal__v1__logprobs__unpack(NULL, size, bytes);
    CHECK(s->logprobs[s->log.n - 1] != NULL);
    free(bytes);
}

/* Whether by the request's own rules no id follows this one. It is decided here, from ids and
 * parameters alone, so that the text after n ids does not depend on when the leader says "ended".
 */
static bool is_last(const session_t *session, size_t n, uint32_t id)
{
    const Shoal__V1__Sampling *p = session->sampling;
    for (size_t i = 0; i < p->n_stop_ids; i++)
        if (p->stop_ids[i] == id)
            return true;
    return n >= p->max_tokens || (!p->ignore_eos && tokenizer_is_end(session->tokenizer, id));
}

bool session_append(core_t *core, sequence_t *s, uint32_t first, const uint32_t *ids, size_t n,
                    Shoal__V1__Logprobs *const *logprobs)
{
    session_t *session = s->session;
    if (first > s->log.n)
        return false;
    size_t before = s->log.n;
    for (size_t i = 0; i < n; i++) {
        size_t at = first + i;
        if (at < s->log.n) {
            if (s->log.ids[at] != ids[i])
                core_log(core, LOG_ERROR, "request %s: position %zu was %u and is now %u: "
                         "replicas of one text identity differ", session->id, at, s->log.ids[at],
                         ids[i]);
            continue;
        }
        bool last = is_last(session, s->log.n + 1, ids[i]);
        if (text_log_push(&s->log, session->tokenizer, &session->stops, ids[i], last) !=
            STATUS_OK) {
            session_finish(core, s, SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR, "internal",
                           "the replica produced an id outside of the vocabulary");
            return true;
        }
        if (session->sampling->has_logprobs_case && logprobs)
            keep_logprobs(s, logprobs[i]);
        if (s->log.stopped)
            break;
    }
    if (s->log.n > before)
        dispatch_progress(core, s);
    if (s->log.stopped)
        session_finish(core, s, SHOAL__V1__FINISH_REASON__FINISH_REASON_STOP, NULL, NULL);
    else
        clients_push(core, session);
    return true;
}

void session_finish(core_t *core, sequence_t *s, Shoal__V1__FinishReason finish,
                    const char *error_code, const char *error_message)
{
    session_t *session = s->session;
    if (s->state == SEQUENCE_ENDED)
        return;
    bool well = !error_code;
    /* The leader ends by itself what it has finished; all else has to be cancelled there. */
    if (well && !s->log.stopped)
        dispatch_leave(core, s);
    else
        dispatch_cancel(core, s);
    s->state = SEQUENCE_ENDED;
    s->finish = finish;
    if (s->log.stopped)
        s->finish = SHOAL__V1__FINISH_REASON__FINISH_REASON_STOP;
    if (error_code) {
        s->error_code = mem_strdup(error_code);
        s->error_message = mem_strdup(text_or_empty(error_message));
    }
    session->n_ended++;
    if (session->n_ended == session->n_choices) {
        session->deadline_at_ms = session->wait_until_ms = session->detach_at_ms = 0;
        session->forget_at_ms = core->now_ms + KEEP_ENDED_MS;
        if (session->item) {
            items_session_ended(core, session);
            session_drop(core, session, false);
            return;
        }
        session_rearm(core, session);
    }
    clients_push(core, session);
}

void session_superseded(core_t *core, session_t *session)
{
    if (session->client) {
        clients_end(core, session->client->id, STATUS_STALE,
                    "superseded: another coordinator serves this request now", 0);
        clients_forget(core, session->client);
    }
    if (session->item || !session->sampling) {
        if (session->item)
            items_session_superseded(core, session->item);
        takeover_cancel_done(core, session, STATUS_UNREACHABLE,
                             "another coordinator takes this request now: try again");
        session_drop(core, session, false);
        return;
    }
    for (uint32_t c = 0; c < session->n_choices; c++)
        dispatch_leave(core, &session->choices[c]);
    session->superseded = true;
    session->deadline_at_ms = session->wait_until_ms = session->detach_at_ms = 0;
    session->forget_at_ms = core->now_ms + KEEP_ENDED_MS;
    session_rearm(core, session);
}

static void put_pointer(core_t *core, session_t *session, const slot_t *slot)
{
    if (core->redis != CORE_STORE_UP)
        return;
    core_action_t *action = core_act(core, CORE_ACTION_POINTER_PUT);
    if (session->pointer_op)
        table_remove(&core->pointer_ops, &session->pointer_op, sizeof session->pointer_op);
    action->op = session->pointer_op = core_number(core);
    table_put(&core->pointer_ops, &session->pointer_op, sizeof session->pointer_op, session);
    action->pointer.id = core_copy(core, session->id);
    action->pointer.owner = session->owner;
    action->pointer.ttl_ms = POINTER_TTL_MS;
    action->pointer.pointer =
        takeover_pack(core, session, slot, &action->pointer.pointer_bytes);
}

void session_admitted(core_t *core, session_t *session, const slot_t *slot)
{
    session->admitted = true;
    session->wait_until_ms = 0;
    if (!*session->identity)
        snprintf(session->identity, sizeof session->identity, "%s", slot->active->text_identity);
    if (session->item)
        return;
    put_pointer(core, session, slot);
    session->started_by_ms = core->now_ms + STARTED_WAIT_MS;
    session_rearm(core, session);
    clients_push(core, session);
}

void session_moved(core_t *core, session_t *session, const slot_t *slot)
{
    put_pointer(core, session, slot);
}

void session_restart(core_t *core, session_t *session)
{
    bool shown = false;
    for (uint32_t c = 0; c < session->n_choices; c++)
        shown = shown || session->choices[c].log.n > 0;
    if (!session->item && (shown || session->client == NULL || session->client->started)) {
        cancel_all(core, session, "replica_lost",
                   "no replica of the text identity that began this text is left",
                   SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR);
        return;
    }
    for (uint32_t c = 0; c < session->n_choices; c++) {
        sequence_t *s = &session->choices[c];
        if (s->state == SEQUENCE_ENDED)
            continue;
        dispatch_leave(core, s);
        for (size_t i = 0; s->logprobs && i < s->log.n; i++)
            shoal__v1__logprobs__free_unpacked(s->logprobs[i], NULL);
        text_log_release(&s->log);
        text_log_start(&s->log);
    }
    *session->identity = 0;
    session->admitted = false; /* so that the next admission notes the identity that it then has */
    session->tokenizer = session->deployment->tokenizer;
    for (uint32_t c = 0; c < session->n_choices && !session->dead; c++)
        if (session->choices[c].state == SEQUENCE_NEW)
            dispatch_enqueue(core, &session->choices[c]);
}

static bool due(uint64_t at_ms, uint64_t now_ms)
{
    return at_ms && at_ms <= now_ms;
}

static void earlier(uint64_t *next, uint64_t at_ms)
{
    if (at_ms && at_ms < *next)
        *next = at_ms;
}

void session_rearm(core_t *core, session_t *session)
{
    if (session->dead)
        return;
    uint64_t next = UINT64_MAX;
    earlier(&next, session->deadline_at_ms);
    earlier(&next, session->wait_until_ms);
    earlier(&next, session->detach_at_ms);
    earlier(&next, session->started_by_ms);
    earlier(&next, session->forget_at_ms);
    earlier(&next, session->take_by_ms);
    core_wake(core, &session->wake, TIMER_SESSION, session, next);
}

void session_timer(core_t *core, session_t *session)
{
    uint64_t now = core->now_ms;
    if (due(session->forget_at_ms, now) && !session->client && session->superseded) {
        session_drop(core, session, false);
        return;
    }
    if (due(session->forget_at_ms, now) && !session->client) {
        core_action_t *action = core_act(core, CORE_ACTION_POINTER_DROP);
        action->pointer.id = core_copy(core, session->id);
        action->pointer.owner = session->owner;
        session_drop(core, session, false);
        return;
    }
    if (due(session->forget_at_ms, now))
        session->forget_at_ms = now + KEEP_ENDED_MS; /* somebody still reads it */
    if (due(session->deadline_at_ms, now)) {
        session->deadline_at_ms = 0;
        cancel_all(core, session, "deadline", "the deadline of the request has passed",
                   SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR);
    }
    if (!session->dead && due(session->detach_at_ms, now)) {
        session->detach_at_ms = 0;
        cancel_all(core, session, "cancelled", "nobody came back to read it",
                   SHOAL__V1__FINISH_REASON__FINISH_REASON_CANCELLED);
    }
    if (!session->dead && due(session->wait_until_ms, now)) {
        session_fail(core, session, STATUS_EXHAUSTED,
                     "no replica had room within queue_wait_ms: try again later",
                     dispatch_retry_ms(core, session->deployment));
        return;
    }
    if (!session->dead && due(session->take_by_ms, now))
        takeover_step(core, session);
    if (!session->dead && due(session->started_by_ms, now)) {
        session->started_by_ms = 0;
        clients_push(core, session);
    }
    if (!session->dead)
        session_rearm(core, session);
}
