/* Inference.Cancel at any coordinator. A request belongs to the coordinator that serves its client,
 * and a client may ask any: so one that does not have the request asks the others, and where none
 * of those that answer has it (it may be dead) takes it over from its replica and ends it.
 *
 * A cancel that another coordinator passed on carries FORWARDED and is answered from what is there,
 * so no two coordinators ask each other in turn. */
#include "coordinator/front_state.h"

#include <stdlib.h>
#include <string.h>

#define FORWARDED "shoal-forwarded"
#define METHOD "/shoal.v1.Inference/Cancel"
#define ANSWER_MS 2000
/* Cancels that are asked of all others at a time: a client that cancels what does not exist must
 * not become as many calls as there are coordinators, without end. */
#define ASKING_MAX 32

typedef struct asking asking_t;

/* One call to another coordinator. */
typedef struct {
    asking_t *asking;
    char *endpoint;
    rpc_channel_t *channel; /* NULL: it could not be opened */
    rpc_call_t *call;
    status_t status;
} other_t;

/* One cancel that is asked of all others; the core thread's but for `others[i].status`, which a
 * callback writes before it posts. */
struct asking {
    uint64_t number;
    ask_t *ask;
    other_t *others;
    size_t n, n_left;
    bool answered;
};

void front_start_cancel(ask_t *take_ask)
{
    const Shoal__V1__CancelRequest *m = (const Shoal__V1__CancelRequest *)take_ask->message;
    status_t status = front_check_id("id", m->id);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    front_add_client(take_ask);
    shell_event(take_ask->shell, &(core_event_t){.kind = CORE_EVENT_CANCEL,
                                                 .cancel = {take_ask->client, m->id, false}});
}

/* Closing a channel waits for its last callback, which the core thread must not. */
static void close_channels(shell_t *shell, void *take_data)
{
    (void)shell;
    asking_t *asking = take_data;
    for (size_t i = 0; i < asking->n; i++) {
        if (asking->others[i].call)
            rpc_call_unref(asking->others[i].call);
        if (asking->others[i].channel)
            rpc_channel_close(asking->others[i].channel);
        free(asking->others[i].endpoint);
    }
    free(asking->others);
    free(asking);
}

/* None of those that answered has it: its replica may. */
static void take_over(ask_t *take_ask)
{
    ask_t *ask = take_ask;
    if (atomic_load(&ask->ended) || !atomic_load(&ask->shell->running)) {
        ask_fail(ask, fail(STATUS_UNREACHABLE, "the coordinator is ending"));
        return;
    }
    front_add_client(ask);
    const Shoal__V1__CancelRequest *m = (const Shoal__V1__CancelRequest *)ask->message;
    shell_event(ask->shell, &(core_event_t){.kind = CORE_EVENT_CANCEL,
                                            .cancel = {ask->client, m->id, true}});
}

static void all_answered(shell_t *shell, asking_t *take_asking)
{
    asking_t *asking = take_asking;
    const char *silent = NULL;
    bool ended = false;
    for (size_t i = 0; i < asking->n; i++) {
        status_t status = asking->others[i].status;
        if (status == STATUS_STALE)
            ended = true;
        else if (status != STATUS_OK && status != STATUS_NOT_FOUND)
            silent = asking->others[i].endpoint;
    }
    ask_t *ask = asking->ask;
    if (silent)
        ask->silent = mem_format("nobody who answers has this request, and %s did not answer: try "
                                 "again", silent);
    if (asking->answered)
        ask_unref(ask);
    else if (ended)
        ask_fail(ask, fail(STATUS_NOT_FOUND, "the request has ended"));
    else
        take_over(ask);
    table_remove(&shell->front->asking, &asking->number, sizeof asking->number);
    shell_work(shell, close_channels, asking);
}

static void on_answered(shell_t *shell, void *take_data)
{
    other_t *other = take_data;
    asking_t *asking = other->asking;
    if (other->status == STATUS_OK && !asking->answered) {
        Shoal__V1__CancelResponse response = SHOAL__V1__CANCEL_RESPONSE__INIT;
        rpc_call_reply_message(asking->ask->call, &response);
        asking->answered = true;
    }
    if (--asking->n_left == 0)
        all_answered(shell, asking);
}

static void on_end(rpc_call_t *call, void *context, const rpc_result_t *result)
{
    (void)call;
    other_t *other = context;
    other->status = result->status;
    shell_post(other->asking->ask->shell, on_answered, other);
}

static void call_other(shell_t *shell, other_t *other, const buffer_t *bytes)
{
    static const rpc_metadata_t forwarded = {FORWARDED, "1"};
    rpc_channel_options_t channel = {.endpoint = other->endpoint};
    rpc_call_options_t options = {.method = METHOD,
                                  .timeout_ms = ANSWER_MS,
                                  .metadata = &forwarded,
                                  .n_metadata = 1,
                                  .handlers = {.on_end = on_end},
                                  .context = other};
    other->status = rpc_channel_open(shell->io, &channel, &other->channel);
    if (other->status == STATUS_OK)
        other->status = rpc_call_start(other->channel, &options, &other->call);
    if (other->status != STATUS_OK) {
        shell_post(shell, on_answered, other);
        return;
    }
    /* A call that has ended already says so in on_end. */
    if (rpc_call_send(other->call, bytes->data, bytes->size) == STATUS_OK)
        rpc_call_half_close(other->call);
}

static void ask_others(shell_t *shell, ask_t *take_ask)
{
    arena_t arena = {0};
    Shoal__V1__StatusResponse known = SHOAL__V1__STATUS_RESPONSE__INIT;
    core_status(shell->core, &arena, &known);
    asking_t *asking = MEM_NEW(asking_t);
    asking->ask = take_ask;
    asking->others = MEM_NEW_ARRAY(other_t, known.n_coordinators + 1);
    for (size_t i = 0; i < known.n_coordinators; i++)
        if (strcmp(known.coordinators[i], shell->endpoint) != 0)
            asking->others[asking->n++] =
                (other_t){.asking = asking, .endpoint = mem_strdup(known.coordinators[i])};
    arena_release(&arena);
    asking->number = ++shell->front->last_asking;
    table_put(&shell->front->asking, &asking->number, sizeof asking->number, asking);
    buffer_t bytes = {0};
    rpc_pack(take_ask->message, &bytes);
    asking->n_left = asking->n + 1;
    for (size_t i = 0; i < asking->n; i++)
        call_other(shell, &asking->others[i], &bytes);
    buffer_release(&bytes);
    /* One that stands for nobody, so that all_answered comes later also when there is nobody: this
     * may be an action of the core, which must not be stepped now. */
    other_t *nobody = &asking->others[asking->n];
    *nobody = (other_t){.asking = asking, .status = STATUS_NOT_FOUND};
    shell_post(shell, on_answered, nobody);
}

void front_cancel_failed(shell_t *shell, ask_t *take_ask, status_t status, const char *text)
{
    ask_t *ask = take_ask;
    front_remove_client(ask);
    bool forwarded = rpc_call_metadata(ask->call, FORWARDED) != NULL;
    if (status == STATUS_NOT_FOUND && !forwarded && !ask->asked_elsewhere &&
        shell->front->asking.n < ASKING_MAX) {
        ask->asked_elsewhere = true;
        ask_others(shell, ask);
        return;
    }
    if (status == STATUS_NOT_FOUND && ask->silent)
        ask_fail(ask, fail(STATUS_UNREACHABLE, "%s", ask->silent));
    else if (status == STATUS_STALE && !forwarded)
        ask_fail(ask, fail(STATUS_NOT_FOUND, "%s", text));
    else
        ask_fail(ask, fail(status, "%s", text));
}

void front_cancel_end(shell_t *shell)
{
    size_t at = 0;
    for (asking_t *asking; (asking = table_next(&shell->front->asking, &at));)
        for (size_t i = 0; i < asking->n; i++)
            if (asking->others[i].call)
                rpc_call_cancel(asking->others[i].call);
    shell_flush(shell, &shell->front->asking);
}
