/* See leaders.h. */
#include "coordinator/core/leaders.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "coordinator/core/dispatch.h"
#include "coordinator/core/session.h"

enum { CONTRACT_VERSION = 1, LINK_IDLE_MS = 60000, REFUSED_RETRY_MS = 100, LOGPROBS_MAX = 20 };

bool leaders_waiting(const core_t *core, const slot_t *slot)
{
    return slot->link_retry_at_ms > core->now_ms;
}

static size_t send(core_t *core, const link_t *link, const Shoal__Worker__V1__CoordinatorMessage *m)
{
    size_t size = shoal__worker__v1__coordinator_message__get_packed_size(m);
    uint8_t *bytes = ARENA_NEW_ARRAY(&core->out->arena, uint8_t, size);
    shoal__worker__v1__coordinator_message__pack(m, bytes);
    core_action_t *action = core_act(core, CORE_ACTION_LINK_SEND);
    action->link_send.link = link->id;
    action->link_send.bytes = bytes;
    action->link_send.size = size;
    return size;
}

void leaders_open(core_t *core, slot_t *slot)
{
    if (slot->link || !slot->active || leaders_waiting(core, slot))
        return;
    link_t *link = MEM_NEW(link_t);
    link->id = core_number(core);
    link->slot = slot;
    link->epoch = slot->epoch;
    slot->link = link;
    table_put(&core->links, &link->id, sizeof link->id, link);
    core_action_t *action = core_act(core, CORE_ACTION_LINK_OPEN);
    action->link_open.link = link->id;
    action->link_open.endpoint = core_copy(core, slot->active->leader);
    Shoal__Worker__V1__Hello hello = SHOAL__WORKER__V1__HELLO__INIT;
    hello.contract_version = CONTRACT_VERSION;
    hello.build = core_copy(core, core->config.build);
    hello.text_identity = slot->active->text_identity;
    hello.coordinator = core_copy(core, core->config.id);
    Shoal__Worker__V1__CoordinatorMessage m = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_HELLO;
    m.hello = &hello;
    send(core, link, &m);
    core_wake(core, &link->wake, TIMER_LINK, link, core->now_ms + LINK_OPEN_MS);
}

static void forget(core_t *core, link_t *link)
{
    table_remove(&core->links, &link->id, sizeof link->id);
    core_wake_off(core, &link->wake);
    link->slot->link = NULL;
    free(link);
}

void leaders_close(core_t *core, slot_t *slot)
{
    if (!slot->link)
        return;
    if (core->out) {
        core_action_t *action = core_act(core, CORE_ACTION_LINK_CLOSE);
        action->link_close.link = slot->link->id;
    }
    forget(core, slot->link);
}

/* The link is of no use: its sequences go on elsewhere, and it is tried again after a while. */
static void give_up(core_t *core, link_t *link, const char *why)
{
    slot_t *slot = link->slot;
    core_log(core, LOG_WARN, "link to replica %s/%u, epoch %llu: %s", slot->deployment->name,
             slot->ordinal, (unsigned long long)link->epoch, why);
    uint64_t wait = slot->link_retry_ms ? slot->link_retry_ms * 2 : LINK_RETRY_MS;
    slot->link_retry_ms = wait < LINK_RETRY_MAX_MS ? wait : LINK_RETRY_MAX_MS;
    slot->link_retry_at_ms = core->now_ms + slot->link_retry_ms / 2 +
                             core_random(core) % (slot->link_retry_ms / 2 + 1);
    if (!slot->link_broken_at_ms)
        slot->link_broken_at_ms = core->now_ms;
    dispatch_slot_lost(core, slot);
}

void leaders_broken(core_t *core, uint64_t id, const char *text)
{
    link_t *link = table_get(&core->links, &id, sizeof id);
    if (!link)
        return;
    give_up(core, link, text_or_empty(text));
}

void leaders_timer(core_t *core, link_t *link)
{
    if (link->state == LINK_OPENING) {
        give_up(core, link, "no answer to Hello");
        return;
    }
    if (link->slot->n_running == 0 && !core->elected)
        leaders_close(core, link->slot);
    else
        core_wake(core, &link->wake, TIMER_LINK, link, core->now_ms + LINK_IDLE_MS);
}

void leaders_send_admit(core_t *core, sequence_t *s, bool solo)
{
    session_t *session = s->session;
    Shoal__V1__TokenIds tokens = SHOAL__V1__TOKEN_IDS__INIT;
    tokens.n_ids = session->n_prompt;
    tokens.ids = session->prompt;
    Shoal__V1__Segment segment = SHOAL__V1__SEGMENT__INIT;
    segment.segment_case = SHOAL__V1__SEGMENT__SEGMENT_TOKENS;
    segment.tokens = &tokens;
    Shoal__V1__Segment *segments[] = {&segment};
    Shoal__Worker__V1__Admit admit = SHOAL__WORKER__V1__ADMIT__INIT;
    admit.session = session->id;
    admit.choice = s->choice;
    admit.owner = session->owner;
    admit.from_n = (uint32_t)s->log.n;
    admit.attach_only = s->attach_only;
    admit.solo = solo;
    admit.role = core_copy(core, "both");
    /* A leader that is only asked whether it knows the sequence needs no log to say so. */
    if (session->sampling && !s->attach_only) {
        admit.n_prompt = 1;
        admit.prompt = segments;
        admit.n_produced = s->log.n;
        admit.produced = s->log.ids;
        admit.sampling = session->sampling;
        size_t n_end = 0;
        const uint32_t *ends = tokenizer_end_ids(session->tokenizer, &n_end);
        admit.n_eos_ids = n_end;
        admit.eos_ids = ARENA_NEW_ARRAY(&core->out->arena, uint32_t, n_end + 1);
        memcpy(admit.eos_ids, ends, n_end * sizeof *ends);
    }
    admit.priority = session->priority;
    if (session->deadline_at_ms)
        admit.deadline_ms = session->deadline_at_ms > core->now_ms
                                ? session->deadline_at_ms - core->now_ms : 1;
    admit.tenant = core_copy(core, session->tenant);
    admit.adapter = core_copy(core, session->adapter);
    Shoal__Worker__V1__CoordinatorMessage m = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_ADMIT;
    m.admit = &admit;
    size_t size = send(core, s->slot->link, &m);
    s->unheard_bytes += size;
    s->slot->unheard_bytes += size;
}

void leaders_send_cancel(core_t *core, const sequence_t *s)
{
    if (!s->slot->link)
        return;
    Shoal__Worker__V1__Cancel cancel = SHOAL__WORKER__V1__CANCEL__INIT;
    cancel.session = s->session->id;
    cancel.choice = s->choice;
    cancel.owner = s->session->owner;
    Shoal__Worker__V1__CoordinatorMessage m = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__INIT;
    m.message_case = SHOAL__WORKER__V1__COORDINATOR_MESSAGE__MESSAGE_CANCEL;
    m.cancel = &cancel;
    send(core, s->slot->link, &m);
}

static void on_hello(core_t *core, link_t *link, const Shoal__Worker__V1__HelloReply *reply)
{
    slot_t *slot = link->slot;
    if (reply->epoch != link->epoch || !slot->active ||
        strcmp(reply->text_identity, slot->active->text_identity) != 0) {
        /* A leader of another epoch at the same address: never served. */
        give_up(core, link, "the leader answers for another epoch or text identity");
        return;
    }
    link->state = LINK_OPEN;
    link->opened_at_ms = core->now_ms;
    link->credit = reply->credit_tokens;
    slot->link_retry_at_ms = slot->link_retry_ms = slot->link_broken_at_ms = 0;
    core_wake(core, &link->wake, TIMER_LINK, link, core->now_ms + LINK_IDLE_MS);
    dispatch_unpark(core, slot);
    dispatch_pump(core, slot);
}

static bool is_retryable(const char *code)
{
    static const char *const codes[] = {"not_ready", "busy", "exhausted", "full", "draining",
                                        "overloaded"};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (strcmp(code, codes[i]) == 0)
            return true;
    return false;
}

static void on_refused(core_t *core, sequence_t *s, const char *code, const char *message)
{
    if (s->attach_only) {
        /* The leader does not know it. Without choice 0 there is nothing to start from; the other
         * choices start anew. */
        s->attach_only = false;
        dispatch_leave(core, s);
        if (s->session->sampling)
            dispatch_enqueue(core, s);
        else
            takeover_again(core, s->session);
        return;
    }
    if (is_retryable(code)) {
        dispatch_leave(core, s);
        dispatch_delay(core, s, REFUSED_RETRY_MS + core_random(core) % REFUSED_RETRY_MS);
        return;
    }
    session_finish(core, s, SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR,
                   *code ? code : "refused", message);
}

static void on_ended(core_t *core, sequence_t *s, const Shoal__Worker__V1__SequenceEnded *ended)
{
    const char *code = ended->error ? ended->error->code : "";
    const char *message = ended->error ? ended->error->message : "";
    if (ended->cached_tokens > s->cached_tokens)
        s->cached_tokens = ended->cached_tokens;
    switch (ended->reason) {
    case SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED:
        session_finish(core, s, ended->finish_reason, NULL, NULL);
        return;
    case SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__REFUSED:
        on_refused(core, s, code, message);
        return;
    case SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__SUPERSEDED:
        session_superseded(core, s->session);
        return;
    case SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__CANCELLED:
        if (strcmp(code, "deadline") == 0) {
            session_finish(core, s, SHOAL__V1__FINISH_REASON__FINISH_REASON_ERROR, code, message);
            return;
        }
        /* Nobody here asked for it: the leader stops, as when its slot is planned anew. */
        dispatch_lost(core, s);
        return;
    default:
        dispatch_lost(core, s);
        return;
    }
}

static void take_output(core_t *core, link_t *link, session_t *session,
                        const Shoal__Worker__V1__SequenceOutput *out)
{
    if (out->choice >= session->n_choices || out->owner != session->owner)
        return;
    sequence_t *s = &session->choices[out->choice];
    if (s->state != SEQUENCE_RUNNING || s->slot != link->slot || s->epoch != link->epoch)
        return;
    dispatch_heard(s);
    if (out->admitted && !session->sampling && !takeover_admitted(core, session, out->admitted)) {
        session_fail(core, session, STATUS_ABORTED, "the leader's record of the request is damaged",
                     0);
        return;
    }
    if (out->n_logprobs && out->n_logprobs != out->n_ids)
        return;
    bool finished = out->ended && out->ended->reason ==
                                      SHOAL__WORKER__V1__SEQUENCE_ENDED__REASON__FINISHED;
    if (!session->sampling && (out->n_ids || finished)) {
        session_fail(core, session, STATUS_ABORTED,
                     "the leader did not say how the request was admitted", 0);
        return;
    }
    if (out->n_ids) {
        Shoal__V1__Logprobs *const *logprobs = out->n_logprobs ? out->logprobs : NULL;
        if (!session_append(core, s, out->first_position, out->ids, out->n_ids, logprobs)) {
            leaders_send_admit(core, s, s->suspect); /* again, from where our ids end */
            return;
        }
        if (s->state != SEQUENCE_RUNNING)
            return;
    }
    if (out->ended)
        on_ended(core, s, out->ended);
}

static void on_sequence(core_t *core, link_t *link, const Shoal__Worker__V1__SequenceOutput *out)
{
    session_t *session = session_find(core, out->session);
    if (!session)
        return;
    take_output(core, link, session, out);
    /* It was taken over, and what it was meant for is to end it. */
    if (session->take_canceller && !session->taking && !session->dead)
        takeover_cancel_done(core, session, STATUS_OK, "");
}

static void on_step(core_t *core, link_t *link, const Shoal__Worker__V1__StepOutput *step)
{
    uint64_t id = link->id;
    slot_t *slot = link->slot;
    link->credit = step->credit_tokens;
    link->steps = step->step;
    if (step->load) {
        link->load = *step->load;
        link->load.base.unknown_fields = NULL;
        link->load.base.n_unknown_fields = 0;
        if (link->load.running + link->load.waiting > slot->n_running)
            slot->solo_alone = false;
    }
    for (size_t i = 0; i < step->n_sequences; i++) {
        on_sequence(core, link, step->sequences[i]);
        if (table_get(&core->links, &id, sizeof id) != link)
            return; /* it was closed on the way */
    }
    dispatch_pump(core, slot);
}

void leaders_message(core_t *core, uint64_t id, const uint8_t *bytes, size_t size)
{
    link_t *link = table_get(&core->links, &id, sizeof id);
    if (!link)
        return;
    Shoal__Worker__V1__LeaderMessage *m =
        shoal__worker__v1__leader_message__unpack(NULL, size, bytes);
    if (!m) {
        give_up(core, link, "a message that is no LeaderMessage");
        return;
    }
    if (m->message_case == SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_HELLO)
        on_hello(core, link, m->hello);
    else if (m->message_case == SHOAL__WORKER__V1__LEADER_MESSAGE__MESSAGE_STEP &&
             link->state == LINK_OPEN)
        on_step(core, link, m->step);
    shoal__worker__v1__leader_message__free_unpacked(m, NULL);
}
