/* See jinja_value.h. Printing is in jinja_print.c. */
#include "common/model/jinja_value.h"

#include <string.h>

#include "common/base/checked.h"
#include "common/model/chat.h"
#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

status_t jinja_fail_at(uint32_t line, status_t status)
{
    return fail_in(status, "line %u", line);
}

status_t run_charge(jinja_run_t *run, size_t n)
{
    if (n > run->steps_left) {
        run->steps_left = 0;
        return jinja_fail(run, "the template takes more than %zu steps", run->steps_max);
    }
    run->steps_left -= n;
    return STATUS_OK;
}

status_t run_alloc(jinja_run_t *run, size_t n, size_t size, void *pointer_out)
{
    size_t bytes;
    if (!checked_mul_size(n, size, &bytes) || bytes > run->memory_left)
        return jinja_fail(run, "the template needs more than %d bytes", CHAT_MEMORY_BYTES_MAX);
    run->memory_left -= bytes;
    TRY(run_charge(run, bytes / 64));
    void *memory = arena_new(&run->arena, n == 0 ? 1 : n, size);
    memcpy(pointer_out, &memory, sizeof memory);
    return STATUS_OK;
}

const char *value_kind_name(const value_t *value)
{
    static const char *const names[] = {
        [VALUE_UNDEFINED] = "undefined", [VALUE_NONE] = "none", [VALUE_BOOL] = "a boolean",
        [VALUE_INTEGER] = "an integer",  [VALUE_REAL] = "a float", [VALUE_TEXT] = "a string",
        [VALUE_LIST] = "a list", [VALUE_TUPLE] = "a tuple", [VALUE_RANGE] = "a range",
        [VALUE_VIEW] = "a view", [VALUE_GENERATOR] = "a generator", [VALUE_DICT] = "a mapping",
        [VALUE_NAMESPACE] = "a namespace", [VALUE_LOOP] = "a loop", [VALUE_MACRO] = "a macro",
        [VALUE_FUNCTION] = "a function", [VALUE_METHOD] = "a method"};
    return names[value->kind];
}

value_t value_none(void)
{
    return (value_t){.kind = VALUE_NONE};
}

value_t value_bool(bool truth)
{
    return (value_t){.kind = VALUE_BOOL, .truth = truth};
}

value_t value_integer(int64_t integer)
{
    return (value_t){.kind = VALUE_INTEGER, .integer = integer};
}

value_t value_real(double real)
{
    return (value_t){.kind = VALUE_REAL, .real = real};
}

value_t value_text(text_t text)
{
    return (value_t){.kind = VALUE_TEXT, .text = text};
}

value_t value_undefined(text_t name)
{
    return (value_t){.kind = VALUE_UNDEFINED, .text = name};
}

text_t text_of(const char *text, uint8_t mark)
{
    return (text_t){text, strlen(text), NULL, mark, false};
}

bool text_is(const text_t *text, const char *other)
{
    return text->n == strlen(other) && memcmp(text->data, other, text->n) == 0;
}

bool text_equal(const text_t *a, const text_t *b)
{
    return a->n == b->n && (a->n == 0 || memcmp(a->data, b->data, a->n) == 0);
}

text_t text_slice(const text_t *text, size_t start, size_t n)
{
    text_t slice = *text;
    slice.n = n;
    slice.data += start;
    if (slice.marks != NULL)
        slice.marks += start;
    return slice;
}

size_t text_length(const text_t *text)
{
    size_t n = 0;
    for (size_t i = 0; i < text->n; i++)
        n += ((uint8_t)text->data[i] & 0xC0) != 0x80;
    return n;
}

size_t text_offset(const text_t *text, size_t i)
{
    size_t at = 0, length;
    for (; i > 0 && at < text->n; i--) {
        (void)utf8_decode((const uint8_t *)text->data + at, &length);
        at += length;
    }
    return at;
}

static void copy_text(const text_t *text, char *data, uint8_t *marks)
{
    if (text->n == 0)
        return;
    memcpy(data, text->data, text->n);
    if (text->marks != NULL)
        memcpy(marks, text->marks, text->n);
    else
        memset(marks, text->mark, text->n);
}

status_t text_join(jinja_run_t *run, const text_t *parts, size_t n_parts, text_t *out)
{
    size_t n = 0;
    for (size_t i = 0; i < n_parts; i++)
        if (!checked_add_size(n, parts[i].n, &n))
            return jinja_fail(run, "the text is too long");
    char *data;
    uint8_t *marks;
    TRY(run_alloc(run, n, 1, &data));
    TRY(run_alloc(run, n, 1, &marks));
    size_t at = 0;
    for (size_t i = 0; i < n_parts; i++) {
        copy_text(&parts[i], data + at, marks + at);
        at += parts[i].n;
    }
    *out = (text_t){data, n, marks, 0, false};
    return STATUS_OK;
}

status_t sink_append(jinja_run_t *run, sink_t *sink, const text_t *text)
{
    if (text->n > CHAT_OUTPUT_BYTES_MAX - sink->n)
        return jinja_fail(run, "the text has more than %d bytes", CHAT_OUTPUT_BYTES_MAX);
    if (text->n > sink->capacity - sink->n) {
        size_t capacity = sink->capacity == 0 ? 256 : sink->capacity;
        while (capacity < sink->n + text->n)
            capacity *= 2;
        char *data;
        uint8_t *marks;
        TRY(run_alloc(run, capacity, 1, &data));
        TRY(run_alloc(run, capacity, 1, &marks));
        text_t old = sink_text(sink);
        copy_text(&old, data, marks);
        sink->data = data;
        sink->marks = marks;
        sink->capacity = capacity;
    }
    if (text->n > 0)
        copy_text(text, sink->data + sink->n, sink->marks + sink->n);
    sink->n += text->n;
    return run_charge(run, text->n / 64);
}

text_t sink_text(const sink_t *sink)
{
    return (text_t){sink->n == 0 ? "" : sink->data, sink->n, sink->n == 0 ? NULL : sink->marks, 0,
                    false};
}

status_t list_new(jinja_run_t *run, value_kind_t kind, size_t capacity, value_t *out)
{
    list_t *list;
    TRY(run_alloc(run, 1, sizeof *list, &list));
    TRY(run_alloc(run, capacity, sizeof *list->items, &list->items));
    list->capacity = capacity;
    *out = (value_t){.kind = kind, .list = list};
    return STATUS_OK;
}

status_t list_append(jinja_run_t *run, list_t *list, const value_t *item)
{
    if (list->n == list->capacity) {
        size_t capacity = list->capacity == 0 ? 8 : 2 * list->capacity;
        value_t *items;
        TRY(run_alloc(run, capacity, sizeof *items, &items));
        if (list->n > 0)
            memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->n++] = *item;
    return STATUS_OK;
}

status_t dict_new(jinja_run_t *run, value_kind_t kind, value_t *out)
{
    dict_t *dict;
    TRY(run_alloc(run, 1, sizeof *dict, &dict));
    *out = (value_t){.kind = kind, .dict = dict};
    return STATUS_OK;
}

/* The place of a key, or dict->n. The search is linear, which is right for the few keys of a
 * message, and charged, which bounds it for a dictionary made to be slow. */
static status_t dict_find(jinja_run_t *run, const dict_t *dict, const text_t *key, size_t *out)
{
    size_t i = 0;
    while (i < dict->n && !text_equal(&dict->keys[i], key))
        i++;
    *out = i;
    return run_charge(run, i / 8);
}

status_t dict_set(jinja_run_t *run, dict_t *dict, const text_t *key, const value_t *value)
{
    size_t at;
    TRY(dict_find(run, dict, key, &at));
    if (at == dict->capacity) {
        size_t capacity = at == 0 ? 4 : 2 * at;
        text_t *keys;
        value_t *values;
        TRY(run_alloc(run, capacity, sizeof *keys, &keys));
        TRY(run_alloc(run, capacity, sizeof *values, &values));
        if (at > 0) {
            memcpy(keys, dict->keys, at * sizeof *keys);
            memcpy(values, dict->values, at * sizeof *values);
        }
        dict->keys = keys;
        dict->values = values;
        dict->capacity = capacity;
    }
    dict->keys[at] = *key;
    dict->values[at] = *value;
    dict->n += at == dict->n;
    return STATUS_OK;
}

status_t dict_get(jinja_run_t *run, const dict_t *dict, const text_t *key, const value_t **out)
{
    size_t at;
    TRY(dict_find(run, dict, key, &at));
    *out = at < dict->n ? &dict->values[at] : NULL;
    return STATUS_OK;
}

/* JSON has no repeated keys once it is parsed, so pairs are added without a search. */
static status_t dict_from_json(jinja_run_t *run, const json_t *json, unsigned depth, value_t *out)
{
    TRY(dict_new(run, VALUE_DICT, out));
    size_t n = json_object_size(json);
    TRY(run_alloc(run, n, sizeof(text_t), &out->dict->keys));
    TRY(run_alloc(run, n, sizeof(value_t), &out->dict->values));
    out->dict->capacity = n;
    /* jansson iterates objects through a non-const pointer but changes nothing. */
    json_t *object = json_incref((json_t *)(uintptr_t)json);
    status_t status = STATUS_OK;
    for (void *at = json_object_iter(object); at != NULL && status == STATUS_OK;
         at = json_object_iter_next(object, at)) {
        size_t i = out->dict->n++;
        out->dict->keys[i] = (text_t){json_object_iter_key(at), json_object_iter_key_len(at), NULL,
                                      MARK_DATA};
        status = value_from_json(run, json_object_iter_value(at), depth + 1, &out->dict->values[i]);
    }
    json_decref(object);
    return status;
}

static status_t list_from_json(jinja_run_t *run, const json_t *json, unsigned depth, value_t *out)
{
    size_t n = json_array_size(json);
    TRY(list_new(run, VALUE_LIST, n, out));
    for (size_t i = 0; i < n; i++)
        TRY(value_from_json(run, json_array_get(json, i), depth + 1, &out->list->items[i]));
    out->list->n = n;
    return STATUS_OK;
}

status_t value_from_json(jinja_run_t *run, const json_t *json, unsigned depth, value_t *out)
{
    TRY(run_charge(run, 1));
    if (depth > CHAT_NESTING_MAX)
        return fail(STATUS_INVALID, "messages, tools and variables may nest %d levels",
                    CHAT_NESTING_MAX);
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return dict_from_json(run, json, depth, out);
    case JSON_ARRAY:
        return list_from_json(run, json, depth, out);
    case JSON_STRING:
        *out = value_text((text_t){json_string_value(json), json_string_length(json), NULL,
                                   MARK_DATA});
        break;
    case JSON_INTEGER:
        *out = value_integer(json_integer_value(json));
        break;
    case JSON_REAL:
        *out = value_real(json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = value_bool(json_is_true(json));
        break;
    case JSON_NULL:
        *out = value_none();
        break;
    }
    return STATUS_OK;
}

status_t value_from_text(jinja_run_t *run, const text_t *text, value_t *out)
{
    enum { JSON_BYTES_PER_BYTE = 64 }; /* of memory that parsing takes, at most */
    json_error_t error;
    size_t bytes;
    if (!checked_mul_size(text->n, JSON_BYTES_PER_BYTE, &bytes) || bytes > run->memory_left)
        return jinja_fail(run, "the JSON text is too large");
    run->memory_left -= bytes;
    TRY(run_charge(run, text->n));
    json_t *json = json_loadb(text->data, text->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (json == NULL)
        return jinja_fail(run, "not JSON at line %d: %s", error.line, error.text);
    if (run->parsed == NULL)
        run->parsed = json_array();
    json_array_append_new(run->parsed, json);
    return value_from_json(run, json, 0, out);
}

bool value_is_list(const value_t *value)
{
    return value->kind == VALUE_LIST || value->kind == VALUE_TUPLE;
}

bool value_is_sequence(const value_t *value)
{
    return value_is_list(value) || value->kind == VALUE_RANGE;
}

bool value_is_dict(const value_t *value)
{
    return value->kind == VALUE_DICT || value->kind == VALUE_NAMESPACE;
}

bool value_is_number(const value_t *value, double *out)
{
    switch (value->kind) {
    case VALUE_BOOL:
        *out = value->truth;
        return true;
    case VALUE_INTEGER:
        *out = (double)value->integer;
        return true;
    case VALUE_REAL:
        *out = value->real;
        return true;
    default:
        return false;
    }
}

bool value_truth(const value_t *value)
{
    switch (value->kind) {
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return value->truth;
    case VALUE_INTEGER:
        return value->integer != 0;
    case VALUE_REAL:
        return value->real != 0;
    case VALUE_TEXT:
        return value->text.n > 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return value->list->n > 0;
    case VALUE_DICT:
        return value->dict->n > 0;
    default:
        return true;
    }
}
