/* See request.h. Ranges stand in one table for every number, so that a line of a job file and a
 * GenerateRequest are held to the same. */
#include "coordinator/request.h"

#include <math.h>
#include <string.h>

#include "common/model/unicode.h"

typedef enum { FIELD_REAL, FIELD_COUNT } field_kind_t;

/* One number of Sampling: where its oneof's case and its value stand, and what is allowed. */
typedef struct {
    const char *name;
    size_t case_offset, value_offset;
    int case_set; /* the value of the case when the field is there: its field number */
    field_kind_t kind;
    double min, max, by_default;
    bool above_min; /* min itself is not allowed */
} field_t;

#define FIELD(name, NAME, kind, min, max, by_default, above_min)                                   \
    {#name, offsetof(Shoal__V1__Sampling, has_##name##_case), offsetof(Shoal__V1__Sampling, name), \
     SHOAL__V1__SAMPLING__HAS_##NAME##_##NAME, kind, min, max, by_default, above_min}

static const field_t fields[] = {
    FIELD(temperature, TEMPERATURE, FIELD_REAL, 0, 2, 0, false),
    FIELD(top_k, TOP_K, FIELD_COUNT, 0, 1048576, 0, false),
    FIELD(top_p, TOP_P, FIELD_REAL, 0, 1, 1, true),
    FIELD(min_p, MIN_P, FIELD_REAL, 0, 1, 0, false),
    FIELD(repetition_penalty, REPETITION_PENALTY, FIELD_REAL, 0, 2, 1, true),
    FIELD(presence_penalty, PRESENCE_PENALTY, FIELD_REAL, -2, 2, 0, false),
    FIELD(frequency_penalty, FREQUENCY_PENALTY, FIELD_REAL, -2, 2, 0, false),
    FIELD(max_tokens, MAX_TOKENS, FIELD_COUNT, 1, 16777216, 0, false),
    FIELD(logprobs, LOGPROBS, FIELD_COUNT, 0, REQUEST_LOGPROBS_MAX, 0, false),
    FIELD(choices, CHOICES, FIELD_COUNT, 1, REQUEST_CHOICES_MAX, 1, false),
};

static status_t check_field(Shoal__V1__Sampling *sampling, const field_t *field)
{
    int *present = (int *)(void *)((char *)sampling + field->case_offset);
    void *value = (char *)sampling + field->value_offset;
    /* Two fields stay unset when they were not given: max_tokens depends on the model, and absent
     * logprobs are something else than 0 of them. */
    bool stays_unset = strcmp(field->name, "max_tokens") == 0 || strcmp(field->name, "logprobs") == 0;
    if (*present == 0) {
        if (stays_unset)
            return STATUS_OK;
        *present = field->case_set;
        if (field->kind == FIELD_REAL)
            *(float *)value = (float)field->by_default;
        else
            *(uint32_t *)value = (uint32_t)field->by_default;
        return STATUS_OK;
    }
    double number = field->kind == FIELD_REAL ? (double)*(float *)value : (double)*(uint32_t *)value;
    bool low = field->above_min ? number <= field->min : number < field->min;
    if (isnan(number) || low || number > field->max)
        return fail(STATUS_INVALID, "%s: %g is not %s %g to %g", field->name, number,
                    field->above_min ? "over" : "in", field->min, field->max);
    return STATUS_OK;
}

status_t request_check_text(const char *what, const char *text, size_t bytes_max)
{
    size_t n = strlen(text);
    if (n > bytes_max)
        return fail(STATUS_INVALID, "%s has %zu bytes; at most %zu are taken", what, n, bytes_max);
    size_t valid = utf8_valid_prefix((const uint8_t *)text, n);
    if (valid < n)
        return fail(STATUS_INVALID, "%s is no UTF-8 at byte %zu", what, valid);
    return STATUS_OK;
}

static status_t check_stops(const Shoal__V1__Sampling *sampling)
{
    if (sampling->n_stop > REQUEST_STOP_MAX)
        return fail(STATUS_INVALID, "stop: %zu strings; at most %d are taken", sampling->n_stop, REQUEST_STOP_MAX);
    for (size_t i = 0; i < sampling->n_stop; i++) {
        if (sampling->stop[i][0] == 0)
            return fail(STATUS_INVALID, "stop: string %zu is empty; it would end every text at once", i);
        TRY(request_check_text("stop", sampling->stop[i], REQUEST_STOP_BYTES_MAX));
    }
    if (sampling->n_stop_ids > REQUEST_STOP_IDS_MAX)
        return fail(STATUS_INVALID, "stop_ids: %zu ids; at most %d are taken", sampling->n_stop_ids,
                    REQUEST_STOP_IDS_MAX);
    return STATUS_OK;
}

status_t request_check_sampling(Shoal__V1__Sampling *sampling, bool *has_seed_out)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        TRY(check_field(sampling, &fields[i]));
    TRY(check_stops(sampling));
    if (sampling->n_logit_bias > REQUEST_LOGIT_BIAS_MAX)
        return fail(STATUS_INVALID, "logit_bias: %zu entries; at most %d are taken", sampling->n_logit_bias,
                    REQUEST_LOGIT_BIAS_MAX);
    for (size_t i = 0; i < sampling->n_logit_bias; i++) {
        float bias = sampling->logit_bias[i]->bias;
        if (!(bias >= -100 && bias <= 100))
            return fail(STATUS_INVALID, "logit_bias of id %u: %g is not in -100 to 100",
                        sampling->logit_bias[i]->id, (double)bias);
    }
    *has_seed_out = sampling->has_seed_case == SHOAL__V1__SAMPLING__HAS_SEED_SEED;
    return STATUS_OK;
}

static status_t take_messages(const Shoal__V1__Messages *list, json_t **own_out)
{
    if (list->n_messages == 0)
        return fail(STATUS_INVALID, "messages: at least one is needed");
    if (list->n_messages > REQUEST_MESSAGES_MAX)
        return fail(STATUS_INVALID, "messages: %zu; at most %d are taken", list->n_messages, REQUEST_MESSAGES_MAX);
    size_t bytes = 0;
    json_t *array = json_array();
    for (size_t i = 0; i < list->n_messages; i++) {
        const Shoal__V1__Message *message = list->messages[i];
        bytes += strlen(message->content);
        status_t status = request_check_text("role", message->role, REQUEST_NAME_BYTES_MAX);
        if (status == STATUS_OK && message->role[0] == 0)
            status = fail(STATUS_INVALID, "messages: number %zu has no role; \"user\" is the usual one", i);
        if (status == STATUS_OK && bytes > REQUEST_TEXT_BYTES_MAX)
            status = fail(STATUS_INVALID, "messages: over %d bytes together", REQUEST_TEXT_BYTES_MAX);
        if (status == STATUS_OK)
            status = request_check_text("content", message->content, REQUEST_TEXT_BYTES_MAX);
        if (status != STATUS_OK) {
            json_decref(array);
            return status;
        }
        json_array_append_new(array, json_pack("{s:s,s:s}", "role", message->role, "content", message->content));
    }
    *own_out = array;
    return STATUS_OK;
}

static status_t take_input(const Shoal__V1__GenerateRequest *generate, request_t *out)
{
    switch (generate->input_case) {
    case SHOAL__V1__GENERATE_REQUEST__INPUT_PROMPT:
        TRY(request_check_text("prompt", generate->prompt, REQUEST_TEXT_BYTES_MAX));
        out->kind = REQUEST_PROMPT;
        out->prompt = generate->prompt;
        out->prompt_bytes = strlen(generate->prompt);
        if (out->prompt_bytes == 0)
            return fail(STATUS_INVALID, "prompt is empty; at least one token is needed");
        return STATUS_OK;
    case SHOAL__V1__GENERATE_REQUEST__INPUT_MESSAGES:
        out->kind = REQUEST_CHAT;
        return take_messages(generate->messages, &out->messages);
    case SHOAL__V1__GENERATE_REQUEST__INPUT_TOKEN_IDS:
        out->kind = REQUEST_IDS;
        out->ids = generate->token_ids->ids;
        out->n_ids = generate->token_ids->n_ids;
        if (out->n_ids == 0)
            return fail(STATUS_INVALID, "token_ids is empty; at least one is needed");
        return STATUS_OK;
    default:
        return fail(STATUS_INVALID, "no input; give one of prompt, messages and token_ids");
    }
}

status_t request_from_generate(const Shoal__V1__GenerateRequest *generate, request_t *out)
{
    request_t request = {.custom_id = "", .model = generate->model};
    shoal__v1__sampling__init(&request.sampling);
    if (generate->sampling != NULL)
        request.sampling = *generate->sampling;
    TRY(request_check_sampling(&request.sampling, &request.has_seed));
    TRY(request_check_text("model", generate->model, REQUEST_NAME_BYTES_MAX));
    TRY(request_check_text("tenant", generate->tenant, REQUEST_NAME_BYTES_MAX));
    TRY(request_check_text("conversation", generate->conversation, REQUEST_NAME_BYTES_MAX));
    if (generate->adapter[0] != 0)
        return fail(STATUS_UNSUPPORTED, "adapter: \"%.64s\" is not known; leave it empty", generate->adapter);
    bool has_priority = generate->has_priority_case == SHOAL__V1__GENERATE_REQUEST__HAS_PRIORITY_PRIORITY;
    if (has_priority && (generate->priority < -100 || generate->priority > 100))
        return fail(STATUS_INVALID, "priority: %d is not in -100 to 100", generate->priority);
    TRY(take_input(generate, &request));
    *out = request;
    return STATUS_OK;
}

static status_t check_ids(const request_t *request, uint32_t vocab)
{
    for (size_t i = 0; i < request->n_ids; i++)
        if (request->ids[i] >= vocab)
            return fail(STATUS_INVALID, "token_ids: number %zu is %u; the vocabulary ends at %u", i,
                        request->ids[i], vocab - 1);
    const Shoal__V1__Sampling *sampling = &request->sampling;
    for (size_t i = 0; i < sampling->n_stop_ids; i++)
        if (sampling->stop_ids[i] >= vocab)
            return fail(STATUS_INVALID, "stop_ids: %u; the vocabulary ends at %u", sampling->stop_ids[i], vocab - 1);
    for (size_t i = 0; i < sampling->n_logit_bias; i++)
        if (sampling->logit_bias[i]->id >= vocab)
            return fail(STATUS_INVALID, "logit_bias: id %u; the vocabulary ends at %u",
                        sampling->logit_bias[i]->id, vocab - 1);
    if (sampling->top_k > vocab)
        return fail(STATUS_INVALID, "top_k: %u is over the vocabulary's %u", sampling->top_k, vocab);
    return STATUS_OK;
}

status_t request_fit(request_t *request, size_t n_prompt, uint32_t vocab, uint32_t context_max)
{
    TRY(check_ids(request, vocab));
    if (n_prompt == 0)
        return fail(STATUS_INVALID, "the prompt has no token; at least one is needed");
    if (n_prompt >= context_max)
        return fail(STATUS_INVALID, "the prompt has %zu tokens; the context of %u leaves no room for an answer",
                    n_prompt, context_max);
    Shoal__V1__Sampling *sampling = &request->sampling;
    uint32_t left = context_max - (uint32_t)n_prompt;
    if (sampling->has_max_tokens_case == SHOAL__V1__SAMPLING__HAS_MAX_TOKENS__NOT_SET) {
        sampling->has_max_tokens_case = SHOAL__V1__SAMPLING__HAS_MAX_TOKENS_MAX_TOKENS;
        sampling->max_tokens = left < REQUEST_MAX_TOKENS_DEFAULT ? left : REQUEST_MAX_TOKENS_DEFAULT;
    }
    if (sampling->max_tokens > left)
        return fail(STATUS_INVALID,
                    "max_tokens: %u and the prompt's %zu tokens are over the context of %u; at most %u fit",
                    sampling->max_tokens, n_prompt, context_max, left);
    return STATUS_OK;
}

void request_release(request_t *request)
{
    json_decref(request->messages);
    request->messages = NULL;
}
