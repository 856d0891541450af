/* Filters of templates over lists. */
#include <stdlib.h>
#include <string.h>

#include "common/model/jinja_eval.h"

static status_t filter_list(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    *out = (value_t){.kind = VALUE_LIST, .list = list};
    return STATUS_OK;
}

/* The named attribute of an item; "a.b" goes two levels down. No name: the item itself. */
static status_t item_attribute(jinja_run_t *run, const value_t *item, const text_t *path,
                               value_t *out)
{
    *out = *item;
    if (path == NULL)
        return STATUS_OK;
    for (size_t at = 0; at <= path->n;) {
        const char *dot = at < path->n ? memchr(path->data + at, '.', path->n - at) : NULL;
        size_t end = dot == NULL ? path->n : (size_t)(dot - path->data);
        text_t name = text_slice(path, at, end - at);
        value_t from = *out;
        TRY(value_attribute(run, &from, &name, out));
        at = end + 1;
    }
    return STATUS_OK;
}

static status_t filter_first(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    *out = list->n > 0 ? list->items[0] : value_undefined(text_of("the first item", MARK_DATA));
    return STATUS_OK;
}

static status_t filter_last(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    *out = list->n > 0 ? list->items[list->n - 1]
                       : value_undefined(text_of("the last item", MARK_DATA));
    return STATUS_OK;
}

static status_t filter_reverse(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                               value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, list->n, out));
    for (size_t i = list->n; i > 0; i--)
        TRY(list_append(run, out->list, &list->items[i - 1]));
    return STATUS_OK;
}

static status_t filter_join(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    const text_t *separator, *path;
    TRY(argument_text(run, arguments, 0, "d", &separator));
    TRY(argument_text(run, arguments, 1, "attribute", &path));
    TRY(value_elements(run, value, &list));
    sink_t sink = {0};
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        text_t text;
        TRY(item_attribute(run, &list->items[i], path, &item));
        TRY(value_string(run, &item, &text));
        if (i > 0 && separator != NULL)
            TRY(sink_append(run, &sink, separator));
        TRY(sink_append(run, &sink, &text));
        TRY(run_charge(run, 1));
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

/* map('filter', …) or map(attribute='x', default=y). */
static status_t filter_map(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    list_t *list;
    const text_t *path = NULL;
    bool by_name = arguments->n > arguments->n_named;
    if (by_name && arguments->items[0].kind != VALUE_TEXT)
        return jinja_fail(run, "map needs the name of a filter");
    if (!by_name)
        TRY(argument_text(run, arguments, 0, "attribute", &path));
    if (!by_name && path == NULL)
        return jinja_fail(run, "map needs a filter or an attribute");
    const value_t *by_default = argument(arguments, 1, "default");
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, list->n, out));
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        TRY(run_charge(run, 1));
        if (by_name) {
            arguments_t rest = *arguments;
            rest.items++;
            rest.n--;
            TRY(filter_apply(run, &arguments->items[0].text, &list->items[i], &rest, &item));
        } else {
            TRY(item_attribute(run, &list->items[i], path, &item));
            if (item.kind == VALUE_UNDEFINED && by_default != NULL)
                item = *by_default;
        }
        TRY(list_append(run, out->list, &item));
    }
    return STATUS_OK;
}

/* select, reject (`path` NULL) and selectattr, rejectattr: keeps the items whose test gives `keep`.
 * The test's name is argument `at`; without one, truth decides. */
static status_t pick(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                     size_t at, bool keep, value_t *out)
{
    list_t *list;
    const text_t *path = NULL, *test = NULL;
    if (at == 1)
        TRY(argument_text(run, arguments, 0, "attribute", &path));
    if (at == 1 && path == NULL)
        return jinja_fail(run, "selectattr and rejectattr need an attribute");
    TRY(argument_text(run, arguments, at, "test", &test));
    arguments_t rest = *arguments;
    size_t n_used = at + (test != NULL);
    if (rest.n < n_used)
        return jinja_fail(run, "select and reject take their test by position");
    rest.items += n_used;
    rest.n -= n_used;
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, 0, out));
    for (size_t i = 0; i < list->n; i++) {
        value_t item;
        TRY(run_charge(run, 1));
        TRY(item_attribute(run, &list->items[i], path, &item));
        bool holds = value_truth(&item);
        if (test != NULL)
            TRY(test_apply(run, test, &item, &rest, &holds));
        if (holds == keep)
            TRY(list_append(run, out->list, &list->items[i]));
    }
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

/* A stable merge sort by value_compare, so that a failing comparison can stop it. */
static status_t merge_sort(jinja_run_t *run, value_t *items, value_t *spare, size_t n,
                           const text_t *path)
{
    if (n < 2)
        return STATUS_OK;
    size_t half = n / 2, left = 0, right = half;
    TRY(merge_sort(run, items, spare, half, path));
    TRY(merge_sort(run, items + half, spare, n - half, path));
    for (size_t i = 0; i < n; i++) {
        int order = left == half ? 1 : -1;
        if (left < half && right < n) {
            value_t a, b;
            TRY(run_charge(run, 1));
            TRY(item_attribute(run, &items[left], path, &a));
            TRY(item_attribute(run, &items[right], path, &b));
            TRY(value_compare(run, &a, &b, &order));
        }
        spare[i] = order <= 0 ? items[left++] : items[right++];
    }
    memcpy(items, spare, n * sizeof *items);
    return STATUS_OK;
}

static status_t filter_sort(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    list_t *list;
    const text_t *path;
    value_t *spare;
    TRY(argument_text(run, arguments, 2, "attribute", &path));
    const value_t *reverse = argument(arguments, 0, "reverse");
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, list->n, out));
    TRY(run_alloc(run, list->n, sizeof *spare, &spare));
    for (size_t i = 0; i < list->n; i++)
        TRY(list_append(run, out->list, &list->items[i]));
    TRY(merge_sort(run, out->list->items, spare, list->n, path));
    value_t sorted = *out;
    return reverse != NULL && value_truth(reverse) ? filter_reverse(run, &sorted, arguments, out)
                                                   : STATUS_OK;
}

static status_t filter_dictsort(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
    value_t keys, pairs;
    arguments_t none = {0};
    if (!value_is_dict(value) || arguments->n > 0)
        return jinja_fail(run, "dictsort sorts a mapping by its keys and takes no argument");
    keys = (value_t){.kind = VALUE_DICT, .dict = value->dict};
    TRY(filter_sort(run, &keys, &none, &keys));
    TRY(list_new(run, VALUE_LIST, keys.list->n, &pairs));
    for (size_t i = 0; i < keys.list->n; i++) {
        value_t pair;
        const value_t *found;
        TRY(dict_get(run, value->dict, &keys.list->items[i].text, &found));
        TRY(list_new(run, VALUE_TUPLE, 2, &pair));
        TRY(list_append(run, pair.list, &keys.list->items[i]));
        TRY(list_append(run, pair.list, found));
        TRY(list_append(run, pairs.list, &pair));
    }
    *out = pairs;
    return STATUS_OK;
}

static status_t filter_unique(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    list_t *list;
    (void)arguments;
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, 0, out));
    for (size_t i = 0; i < list->n; i++) {
        bool seen;
        TRY(value_contains(run, out, &list->items[i], &seen));
        if (!seen)
            TRY(list_append(run, out->list, &list->items[i]));
    }
    return STATUS_OK;
}

static status_t extreme(jinja_run_t *run, const value_t *value, int sign, value_t *out)
{
    list_t *list;
    TRY(value_elements(run, value, &list));
    *out = value_undefined(text_of("the extreme of an empty list", MARK_DATA));
    for (size_t i = 0; i < list->n; i++) {
        int order = sign;
        if (i > 0)
            TRY(value_compare(run, &list->items[i], out, &order));
        TRY(run_charge(run, 1));
        if (order == sign)
            *out = list->items[i];
    }
    return STATUS_OK;
}

static status_t filter_min(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    (void)arguments;
    return extreme(run, value, -1, out);
}

static status_t filter_max(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    (void)arguments;
    return extreme(run, value, 1, out);
}

filter_fn filter_list_find(const text_t *name)
{
    static const struct {
        const char *name;
        filter_fn fn;
    } filters[] = {
        {"list", filter_list}, {"first", filter_first}, {"last", filter_last},
        {"reverse", filter_reverse}, {"join", filter_join}, {"map", filter_map},
        {"select", filter_select}, {"reject", filter_reject}, {"selectattr", filter_selectattr},
        {"rejectattr", filter_rejectattr}, {"sort", filter_sort}, {"dictsort", filter_dictsort},
        {"unique", filter_unique}, {"min", filter_min}, {"max", filter_max},
    };
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (text_is(name, filters[i].name))
            return filters[i].fn;
    return NULL;
}
