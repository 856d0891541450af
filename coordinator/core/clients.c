/* See clients.h. */
#include "coordinator/core/clients.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/core/session.h"

client_t *clients_find(const core_t *core, uint64_t id)
{
    return table_get(&core->clients, &id, sizeof id);
}

void clients_end(core_t *core, uint64_t id, status_t status, const char *text,
                 uint32_t retry_after_ms)
{
    core_action_t *action = core_act(core, CORE_ACTION_END);
    action->end.client = id;
    action->end.status = status;
    action->end.text = core_copy(core, text);
    action->end.retry_after_ms = retry_after_ms;
}

void clients_forget(core_t *core, client_t *client)
{
    table_remove(&core->clients, &client->id, sizeof client->id);
    if (client->session)
        client->session->client = NULL;
    free(client);
}

client_t *clients_bind(core_t *core, uint64_t id, session_t *session)
{
    if (session->client) {
        clients_end(core, session->client->id, STATUS_ABORTED,
                    "another stream reads this request now", 0);
        clients_forget(core, session->client);
    }
    client_t *client = MEM_NEW(client_t);
    client->id = id;
    client->session = session;
    session->client = client;
    session->detach_at_ms = 0;
    table_put(&core->clients, &client->id, sizeof client->id, client);
    return client;
}

static const char *const *endpoints(core_t *core, size_t *n_out)
{
    const char **list = ARENA_NEW_ARRAY(&core->out->arena, const char *, core->n_coordinators + 1);
    size_t n = 0;
    list[n++] = core_copy(core, core->config.endpoint);
    for (size_t i = 0; i < core->n_coordinators; i++)
        if (strcmp(core->coordinators[i].id, core->config.id) != 0)
            list[n++] = core_copy(core, core->coordinators[i].endpoint);
    *n_out = n;
    return list;
}

static void send_started(core_t *core, session_t *session, client_t *client)
{
    core_action_t *action = core_act(core, CORE_ACTION_STARTED);
    action->started.client = client->id;
    action->started.id = core_copy(core, session->id);
    action->started.text_identity = core_copy(core, session->identity);
    action->started.deployment = core_copy(core, session->deployment->name);
    action->started.seed = session->sampling->seed;
    size_t n = 0;
    const char *const *list = endpoints(core, &n);
    action->started.endpoints = list;
    action->started.n_endpoints = n;
    action->started.resumable = session->resumable;
    action->started.prompt_tokens = (uint32_t)session->n_prompt;
    client->started = true;
}

static Shoal__V1__Logprobs *copy_logprobs(core_t *core, const Shoal__V1__Logprobs *from)
{
    arena_t *arena = &core->out->arena;
    Shoal__V1__Logprobs *copy = ARENA_NEW_ARRAY(arena, Shoal__V1__Logprobs, 1);
    shoal__v1__logprobs__init(copy);
    copy->logprob = from->logprob;
    copy->n_top = from->n_top;
    copy->top = ARENA_NEW_ARRAY(arena, Shoal__V1__TokenLogprob *, from->n_top + 1);
    for (size_t i = 0; i < from->n_top; i++) {
        copy->top[i] = ARENA_NEW_ARRAY(arena, Shoal__V1__TokenLogprob, 1);
        *copy->top[i] = *from->top[i];
    }
    return copy;
}

static void send_output(core_t *core, client_t *client, const sequence_t *s)
{
    arena_t *arena = &core->out->arena;
    uint32_t choice = s->choice;
    size_t sent = client->sent[choice], n = s->log.n;
    /* A client may have more than we do: of a request that was taken over only to be cancelled, not
     * all ids need have come. It is told the end, and nothing is taken back. */
    size_t from = sent < n ? sent : n;
    uint32_t known = (uint32_t)(sent < n ? n : sent);
    core_action_t *action = core_act(core, CORE_ACTION_OUTPUT);
    action->output.client = client->id;
    action->output.choice = choice;
    client->messages[choice]++;
    action->output.n = core->config.mutant == CORE_MUTANT_MESSAGE_COUNT ? client->messages[choice]
                                                                        : known;
    action->output.n_ids = n - from;
    uint32_t *ids = ARENA_NEW_ARRAY(arena, uint32_t, n - from + 1);
    memcpy(ids, s->log.ids ? s->log.ids + from : ids, (n - from) * sizeof *ids);
    action->output.ids = ids;
    size_t at = text_log_released(&s->log, from), to = text_log_released(&s->log, n);
    /* A stop string never reaches back into released bytes: its beginning was held back. */
    CHECK(to >= at);
    action->output.text = arena_strndup(arena, buffer_text(&s->log.text) + at, to - at);
    action->output.text_size = to - at;
    if (s->logprobs && n > from) {
        Shoal__V1__Logprobs **list = ARENA_NEW_ARRAY(arena, Shoal__V1__Logprobs *, n - from);
        for (size_t i = from; i < n; i++)
            list[i - from] = copy_logprobs(core, s->logprobs[i]);
        action->output.logprobs = list;
    }
    client->sent[choice] = known;
    if (s->state != SEQUENCE_ENDED)
        return;
    client->sent_end[choice] = true;
    action->output.ended = true;
    action->output.finish_reason = s->finish;
    action->output.prompt_tokens = (uint32_t)s->session->n_prompt;
    action->output.completion_tokens = (uint32_t)n;
    action->output.cached_tokens = s->cached_tokens;
    if (s->error_code) {
        action->output.error_code = core_copy(core, s->error_code);
        action->output.error_message = core_copy(core, s->error_message);
    }
}

static bool may_start(const core_t *core, const session_t *session)
{
    if (!session->sampling || session->n_choices == 0)
        return false;
    if (session->n_ended == session->n_choices)
        return true;
    return session->admitted && (!session->pointer_op || core->now_ms >= session->started_by_ms);
}

void clients_push(core_t *core, session_t *session)
{
    client_t *client = session->client;
    if (!client || client->busy)
        return;
    if (!client->started) {
        if (!may_start(core, session))
            return;
        send_started(core, session, client);
    }
    bool all_sent = true;
    for (uint32_t c = 0; c < session->n_choices; c++) {
        const sequence_t *s = &session->choices[c];
        bool ended = s->state == SEQUENCE_ENDED;
        if (ended && client->sent[c] > s->log.n && !s->error_code) {
            clients_end(core, client->id, STATUS_INVALID,
                        "n is past the end of the text: resume from what was received", 0);
            clients_forget(core, client);
            return;
        }
        all_sent = all_sent && client->sent_end[c];
        if (client->sent_end[c] || (!ended && s->log.n <= client->sent[c]))
            continue;
        send_output(core, client, s);
        client->busy = true;
        return;
    }
    if (!all_sent || session->n_choices == 0)
        return;
    clients_end(core, client->id, STATUS_OK, "", 0);
    clients_forget(core, client);
}

void clients_writable(core_t *core, uint64_t id)
{
    client_t *client = clients_find(core, id);
    if (!client)
        return;
    client->busy = false;
    if (client->session)
        clients_push(core, client->session);
}
