/* See chat.h. The interpreter is in the jinja_*.c files; here a rendering is set up and bounded. */
#include "common/model/chat_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/model/gguf.h"
#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

struct chat_template {
    char *name;
    arena_t arena; /* holds the tree */
    const node_t *root;
    chat_template_t *for_tools; /* what renders when there are tools; NULL: this one */
    char *bos_token, *eos_token; /* as the folder has them; NULL: not known */
};

status_t chat_template_create(const char *source, size_t n, const char *name,
                              chat_template_t **own_out)
{
    if (n > CHAT_TEMPLATE_BYTES_MAX)
        return fail(STATUS_INVALID, "%s: the chat template has %zu bytes; at most %d are possible",
                    name, n, CHAT_TEMPLATE_BYTES_MAX);
    size_t valid = n == 0 ? 0 : utf8_valid_prefix((const uint8_t *)source, n);
    if (valid < n)
        return fail(STATUS_INVALID, "%s: the chat template is not UTF-8 at byte %zu", name, valid);
    chat_template_t *template = MEM_NEW(chat_template_t);
    template->name = mem_strdup(name);
    status_t status = jinja_parse(&template->arena, source, n, &template->root);
    if (status != STATUS_OK) {
        status = fail_in(status, "%s: chat template", name);
        chat_template_release(template);
        return status;
    }
    *own_out = template;
    return STATUS_OK;
}

status_t chat_template_from_gguf(const struct gguf *gguf, chat_template_t **own_out)
{
    gguf_text_t text;
    status_t status = gguf_read_text(gguf, "tokenizer.chat_template", &text);
    if (status == STATUS_NOT_FOUND)
        return fail(STATUS_NOT_FOUND, "%s has no chat template; send a raw prompt",
                    gguf_path(gguf));
    TRY(status);
    return chat_template_create(text.data, text.size, gguf_path(gguf), own_out);
}

void chat_template_complete(chat_template_t *template, const char *bos_token,
                            const char *eos_token, chat_template_t *take_for_tools)
{
    template->bos_token = bos_token == NULL ? NULL : mem_strdup(bos_token);
    template->eos_token = eos_token == NULL ? NULL : mem_strdup(eos_token);
    template->for_tools = take_for_tools;
}

void chat_template_release(chat_template_t *take_template)
{
    if (take_template == NULL)
        return;
    chat_template_release(take_template->for_tools);
    free(take_template->bos_token);
    free(take_template->eos_token);
    arena_release(&take_template->arena);
    free(take_template->name);
    free(take_template);
}

/* A role that is one of the few fixed words counts as the template's own, since templates write
 * control tokens such as <|user|> around or with it. Any other role stays data. */
static void mark_roles(const value_t *messages)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool", "developer",
                                        "function"};
    for (size_t i = 0; i < messages->list->n; i++) {
        const value_t *message = &messages->list->items[i];
        if (message->kind != VALUE_DICT)
            continue;
        for (size_t k = 0; k < message->dict->n; k++) {
            value_t *value = &message->dict->values[k];
            if (!text_is(&message->dict->keys[k], "role") || value->kind != VALUE_TEXT)
                continue;
            for (size_t r = 0; r < sizeof roles / sizeof *roles; r++)
                if (text_is(&value->text, roles[r]))
                    value->text.mark = MARK_TEMPLATE;
        }
    }
}

static status_t set_variable(jinja_run_t *run, const char *name, const value_t *value)
{
    text_t text = text_of(name, MARK_TEMPLATE);
    return scope_set(run, &text, value);
}

static status_t set_token(jinja_run_t *run, const char *name, const char *token)
{
    if (token == NULL)
        return STATUS_OK;
    value_t value = value_text(text_of(token, MARK_TEMPLATE));
    if (utf8_valid_prefix((const uint8_t *)value.text.data, value.text.n) < value.text.n)
        return fail(STATUS_INVALID, "%s is not UTF-8", name);
    return set_variable(run, name, &value);
}

static status_t set_extra(jinja_run_t *run, const json_t *json)
{
    value_t extra;
    if (json == NULL)
        return STATUS_OK;
    if (!json_is_object(json))
        return fail(STATUS_INVALID, "the template's variables must be an object");
    TRY(value_from_json(run, json, 0, &extra));
    for (size_t i = 0; i < extra.dict->n; i++) {
        const text_t *key = &extra.dict->keys[i];
        const value_t *taken;
        TRY(scope_find(run, key, &taken));
        value_t function;
        if (taken != NULL || text_is(key, "tools") || text_is(key, "bos_token") ||
            text_is(key, "eos_token") || global_find(key, &function))
            return fail(STATUS_INVALID, "the template variable \"%.*s\" cannot be set by a request",
                        (int)(key->n < 40 ? key->n : 40), key->data);
        TRY(scope_set(run, key, &extra.dict->values[i]));
    }
    return STATUS_OK;
}

static status_t set_variables(jinja_run_t *run, const chat_template_t *template,
                              const chat_input_t *input)
{
    const char *bos = input->bos_token != NULL ? input->bos_token : template->bos_token;
    const char *eos = input->eos_token != NULL ? input->eos_token : template->eos_token;
    value_t value;
    if (!json_is_array(input->messages))
        return fail(STATUS_INVALID, "messages must be an array of {role, content} objects");
    TRY(scope_push(run));
    TRY(value_from_json(run, input->messages, 0, &value));
    mark_roles(&value);
    TRY(set_variable(run, "messages", &value));
    TRY(set_token(run, "bos_token", bos));
    TRY(set_token(run, "eos_token", eos));
    value = value_bool(input->add_generation_prompt);
    TRY(set_variable(run, "add_generation_prompt", &value));
    TRY(set_extra(run, input->extra));
    if (input->tools == NULL)
        return STATUS_OK;
    TRY(value_from_json(run, input->tools, 0, &value));
    return set_variable(run, "tools", &value);
}

static status_t render(jinja_run_t *run, const chat_template_t *template, const chat_input_t *input)
{
    TRY(set_variables(run, template, input));
    bool tools = input->tools != NULL && template->for_tools != NULL;
    status_t status = eval_statement(run, tools ? template->for_tools->root : template->root);
    return status == STATUS_OK || run->refused ? status : fail_in(status, "chat template");
}

status_t chat_render(const chat_template_t *template, const chat_input_t *input,
                     buffer_t *text_out, buffer_t *marks_out)
{
    size_t steps_max = input->steps_max > 0 && input->steps_max < CHAT_STEPS_MAX
                           ? input->steps_max : CHAT_STEPS_MAX;
    sink_t sink = {0};
    jinja_run_t run = {
        .memory_left = CHAT_MEMORY_BYTES_MAX,
        .steps_max = steps_max,
        .steps_left = steps_max,
        .strict = input->strict,
        .now_unix_s = input->now_unix_s,
        .sink = &sink,
    };
    status_t status = render(&run, template, input);
    if (status == STATUS_OK) {
        buffer_append(text_out, sink.data, sink.n);
        if (marks_out != NULL)
            buffer_append(marks_out, sink.marks, sink.n);
    }
    json_decref(run.parsed);
    arena_release(&run.arena);
    return status;
}

/* The text of a token, or NULL when there is none: what bos_token and eos_token show. */
static char *token_text(const tokenizer_t *tokenizer, uint32_t id)
{
    size_t n;
    const uint8_t *bytes = tokenizer_bytes(tokenizer, id, &n);
    return bytes == NULL ? NULL : mem_strndup((const char *)bytes, n);
}

status_t chat_encode(const chat_template_t *template, const tokenizer_t *tokenizer,
                     const chat_input_t *input, size_t ids_max, token_ids_t *out)
{
    chat_input_t complete = *input;
    char *bos = token_text(tokenizer, tokenizer_bos_id(tokenizer));
    char *eos = token_text(tokenizer, tokenizer_eos_id(tokenizer));
    if (complete.bos_token == NULL)
        complete.bos_token = bos == NULL ? "" : bos;
    if (complete.eos_token == NULL)
        complete.eos_token = eos == NULL ? "" : eos;
    buffer_t text = {0}, marks = {0};
    status_t status = chat_render(template, &complete, &text, &marks);
    if (status == STATUS_OK)
        status = tokenizer_encode_marked(tokenizer, buffer_text(&text), marks.data, text.size,
                                         ids_max, out);
    buffer_release(&text);
    buffer_release(&marks);
    free(bos);
    free(eos);
    return status;
}
