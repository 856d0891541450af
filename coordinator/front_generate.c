/* shoal.v1.Inference: requests become core events, the core's outputs become messages.
 *
 * Output is state: after each message the core waits until it is told that the stream takes another
 * one, so a slow reader costs no memory. A stream that ends early is no cancel. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/front_state.h"

/* ---- clients of the core ---- */

void front_add_client(ask_t *ask)
{
    front_t *front = ask->shell->front;
    ask->client = ++front->last_client;
    table_put(&front->clients, &ask->client, sizeof ask->client, ask);
}

static ask_t *find_client(shell_t *shell, uint64_t client)
{
    return table_get(&shell->front->clients, &client, sizeof client);
}

void front_remove_client(ask_t *ask)
{
    table_remove(&ask->shell->front->clients, &ask->client, sizeof ask->client);
    ask->client = 0;
}

/* The core has forgotten the client, or is told to. */
static void drop_client(ask_t *take_ask)
{
    front_remove_client(take_ask);
    ask_unref(take_ask);
}

static void client_ended(ask_t *ask)
{
    if (!ask->client)
        return;
    shell_event(ask->shell, &(core_event_t){.kind = CORE_EVENT_CLIENT_GONE,
                                            .client = {ask->client}});
    if (ask->client)
        drop_client(ask);
}

static void client_writable(ask_t *ask)
{
    if (ask->client)
        shell_event(ask->shell, &(core_event_t){.kind = CORE_EVENT_CLIENT_WRITABLE,
                                                .client = {ask->client}});
}

static void say_writable(shell_t *shell, void *take_data)
{
    ask_t *ask = take_data;
    (void)shell;
    client_writable(ask);
    ask_unref(ask);
}

/* ---- what the core says ---- */

void front_started(shell_t *shell, const core_action_t *action)
{
    ask_t *ask = find_client(shell, action->started.client);
    if (!ask)
        return;
    arena_t arena = {0};
    Shoal__V1__GenerateResponse response = SHOAL__V1__GENERATE_RESPONSE__INIT;
    Shoal__V1__Started started = SHOAL__V1__STARTED__INIT;
#define TEXT(text) arena_strndup(&arena, text, strlen(text))
    started.id = TEXT(action->started.id);
    started.seed = action->started.seed;
    started.text_identity = TEXT(action->started.text_identity);
    started.model = TEXT(action->started.deployment);
    started.resumable = action->started.resumable;
    started.prompt_tokens = action->started.prompt_tokens;
    started.n_endpoints = action->started.n_endpoints;
    started.endpoints = ARENA_NEW_ARRAY(&arena, char *, started.n_endpoints + 1);
    for (size_t i = 0; i < started.n_endpoints; i++)
        started.endpoints[i] = TEXT(action->started.endpoints[i]);
#undef TEXT
    response.message_case = SHOAL__V1__GENERATE_RESPONSE__MESSAGE_STARTED;
    response.started = &started;
    /* A call that ended meanwhile tells so by its end. */
    status_t status = rpc_call_send_message(ask->call, &response);
    if (status != STATUS_OK && status != STATUS_CANCELLED)
        rpc_call_cancel(ask->call);
    arena_release(&arena);
}

void front_output(shell_t *shell, const core_action_t *action)
{
    ask_t *ask = find_client(shell, action->output.client);
    if (!ask)
        return;
    arena_t arena = {0};
    Shoal__V1__GenerateResponse response = SHOAL__V1__GENERATE_RESPONSE__INIT;
    Shoal__V1__Output output = SHOAL__V1__OUTPUT__INIT;
    Shoal__V1__Ended ended = SHOAL__V1__ENDED__INIT;
    Shoal__V1__Usage usage = SHOAL__V1__USAGE__INIT;
    Shoal__V1__Error error = SHOAL__V1__ERROR__INIT;
    output.choice = action->output.choice;
    output.n = action->output.n;
    output.n_ids = action->output.n_ids;
    output.ids = ARENA_NEW_ARRAY(&arena, uint32_t, output.n_ids + 1);
    memcpy(output.ids, action->output.ids ? action->output.ids : output.ids,
           output.n_ids * sizeof *output.ids);
    output.text = arena_strndup(&arena, action->output.text ? action->output.text : "",
                                action->output.text_size);
    if (action->output.logprobs) {
        output.logprobs = action->output.logprobs;
        output.n_logprobs = output.n_ids;
    }
    if (action->output.ended) {
        output.ended = &ended;
        ended.finish_reason = action->output.finish_reason;
        ended.usage = &usage;
        usage.prompt_tokens = action->output.prompt_tokens;
        usage.completion_tokens = action->output.completion_tokens;
        usage.cached_tokens = action->output.cached_tokens;
        if (action->output.error_code) {
            const char *words = action->output.error_message ? action->output.error_message : "";
            ended.error = &error;
            error.code = arena_strndup(&arena, action->output.error_code,
                                       strlen(action->output.error_code));
            error.message = arena_strndup(&arena, words, strlen(words));
        }
    }
    response.message_case = SHOAL__V1__GENERATE_RESPONSE__MESSAGE_OUTPUT;
    response.output = &output;
    status_t status = rpc_call_send_message(ask->call, &response);
    if (status != STATUS_OK && status != STATUS_CANCELLED)
        rpc_call_cancel(ask->call);
    /* Posted, not called: an action must not step the core. */
    if (status == STATUS_OK && rpc_call_writable(ask->call)) {
        ask_ref(ask);
        shell_post(shell, say_writable, ask);
    }
    arena_release(&arena);
}

void front_end(shell_t *shell, const core_action_t *action)
{
    ask_t *ask = find_client(shell, action->end.client);
    if (!ask)
        return;
    bool cancel = ask->method->kind == RPC_UNARY;
    if (cancel && action->end.status != STATUS_OK) {
        front_cancel_failed(shell, ask, action->end.status, action->end.text);
        return;
    }
    if (cancel) {
        Shoal__V1__CancelResponse response = SHOAL__V1__CANCEL_RESPONSE__INIT;
        rpc_call_reply_message(ask->call, &response);
    } else {
        char retry[16];
        snprintf(retry, sizeof retry, "%" PRIu32, action->end.retry_after_ms);
        rpc_metadata_t metadata = {"retry-after-ms", retry};
        rpc_call_finish(ask->call, action->end.status, action->end.text, &metadata,
                        action->end.retry_after_ms > 0);
    }
    drop_client(ask);
}

/* ---- Generate ---- */

typedef struct {
    ask_t *ask;
    char deployment[CORE_NAME_SIZE];
    const model_entry_t *entry;
    uint32_t context_max;
    request_t request;
    token_ids_t ids;
    status_t status;
    char text[STATUS_TEXT_MAX];
} generate_t;

static void generate_free(generate_t *take_g)
{
    request_release(&take_g->request);
    token_ids_release(&take_g->ids);
    free(take_g);
}

static void admit(shell_t *shell, void *take_data)
{
    generate_t *g = take_data;
    ask_t *ask = g->ask;
    if (g->status != STATUS_OK || !atomic_load(&shell->running)) {
        ask_fail(ask, g->status != STATUS_OK
                          ? fail(g->status, "%s", g->text)
                          : fail(STATUS_UNREACHABLE, "the coordinator is ending"));
        generate_free(g);
        return;
    }
    if (atomic_load(&ask->ended)) { /* gone while its prompt was tokenized */
        ask_unref(ask);
        generate_free(g);
        return;
    }
    const Shoal__V1__GenerateRequest *m = (const Shoal__V1__GenerateRequest *)ask->message;
    front_add_client(ask);
    core_event_t event = {.kind = CORE_EVENT_GENERATE};
    event.generate.client = ask->client;
    event.generate.request = (core_request_t){
        .deployment = g->deployment,
        .prompt = g->ids.ids,
        .n_prompt = g->ids.n,
        .sampling = &g->request.sampling,
        .priority = m->has_priority_case == SHOAL__V1__GENERATE_REQUEST__HAS_PRIORITY_PRIORITY
                        ? m->priority
                        : 0,
        .deadline_ms = m->deadline_ms,
        .conversation = m->conversation,
        .tenant = m->tenant,
        .adapter = m->adapter,
    };
    shell_random_id(event.generate.request.id);
    shell_event(shell, &event);
    generate_free(g);
}

static status_t check_generate(const Shoal__V1__GenerateRequest *m)
{
    TRY(request_check_text("conversation", m->conversation, REQUEST_NAME_BYTES_MAX));
    TRY(request_check_text("tenant", m->tenant, REQUEST_NAME_BYTES_MAX));
    if (m->adapter[0])
        return fail(STATUS_INVALID, "adapter: \"%.40s\"; there are no adapters, leave it empty",
                    m->adapter);
    if (m->has_priority_case == SHOAL__V1__GENERATE_REQUEST__HAS_PRIORITY_PRIORITY &&
        (m->priority < -100 || m->priority > 100))
        return fail(STATUS_INVALID, "priority: %d is not from -100 to 100", m->priority);
    return STATUS_OK;
}

static status_t prepare_request(generate_t *g)
{
    const Shoal__V1__GenerateRequest *m = (const Shoal__V1__GenerateRequest *)g->ask->message;
    TRY(check_generate(m));
    TRY(request_from_generate(m, &g->request));
    TRY(models_encode(g->entry, &g->request, &g->ids));
    TRY(request_fit(&g->request, g->ids.n, g->entry->sizes.config.vocab, g->context_max));
    if (!g->request.has_seed) {
        g->request.sampling.has_seed_case = SHOAL__V1__SAMPLING__HAS_SEED_SEED;
        g->request.sampling.seed = shell_random_seed();
    }
    return STATUS_OK;
}

static void prepare(shell_t *shell, void *take_data)
{
    generate_t *g = take_data;
    g->status = prepare_request(g);
    if (g->status != STATUS_OK)
        snprintf(g->text, sizeof g->text, "%s", status_text());
    shell_post(shell, admit, g);
}

static void start_generate(ask_t *take_ask)
{
    ask_t *ask = take_ask;
    const Shoal__V1__GenerateRequest *m = (const Shoal__V1__GenerateRequest *)ask->message;
    core_deployment_view_t view;
    const model_entry_t *entry;
    status_t status = ask->shell->draining
                          ? fail(STATUS_UNREACHABLE, "the coordinator is draining; try another one")
                          : front_find(ask->shell, m->model, &view, &entry);
    if (status != STATUS_OK) {
        ask_fail(ask, status);
        return;
    }
    generate_t *g = MEM_NEW(generate_t);
    g->ask = ask;
    g->entry = entry;
    g->context_max = view.context_max;
    snprintf(g->deployment, sizeof g->deployment, "%s", view.name);
    shell_work(ask->shell, prepare, g);
}

/* ---- Resume ---- */

static void start_resume(ask_t *take_ask)
{
    const Shoal__V1__ResumeRequest *m = (const Shoal__V1__ResumeRequest *)take_ask->message;
    status_t status = front_check_id("id", m->id);
    if (status == STATUS_OK && m->n_n > REQUEST_CHOICES_MAX)
        status = fail(STATUS_INVALID, "n: %zu numbers; a request has at most %d choices", m->n_n,
                      REQUEST_CHOICES_MAX);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    front_add_client(take_ask);
    shell_event(take_ask->shell,
                &(core_event_t){.kind = CORE_EVENT_RESUME,
                                .resume = {take_ask->client, m->id, m->n, m->n_n}});
}

/* ---- Tokenize and ListModels ---- */

typedef struct {
    ask_t *ask;
    const model_entry_t *entry;
} tokenize_t;

static status_t tokenize(const tokenize_t *t, token_ids_t *ids, buffer_t *text)
{
    const Shoal__V1__TokenizeRequest *m = (const Shoal__V1__TokenizeRequest *)t->ask->message;
    /* The same checks as a prompt's, by way of a request that holds nothing else. */
    Shoal__V1__GenerateRequest generate = SHOAL__V1__GENERATE_REQUEST__INIT;
    if (m->input_case == SHOAL__V1__TOKENIZE_REQUEST__INPUT_IDS)
        return tokenizer_decode(t->entry->tokenizer, m->ids->ids, m->ids->n_ids, false, text);
    if (m->input_case == SHOAL__V1__TOKENIZE_REQUEST__INPUT_TEXT) {
        generate.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_PROMPT;
        generate.prompt = m->text;
    } else if (m->input_case == SHOAL__V1__TOKENIZE_REQUEST__INPUT_MESSAGES) {
        generate.input_case = SHOAL__V1__GENERATE_REQUEST__INPUT_MESSAGES;
        generate.messages = m->messages;
    } else {
        return fail(STATUS_INVALID, "input: one of text, messages and ids must be given");
    }
    request_t request = {0};
    status_t status = request_from_generate(&generate, &request);
    if (status == STATUS_OK) {
        status = models_encode(t->entry, &request, ids);
        request_release(&request);
    }
    return status;
}

static void do_tokenize(shell_t *shell, void *take_data)
{
    (void)shell;
    tokenize_t *t = take_data;
    token_ids_t ids = {0};
    buffer_t text = {0};
    status_t status = tokenize(t, &ids, &text);
    if (status != STATUS_OK) {
        ask_fail(t->ask, status);
    } else {
        Shoal__V1__TokenizeResponse response = SHOAL__V1__TOKENIZE_RESPONSE__INIT;
        response.ids = ids.ids;
        response.n_ids = ids.n;
        if (text.size)
            response.text = (char *)text.data;
        ask_reply(t->ask, &response);
    }
    token_ids_release(&ids);
    buffer_release(&text);
    free(t);
}

static void start_tokenize(ask_t *take_ask)
{
    const Shoal__V1__TokenizeRequest *m = (const Shoal__V1__TokenizeRequest *)take_ask->message;
    core_deployment_view_t view;
    tokenize_t t = {take_ask, NULL};
    status_t status = front_find(take_ask->shell, m->model, &view, &t.entry);
    if (status != STATUS_OK) {
        ask_fail(take_ask, status);
        return;
    }
    tokenize_t *copy = MEM_NEW(tokenize_t);
    *copy = t;
    shell_work(take_ask->shell, do_tokenize, copy);
}

static void start_list_models(ask_t *take_ask)
{
    const core_t *core = take_ask->shell->core;
    arena_t arena = {0};
    size_t n = core_n_deployments(core);
    Shoal__V1__ListModelsResponse response = SHOAL__V1__LIST_MODELS_RESPONSE__INIT;
    response.models = ARENA_NEW_ARRAY(&arena, Shoal__V1__ListModelsResponse__Model *, n + 1);
    for (size_t i = 0; i < n; i++) {
        core_deployment_view_t view;
        core_deployment_at(core, i, &view);
        Shoal__V1__ListModelsResponse__Model *model =
            ARENA_NEW_ARRAY(&arena, Shoal__V1__ListModelsResponse__Model, 1);
        shoal__v1__list_models_response__model__init(model);
        model->name = arena_strndup(&arena, view.name, strlen(view.name));
        model->digest = arena_strndup(&arena, view.digest, strlen(view.digest));
        model->context_max = view.context_max;
        model->text_identity =
            arena_strndup(&arena, view.text_identity, strlen(view.text_identity));
        model->replicas_active = view.replicas_active;
        response.models[response.n_models++] = model;
    }
    ask_reply(take_ask, &response);
    arena_release(&arena);
}

const front_method_t front_inference_methods[] = {
    {"/shoal.v1.Inference/Generate", RPC_SERVER_STREAM, &shoal__v1__generate_request__descriptor,
     start_generate, client_writable, client_ended},
    {"/shoal.v1.Inference/Resume", RPC_SERVER_STREAM, &shoal__v1__resume_request__descriptor,
     start_resume, client_writable, client_ended},
    {"/shoal.v1.Inference/Cancel", RPC_UNARY, &shoal__v1__cancel_request__descriptor,
     front_start_cancel, NULL, client_ended},
    {"/shoal.v1.Inference/Tokenize", RPC_UNARY, &shoal__v1__tokenize_request__descriptor,
     start_tokenize, NULL, NULL},
    {"/shoal.v1.Inference/ListModels", RPC_UNARY, &shoal__v1__list_models_request__descriptor,
     start_list_models, NULL, NULL},
};
const size_t front_n_inference = sizeof front_inference_methods / sizeof *front_inference_methods;
