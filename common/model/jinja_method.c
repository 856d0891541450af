/* The methods of lists, mappings and `loop`. What is not in these tables does not exist for a
 * template. */
#include <string.h>

#include "common/model/jinja_method.h"

static status_t dict_method_get(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
    if (arguments->n_named > 0)
        return jinja_fail(run, "get takes its arguments by position");
    TRY(arguments_count(run, arguments, "get", 1, 2));
    const value_t *found = NULL;
    if (arguments->items[0].kind == VALUE_TEXT)
        TRY(dict_get(run, value->dict, &arguments->items[0].text, &found));
    *out = found != NULL ? *found : arguments->n > 1 ? arguments->items[1] : value_none();
    return STATUS_OK;
}

static status_t dict_method_items(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    return dict_items(run, value, VALUE_VIEW, out);
}

static status_t dict_method_keys(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    TRY(list_new(run, VALUE_VIEW, value->dict->n, out));
    out->list->type = "dict_keys";
    for (size_t i = 0; i < value->dict->n; i++)
        out->list->items[out->list->n++] = value_text(value->dict->keys[i]);
    return STATUS_OK;
}

static status_t dict_method_values(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    TRY(list_new(run, VALUE_VIEW, value->dict->n, out));
    out->list->type = "dict_values";
    for (size_t i = 0; i < value->dict->n; i++)
        out->list->items[out->list->n++] = value->dict->values[i];
    return STATUS_OK;
}

static status_t dict_method_copy(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    TRY(dict_new(run, VALUE_DICT, out));
    for (size_t i = 0; i < value->dict->n; i++)
        TRY(dict_set(run, out->dict, &value->dict->keys[i], &value->dict->values[i]));
    return STATUS_OK;
}

/* loop.cycle(a, b): the argument of this iteration. */
static status_t loop_method_cycle(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    if (arguments->n == 0 || arguments->n_named > 0)
        return jinja_fail(run, "cycle needs arguments by position");
    *out = arguments->items[value->loop->index0 % arguments->n];
    return STATUS_OK;
}

/* loop.changed(a, b): whether these are not the arguments of the last call. */
static status_t loop_method_changed(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    value_t now, before = {.kind = VALUE_TUPLE};
    bool same = false;
    TRY(list_new(run, VALUE_TUPLE, arguments->n, &now));
    for (size_t i = 0; i < arguments->n; i++)
        TRY(list_append(run, now.list, &arguments->items[i]));
    before.list = (list_t *)(uintptr_t)value->loop->changed;
    if (before.list != NULL)
        TRY(value_equal(run, &before, &now, 0, &same));
    value->loop->changed = now.list;
    *out = value_bool(!same);
    return STATUS_OK;
}

/* index(x) and count(x) of lists, tuples and ranges. */
static status_t list_method_index(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    const list_t *list = value->list;
    bool found = false;
    TRY(arguments_count(run, arguments, "index", 1, 1));
    for (size_t i = 0; i < list->n && !found; i++) {
        TRY(value_equal(run, &list->items[i], &arguments->items[0], 0, &found));
        *out = value_integer((int64_t)i);
    }
    return found ? STATUS_OK : jinja_fail(run, "index does not find the item");
}

static status_t list_method_count(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    const list_t *list = value->list;
    int64_t n = 0;
    TRY(arguments_count(run, arguments, "count", 1, 1));
    for (size_t i = 0; i < list->n; i++) {
        bool equal;
        TRY(value_equal(run, &list->items[i], &arguments->items[0], 0, &equal));
        n += equal;
    }
    *out = value_integer(n);
    return STATUS_OK;
}

static status_t list_method_copy(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    TRY(arguments_count(run, arguments, "copy", 0, 0));
    TRY(list_new(run, VALUE_LIST, value->list->n, out));
    for (size_t i = 0; i < value->list->n; i++)
        TRY(list_append(run, out->list, &value->list->items[i]));
    return STATUS_OK;
}

typedef struct {
    const char *name;
    method_fn fn;
} method_row_t;

static method_fn find_row(const method_row_t *rows, const text_t *name)
{
    for (; rows->name != NULL; rows++)
        if (text_is(name, rows->name))
            return rows->fn;
    return NULL;
}

/* What changes a list or mapping (append, pop, update …) is not here: the sandbox of transformers
 * refuses it too. */
method_fn method_find(const value_t *value, const text_t *name)
{
    static const method_row_t dict_rows[] = {
        {"get", dict_method_get}, {"items", dict_method_items}, {"keys", dict_method_keys},
        {"values", dict_method_values}, {"copy", dict_method_copy}, {0}};
    static const method_row_t list_rows[] = {
        {"index", list_method_index}, {"count", list_method_count}, {"copy", list_method_copy},
        {0}};
    static const method_row_t tuple_rows[] = {
        {"index", list_method_index}, {"count", list_method_count}, {0}};
    static const method_row_t loop_rows[] = {
        {"cycle", loop_method_cycle}, {"changed", loop_method_changed}, {0}};
    switch (value->kind) {
    case VALUE_TEXT:
        return text_method_of(name);
    case VALUE_DICT:
        return find_row(dict_rows, name);
    case VALUE_LIST:
        return find_row(list_rows, name);
    case VALUE_TUPLE:
    case VALUE_RANGE:
        return find_row(tuple_rows, name);
    case VALUE_LOOP:
        return find_row(loop_rows, name);
    default:
        return NULL;
    }
}
