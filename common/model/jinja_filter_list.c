/* Filters of templates over lists, item by item. Those that order or group are in
 * jinja_filter_group.c. */
#include <string.h>

#include "common/model/jinja_eval.h"

static status_t filter_list(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, list->n, out));
    for (size_t i = 0; i < list->n; i++)
        TRY(list_append(run, out->list, &list->items[i]));
    return STATUS_OK;
}

/* One step of an attribute's path: a number indexes, a word is a key or attribute. */
static status_t attribute_step(jinja_run_t *run, const value_t *from, const text_t *word,
                               value_t *out)
{
    value_t key = value_text(*word);
    bool number = word->n > 0 && word->n < 10;
    int64_t at = 0;
    for (size_t i = 0; i < word->n && number; i++) {
        number = word->data[i] >= '0' && word->data[i] <= '9';
        at = at * 10 + (word->data[i] - '0');
    }
    if (number)
        key = value_integer(at);
    return value_index(run, from, &key, out);
}

static void stand_in(const value_t *by_default, value_t *inout)
{
    if (inout->kind == VALUE_UNDEFINED && by_default != NULL && by_default->kind != VALUE_NONE)
        *inout = *by_default;
}

status_t item_attribute(jinja_run_t *run, const value_t *item, const value_t *path,
                        const value_t *by_default, value_t *out)
{
    *out = *item;
    if (path == NULL || path->kind == VALUE_NONE)
        return STATUS_OK;
    if (path->kind != VALUE_TEXT) {
        TRY(value_index(run, item, path, out));
        stand_in(by_default, out);
        return STATUS_OK;
    }
    const text_t *text = &path->text;
    for (size_t at = 0; at <= text->n;) {
        const char *dot = at < text->n ? memchr(text->data + at, '.', text->n - at) : NULL;
        size_t end = dot == NULL ? text->n : (size_t)(dot - text->data);
        text_t word = text_slice(text, at, end - at);
        value_t from = *out;
        TRY(attribute_step(run, &from, &word, out));
        stand_in(by_default, out);
        at = end + 1;
    }
    return STATUS_OK;
}

static status_t filter_first(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    list_t *list;
    (void)arguments;
    if (value->kind == VALUE_GENERATOR) {
        list = value->list;
        *out = list->n_taken < list->n ? list->items[list->n_taken++]
                                       : value_undefined(text_of("the first item", MARK_DATA));
        return STATUS_OK;
    }
    TRY(value_elements(run, value, &list));
    *out = list->n > 0 ? list->items[0] : value_undefined(text_of("the first item", MARK_DATA));
    return STATUS_OK;
}

/* What goes backwards: not a generator. */
static status_t reversible(jinja_run_t *run, const value_t *value, list_t **out)
{
    if (value->kind == VALUE_GENERATOR)
        return jinja_fail(run, "%s has no end to begin at", value_kind_name(value));
    return value_elements(run, value, out);
}

static status_t filter_last(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(reversible(run, value, &list));
    *out = list->n > 0 ? list->items[list->n - 1]
                       : value_undefined(text_of("the last item", MARK_DATA));
    return STATUS_OK;
}

static status_t filter_reverse(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                               value_t *out)
{
    list_t *list;
    value_t reversed;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    value_kind_t kind = value->kind == VALUE_GENERATOR || value->kind == VALUE_UNDEFINED
                            ? VALUE_LIST : VALUE_GENERATOR;
    TRY(list_new(run, kind, list->n, &reversed));
    for (size_t i = list->n; i > 0; i--)
        TRY(list_append(run, reversed.list, &list->items[i - 1]));
    *out = reversed;
    if (value->kind != VALUE_TEXT)
        return STATUS_OK;
    text_t *parts, text;
    TRY(run_alloc(run, list->n, sizeof *parts, &parts));
    for (size_t i = 0; i < list->n; i++)
        parts[i] = reversed.list->items[i].text;
    TRY(text_join(run, parts, list->n, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t filter_join(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    const value_t *given = argument(arguments, 0, "d");
    const value_t *path = argument(arguments, 1, "attribute");
    text_t separator = text_of("", MARK_TEMPLATE);
    if (given != NULL)
        TRY(value_string(run, given, &separator));
    TRY(value_elements(run, value, &list));
    sink_t sink = {0};
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        text_t text;
        TRY(item_attribute(run, &list->items[i], path, NULL, &item));
        TRY(value_string(run, &item, &text));
        if (i > 0)
            TRY(sink_append(run, &sink, &separator));
        TRY(sink_append(run, &sink, &text));
        TRY(run_charge(run, 1));
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

/* Arguments without the first n of them. */
static arguments_t arguments_from(const arguments_t *arguments, size_t n)
{
    arguments_t rest = *arguments;
    if (n > 0) /* none at all may be NULL */
        rest.items += n;
    rest.n -= n;
    return rest;
}

/* map(attribute='x', default=y). */
static status_t map_attribute(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    list_t *list;
    const value_t *path = argument(arguments, 1, "attribute");
    const value_t *by_default = argument(arguments, 2, "default");
    if (path == NULL || arguments->n_named > 1 + (by_default != NULL))
        return jinja_fail(run, "map needs a filter, or an attribute and perhaps a default");
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_GENERATOR, list->n, out));
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        TRY(run_charge(run, 1));
        TRY(item_attribute(run, &list->items[i], path, by_default, &item));
        TRY(list_append(run, out->list, &item));
    }
    return STATUS_OK;
}

/* map('filter', …). */
static status_t filter_map(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    list_t *list;
    value_t mapped;
    if (value->kind != VALUE_UNDEFINED && !value_truth(value))
        return list_new(run, VALUE_GENERATOR, 0, out);
    if (arguments->n == arguments->n_named)
        return map_attribute(run, value, arguments, out);
    const value_t *name = &arguments->items[0];
    arguments_t rest = arguments_from(arguments, 1);
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_GENERATOR, list->n, &mapped));
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        TRY(run_charge(run, 1));
        if (name->kind != VALUE_TEXT)
            return jinja_fail(run, "map needs the name of a filter");
        TRY(filter_apply(run, &name->text, &list->items[i], &rest, &item));
        TRY(list_append(run, mapped.list, &item));
    }
    *out = mapped;
    return STATUS_OK;
}

/* select, reject (at 0) and selectattr, rejectattr (at 1): keeps the items whose test gives `keep`.
 * The test's name is argument `at`; without one, truth decides. */
static status_t pick(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                     size_t at, bool keep, value_t *out)
{
    list_t *list;
    value_t picked;
    TRY(list_new(run, VALUE_GENERATOR, 0, &picked));
    size_t n_positional = arguments->n - arguments->n_named;
    const value_t *path = at == 1 && n_positional > 0 ? &arguments->items[0] : NULL;
    const value_t *test = n_positional > at ? &arguments->items[at] : NULL;
    if (value->kind != VALUE_UNDEFINED && value->kind != VALUE_GENERATOR && !value_truth(value)) {
        *out = picked;
        return STATUS_OK;
    }
    TRY(value_elements(run, value, &list));
    if (list->n > 0 && at == 1 && path == NULL)
        return jinja_fail(run, "selectattr and rejectattr need an attribute");
    arguments_t rest = arguments_from(arguments, at + (test != NULL) < n_positional
                                                     ? at + (test != NULL) : n_positional);
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        TRY(run_charge(run, 1));
        TRY(item_attribute(run, &list->items[i], path, NULL, &item));
        bool holds = value_truth(&item);
        if (test != NULL && test->kind != VALUE_TEXT)
            return jinja_fail(run, "select and reject need the name of a test");
        if (test != NULL)
            TRY(test_apply(run, &test->text, &item, &rest, &holds));
        if (holds == keep)
            TRY(list_append(run, picked.list, &list->items[i]));
    }
    *out = picked;
    return STATUS_OK;
}

static status_t filter_select(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    return pick(run, value, arguments, 0, true, out);
}

static status_t filter_reject(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    return pick(run, value, arguments, 0, false, out);
}

static status_t filter_selectattr(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return pick(run, value, arguments, 1, true, out);
}

static status_t filter_rejectattr(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return pick(run, value, arguments, 1, false, out);
}

static status_t filter_items(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    (void)arguments;
    if (value->kind == VALUE_UNDEFINED && !run->strict)
        return list_new(run, VALUE_GENERATOR, 0, out);
    return dict_items(run, value, VALUE_GENERATOR, out);
}

const filter_t filters_of_lists[] = {
    {"list", filter_list, ""}, {"first", filter_first, ""}, {"last", filter_last, ""},
    {"reverse", filter_reverse, ""}, {"join", filter_join, "d= attribute="},
    {"map", filter_map, "*"}, {"select", filter_select, "*"}, {"reject", filter_reject, "*"},
    {"selectattr", filter_selectattr, "*"}, {"rejectattr", filter_rejectattr, "*"},
    {"items", filter_items, ""},
    {0},
};
