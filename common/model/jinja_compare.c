/* Equality, order, membership and iteration of template values, as Python has them. */
#include <string.h>

#include "common/model/chat.h"
#include "common/model/jinja_value.h"
#include "common/model/unicode.h"

static status_t lists_equal(jinja_run_t *run, const list_t *a, const list_t *b, unsigned depth,
                            bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; i < a->n && *out; i++)
        TRY(value_equal(run, &a->items[i], &b->items[i], depth + 1, out));
    return STATUS_OK;
}

static status_t dicts_equal(jinja_run_t *run, const dict_t *a, const dict_t *b, unsigned depth,
                            bool *out)
{
    *out = a->n == b->n;
    for (size_t i = 0; i < a->n && *out; i++) {
        const value_t *other;
        TRY(dict_get(run, b, &a->keys[i], &other));
        *out = other != NULL;
        if (other != NULL)
            TRY(value_equal(run, &a->values[i], other, depth + 1, out));
    }
    return STATUS_OK;
}

status_t value_equal(jinja_run_t *run, const value_t *a, const value_t *b, unsigned depth,
                     bool *out)
{
    double x, y;
    TRY(run_charge(run, 1));
    /* A namespace can hold itself, so the depth of values has no other bound. */
    if (depth > CHAT_NESTING_MAX)
        return jinja_fail(run, "values nested deeper than %d levels compared",
                          CHAT_NESTING_MAX);
    if (a->kind == VALUE_INTEGER && b->kind == VALUE_INTEGER) {
        *out = a->integer == b->integer;
    } else if (value_is_number(a, &x) && value_is_number(b, &y)) {
        *out = x == y;
    } else if (a->kind != b->kind) {
        *out = false;
    } else if (a->kind == VALUE_TEXT) {
        TRY(run_charge(run, a->text.n / 64));
        *out = text_equal(&a->text, &b->text);
    } else if (value_is_sequence(a)) {
        return lists_equal(run, a->list, b->list, depth, out);
    } else if (a->kind == VALUE_DICT) {
        return dicts_equal(run, a->dict, b->dict, depth, out);
    } else if (a->kind == VALUE_NAMESPACE) {
        *out = a->dict == b->dict;
    } else if (a->kind == VALUE_VIEW || a->kind == VALUE_GENERATOR) {
        *out = a->list == b->list;
    } else if (a->kind == VALUE_LOOP) {
        *out = a->loop == b->loop;
    } else if (a->kind == VALUE_METHOD) {
        *out = a->method == b->method;
    } else if (a->kind == VALUE_MACRO) {
        *out = a->macro == b->macro;
    } else if (a->kind == VALUE_FUNCTION) {
        *out = a->function == b->function;
    } else {
        *out = true; /* none and none, undefined and undefined */
    }
    return STATUS_OK;
}

/* The first elements that differ decide, then the lengths. */
static status_t lists_compare(jinja_run_t *run, const list_t *a, const list_t *b, int *out)
{
    size_t n = a->n < b->n ? a->n : b->n;
    /* A list cannot hold itself, so its depth is bounded by that of the template and the data. */
    TRY(run_charge(run, 1));
    for (size_t i = 0; i < n; i++) {
        bool equal;
        TRY(value_equal(run, &a->items[i], &b->items[i], 0, &equal));
        if (!equal)
            return value_compare(run, &a->items[i], &b->items[i], out);
    }
    *out = a->n < b->n ? -1 : a->n > b->n;
    return STATUS_OK;
}

status_t value_compare(jinja_run_t *run, const value_t *a, const value_t *b, int *out)
{
    double x, y;
    if (a->kind == VALUE_INTEGER && b->kind == VALUE_INTEGER) {
        *out = a->integer < b->integer ? -1 : a->integer > b->integer;
        return STATUS_OK;
    }
    if (value_is_number(a, &x) && value_is_number(b, &y)) {
        *out = x < y ? -1 : x > y;
        return STATUS_OK;
    }
    if (value_is_list(a) && a->kind == b->kind)
        return lists_compare(run, a->list, b->list, out);
    if (a->kind != VALUE_TEXT || b->kind != VALUE_TEXT)
        return jinja_fail(run, "%s and %s have no order", value_kind_name(a), value_kind_name(b));
    /* UTF-8 sorts by bytes as its characters do. */
    size_t n = a->text.n < b->text.n ? a->text.n : b->text.n;
    TRY(run_charge(run, n / 64));
    int order = n == 0 ? 0 : memcmp(a->text.data, b->text.data, n);
    if (order == 0)
        order = a->text.n < b->text.n ? -1 : a->text.n > b->text.n;
    *out = order < 0 ? -1 : order > 0;
    return STATUS_OK;
}

status_t value_contains(jinja_run_t *run, const value_t *haystack, const value_t *needle, bool *out)
{
    *out = false;
    if (haystack->kind == VALUE_TEXT) {
        if (needle->kind != VALUE_TEXT)
            return jinja_fail(run, "`in` a string needs a string, not %s", value_kind_name(needle));
        TRY(run_charge(run, haystack->text.n / 64));
        *out = needle->text.n == 0 ||
               memmem(haystack->text.data, haystack->text.n, needle->text.data,
                      needle->text.n) != NULL;
        return STATUS_OK;
    }
    if (value_is_sequence(haystack) || haystack->kind == VALUE_VIEW ||
        haystack->kind == VALUE_GENERATOR) {
        list_t *list;
        TRY(value_elements(run, haystack, &list));
        for (size_t i = 0; i < list->n && !*out; i++)
            TRY(value_equal(run, &list->items[i], needle, 0, out));
        return STATUS_OK;
    }
    if (haystack->kind == VALUE_DICT) {
        if (value_is_list(needle) || needle->kind == VALUE_DICT)
            return jinja_fail(run, "%s is no key of a mapping", value_kind_name(needle));
        const value_t *found = NULL;
        if (needle->kind == VALUE_TEXT)
            TRY(dict_get(run, haystack->dict, &needle->text, &found));
        *out = found != NULL;
        return STATUS_OK;
    }
    if (haystack->kind == VALUE_UNDEFINED && !run->strict)
        return STATUS_OK;
    return jinja_fail(run, "`in` needs a string, a list or a mapping, not %s",
                      value_kind_name(haystack));
}

static status_t characters(jinja_run_t *run, const text_t *text, list_t *list)
{
    size_t length;
    for (size_t at = 0; at < text->n; at += length) {
        (void)utf8_decode((const uint8_t *)text->data + at, &length);
        value_t character = value_text(text_slice(text, at, length));
        character.text.safe = false; /* Python's Markup does not go through its iterator */
        TRY(list_append(run, list, &character));
    }
    return STATUS_OK;
}

/* What a generator has left, which it then has no more. */
static status_t take_rest(jinja_run_t *run, list_t *generator, list_t **out)
{
    value_t rest;
    TRY(list_new(run, VALUE_LIST, 0, &rest));
    *rest.list = (list_t){.items = generator->items + generator->n_taken,
                          .n = generator->n - generator->n_taken,
                          .capacity = generator->n - generator->n_taken};
    generator->n_taken = generator->n;
    *out = rest.list;
    return STATUS_OK;
}

status_t value_elements(jinja_run_t *run, const value_t *value, list_t **out)
{
    if (value_is_sequence(value) || value->kind == VALUE_VIEW) {
        *out = value->list;
        return STATUS_OK;
    }
    if (value->kind == VALUE_GENERATOR)
        return take_rest(run, value->list, out);
    if (value->kind == VALUE_UNDEFINED && run->strict)
        return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
    value_t list;
    TRY(list_new(run, VALUE_LIST, 0, &list));
    *out = list.list;
    if (value->kind == VALUE_TEXT)
        return characters(run, &value->text, list.list);
    if (value->kind == VALUE_UNDEFINED)
        return STATUS_OK;
    if (value->kind != VALUE_DICT)
        return jinja_fail(run, "%s cannot be iterated", value_kind_name(value));
    for (size_t i = 0; i < value->dict->n; i++) {
        value_t key = value_text(value->dict->keys[i]);
        TRY(list_append(run, list.list, &key));
    }
    return STATUS_OK;
}
