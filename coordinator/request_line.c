/* Lines of job files. Both spellings become the same request; see request.h. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/request.h"

enum { LINE_BYTES_MAX = 1 << 20, LINE_NAME_MAX = 48 };

/* How a field of a line is read into the request. */
typedef status_t (*field_fn)(const json_t *value, const char *name, arena_t *arena, request_t *out);

static status_t wants(const char *name, const char *what)
{
    return fail(STATUS_INVALID, "%s: wants %s", name, what);
}

static char *own_text(const json_t *value, arena_t *arena)
{
    return arena_strndup(arena, json_string_value(value), json_string_length(value));
}

static status_t read_custom_id(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    if (!json_is_string(value))
        return wants(name, "a string");
    out->custom_id = own_text(value, arena);
    return request_check_text(name, out->custom_id, REQUEST_NAME_BYTES_MAX);
}

static status_t read_model(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    if (!json_is_string(value))
        return wants(name, "a string");
    out->model = own_text(value, arena);
    return request_check_text(name, out->model, REQUEST_NAME_BYTES_MAX);
}

static status_t read_count(const json_t *value, const char *name, uint32_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > UINT32_MAX)
        return wants(name, "a whole number that is not negative");
    *out = (uint32_t)json_integer_value(value);
    return STATUS_OK;
}

/* Token ids, as they go into the model: nothing is put before them. */
static status_t read_prompt_ids(const json_t *value, const char *name, arena_t *arena,
                                request_t *out)
{
    size_t n = json_array_size(value);
    uint32_t *ids = ARENA_NEW_ARRAY(arena, uint32_t, n);
    for (size_t i = 0; i < n; i++)
        TRY(read_count(json_array_get(value, i), name, &ids[i]));
    out->kind = REQUEST_IDS;
    out->ids = ids;
    out->n_ids = n;
    return STATUS_OK;
}

static status_t read_prompt(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    if (json_is_array(value) && json_array_size(value) > 0)
        return read_prompt_ids(value, name, arena, out);
    if (!json_is_string(value) || json_string_length(value) == 0)
        return wants(name, "a string or a list of token ids that is not empty");
    out->kind = REQUEST_PROMPT;
    out->prompt = own_text(value, arena);
    out->prompt_bytes = json_string_length(value);
    return STATUS_OK;
}

static status_t read_messages(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    (void)arena;
    size_t n = json_array_size(value);
    if (!json_is_array(value) || n == 0 || n > REQUEST_MESSAGES_MAX)
        return wants(name, "a list of 1 to 4096 objects {role, content}");
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        const json_t *role = json_object_get(json_array_get(value, i), "role");
        const json_t *content = json_object_get(json_array_get(value, i), "content");
        if (!json_is_string(role) || json_string_length(role) == 0 || !json_is_string(content)) {
            json_decref(list);
            return fail(STATUS_INVALID, "messages: number %zu wants a role and a content, both strings", i);
        }
        json_array_append_new(list, json_pack("{s:s,s:s}", "role", json_string_value(role), "content",
                                              json_string_value(content)));
    }
    out->kind = REQUEST_CHAT;
    out->messages = list;
    return STATUS_OK;
}

static status_t read_real(const json_t *value, const char *name, float *out)
{
    if (!json_is_number(value))
        return wants(name, "a number");
    *out = (float)json_number_value(value);
    return STATUS_OK;
}

#define READ_NUMBER(field, NAME, read)                                                             \
    static status_t read_##field(const json_t *value, const char *name, arena_t *arena, request_t *out) \
    {                                                                                              \
        (void)arena;                                                                               \
        out->sampling.has_##field##_case = SHOAL__V1__SAMPLING__HAS_##NAME##_##NAME;               \
        return read(value, name, &out->sampling.field);                                            \
    }
READ_NUMBER(temperature, TEMPERATURE, read_real)
READ_NUMBER(top_k, TOP_K, read_count)
READ_NUMBER(top_p, TOP_P, read_real)
READ_NUMBER(min_p, MIN_P, read_real)
READ_NUMBER(repetition_penalty, REPETITION_PENALTY, read_real)
READ_NUMBER(presence_penalty, PRESENCE_PENALTY, read_real)
READ_NUMBER(frequency_penalty, FREQUENCY_PENALTY, read_real)
READ_NUMBER(max_tokens, MAX_TOKENS, read_count)

static status_t read_seed(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    (void)arena;
    static const char *const wanted =
        "a whole number that is not negative, or its digits as a string";
    uint64_t seed = 0;
    if (json_is_string(value)) { /* seeds over 2^53 travel exactly only as text */
        const char *text = json_string_value(value);
        char *end = NULL;
        errno = 0;
        seed = strtoull(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || end != text + json_string_length(value) || errno != 0)
            return wants(name, wanted);
    } else if (json_is_integer(value) && json_integer_value(value) >= 0) {
        seed = (uint64_t)json_integer_value(value);
    } else {
        return wants(name, wanted);
    }
    out->sampling.has_seed_case = SHOAL__V1__SAMPLING__HAS_SEED_SEED;
    out->sampling.seed = seed;
    return STATUS_OK;
}

static status_t read_stop(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    size_t n = json_is_string(value) ? 1 : json_array_size(value);
    if (n > REQUEST_STOP_MAX || (!json_is_string(value) && !json_is_array(value)))
        return wants(name, "a string or a list of at most 8");
    out->sampling.stop = ARENA_NEW_ARRAY(arena, char *, n);
    out->sampling.n_stop = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_is_string(value) ? value : json_array_get(value, i);
        if (!json_is_string(one))
            return wants(name, "strings");
        out->sampling.stop[i] = own_text(one, arena);
    }
    return STATUS_OK;
}

static status_t read_stop_ids(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    size_t n = json_array_size(value);
    if (!json_is_array(value) || n > REQUEST_STOP_IDS_MAX)
        return wants(name, "a list of at most 64 token ids");
    out->sampling.stop_ids = ARENA_NEW_ARRAY(arena, uint32_t, n);
    out->sampling.n_stop_ids = n;
    for (size_t i = 0; i < n; i++)
        TRY(read_count(json_array_get(value, i), name, &out->sampling.stop_ids[i]));
    return STATUS_OK;
}

/* {"1234": -5, …}: keys are token ids. */
static status_t read_logit_bias(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    size_t n = json_object_size(value);
    if (!json_is_object(value) || n > REQUEST_LOGIT_BIAS_MAX)
        return wants(name, "an object of at most 1024 token ids with numbers");
    out->sampling.logit_bias = ARENA_NEW_ARRAY(arena, Shoal__V1__LogitBias *, n);
    json_t *entries = json_copy((json_t *)(uintptr_t)value);
    const char *key;
    json_t *bias;
    status_t status = STATUS_OK;
    json_object_foreach(entries, key, bias) {
        char *end;
        unsigned long id = strtoul(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != 0 || id > UINT32_MAX || !json_is_number(bias)) {
            status = wants(name, "token ids as keys and numbers as values");
            break;
        }
        Shoal__V1__LogitBias *entry = ARENA_NEW_ARRAY(arena, Shoal__V1__LogitBias, 1);
        shoal__v1__logit_bias__init(entry);
        entry->id = (uint32_t)id;
        entry->bias = (float)json_number_value(bias);
        out->sampling.logit_bias[out->sampling.n_logit_bias++] = entry;
    }
    json_decref(entries);
    return status;
}

static status_t read_ignore_eos(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    (void)arena;
    if (!json_is_boolean(value))
        return wants(name, "true or false");
    out->sampling.ignore_eos = json_is_true(value);
    return STATUS_OK;
}

/* An item has one result with one text. */
static status_t read_n(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    (void)arena;
    (void)out;
    if (!json_is_integer(value) || json_integer_value(value) != 1)
        return wants(name, "1 in a job: an item has one text");
    return STATUS_OK;
}

static status_t read_stream(const json_t *value, const char *name, arena_t *arena, request_t *out)
{
    (void)arena;
    (void)out;
    if (!json_is_false(value))
        return wants(name, "false in a job");
    return STATUS_OK;
}

typedef struct {
    const char *name;
    field_fn read;
} line_field_t;

static const line_field_t body_fields[] = {
    {"prompt", read_prompt}, {"messages", read_messages}, {"model", read_model},
    {"max_tokens", read_max_tokens}, {"max_completion_tokens", read_max_tokens},
    {"temperature", read_temperature}, {"top_k", read_top_k}, {"top_p", read_top_p}, {"min_p", read_min_p},
    {"repetition_penalty", read_repetition_penalty}, {"presence_penalty", read_presence_penalty},
    {"frequency_penalty", read_frequency_penalty}, {"seed", read_seed}, {"stop", read_stop},
    {"stop_ids", read_stop_ids}, {"logit_bias", read_logit_bias}, {"ignore_eos", read_ignore_eos},
    {"n", read_n}, {"stream", read_stream},
};
enum { N_BODY_FIELDS = sizeof body_fields / sizeof *body_fields };

static status_t read_body(json_t *body, bool with_custom_id, arena_t *arena, request_t *out)
{
    const char *key;
    json_t *value;
    json_object_foreach(body, key, value) {
        field_fn read = NULL;
        if (with_custom_id && strcmp(key, "custom_id") == 0)
            read = read_custom_id;
        for (size_t i = 0; i < N_BODY_FIELDS && read == NULL; i++)
            if (strcmp(key, body_fields[i].name) == 0)
                read = body_fields[i].read;
        if (read == NULL)
            return fail(STATUS_INVALID, "field \"%.*s\" is not known", LINE_NAME_MAX, key);
        if (json_is_null(value))
            continue;
        TRY(read(value, key, arena, out));
    }
    bool prompt = out->prompt != NULL || out->ids != NULL, chat = out->messages != NULL;
    if (prompt == chat)
        return fail(STATUS_INVALID, "wants exactly one of prompt and messages");
    return STATUS_OK;
}

/* {custom_id, method, url, body}: the url says which of the two inputs the body must have. */
static status_t read_openai(json_t *line, arena_t *arena, request_t *out)
{
    static const char *const known[] = {"custom_id", "method", "url", "body"};
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value) {
        bool found = false;
        for (size_t i = 0; i < 4; i++)
            found |= strcmp(key, known[i]) == 0;
        if (!found)
            return fail(STATUS_INVALID, "field \"%.*s\" is not known beside body", LINE_NAME_MAX, key);
    }
    const json_t *custom_id = json_object_get(line, "custom_id");
    if (custom_id != NULL)
        TRY(read_custom_id(custom_id, "custom_id", arena, out));
    const char *method = json_string_value(json_object_get(line, "method"));
    if (method == NULL || strcmp(method, "POST") != 0)
        return fail(STATUS_INVALID, "method: wants \"POST\"");
    const char *url = json_string_value(json_object_get(line, "url"));
    bool chat = url != NULL && strcmp(url, "/v1/chat/completions") == 0;
    bool plain = url != NULL && strcmp(url, "/v1/completions") == 0;
    if (!chat && !plain)
        return fail(STATUS_INVALID, "url: wants \"/v1/chat/completions\" or \"/v1/completions\"");
    json_t *body = json_object_get(line, "body");
    if (!json_is_object(body))
        return fail(STATUS_INVALID, "body: wants an object");
    TRY(read_body(body, false, arena, out));
    if (chat != (out->kind == REQUEST_CHAT))
        return fail(STATUS_INVALID, "body: %s wants %s", url, chat ? "messages" : "prompt");
    return STATUS_OK;
}

status_t request_from_line(const uint8_t *bytes, size_t n, arena_t *arena, request_t *out)
{
    if (n > LINE_BYTES_MAX)
        return fail(STATUS_INVALID, "the line has %zu bytes; at most %d are taken", n, LINE_BYTES_MAX);
    json_error_t error;
    json_t *line = json_loadb((const char *)bytes, n, JSON_REJECT_DUPLICATES, &error);
    if (line == NULL)
        return fail(STATUS_INVALID, "no JSON: %s (byte %d)", error.text, error.position);
    request_t request = {.custom_id = "", .model = ""};
    shoal__v1__sampling__init(&request.sampling);
    status_t status;
    if (!json_is_object(line))
        status = fail(STATUS_INVALID, "wants an object");
    else if (json_object_get(line, "body") != NULL || json_object_get(line, "url") != NULL)
        status = read_openai(line, arena, &request);
    else
        status = read_body(line, true, arena, &request);
    json_decref(line);
    if (status == STATUS_OK)
        status = request_check_sampling(&request.sampling, &request.has_seed);
    if (status != STATUS_OK) {
        request_release(&request);
        return status;
    }
    *out = request;
    return STATUS_OK;
}
