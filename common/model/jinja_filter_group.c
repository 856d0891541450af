/* Filters of templates that order, choose among or group the items of a list. */
#include <string.h>

#include "common/model/jinja_eval.h"

/* A stable merge sort by value_compare, so that a failing comparison can stop it. */
typedef struct {
    jinja_run_t *run;
    const value_t *keys;
    size_t *spare;
    bool reverse;
} sorter_t;

static status_t merge_sort(const sorter_t *sorter, size_t *order, size_t n)
{
    if (n < 2)
        return STATUS_OK;
    size_t half = n / 2, left = 0, right = half;
    TRY(merge_sort(sorter, order, half));
    TRY(merge_sort(sorter, order + half, n - half));
    for (size_t i = 0; i < n; i++) {
        int compared = left == half ? 1 : -1;
        if (left < half && right < n) {
            TRY(run_charge(sorter->run, 1));
            TRY(value_compare(sorter->run, &sorter->keys[order[left]],
                              &sorter->keys[order[right]], &compared));
            compared = sorter->reverse ? -compared : compared;
        }
        sorter->spare[i] = compared <= 0 ? order[left++] : order[right++];
    }
    memcpy(order, sorter->spare, n * sizeof *order);
    return STATUS_OK;
}

status_t sort_values(jinja_run_t *run, value_t *items, value_t *keys, size_t n, bool reverse)
{
    size_t *order;
    value_t *copy;
    sorter_t sorter = {.run = run, .keys = keys, .reverse = reverse};
    TRY(run_alloc(run, n, sizeof *order, &order));
    TRY(run_alloc(run, n, sizeof *sorter.spare, &sorter.spare));
    TRY(run_alloc(run, 2 * n, sizeof *copy, &copy));
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    TRY(merge_sort(&sorter, order, n));
    for (size_t i = 0; i < n; i++) {
        copy[i] = items[order[i]];
        copy[n + i] = keys[order[i]];
    }
    if (n > 0) {
        memcpy(items, copy, n * sizeof *items);
        memcpy(keys, copy + n, n * sizeof *keys);
    }
    return STATUS_OK;
}

status_t ignore_case(jinja_run_t *run, value_t *inout)
{
    if (inout->kind != VALUE_TEXT)
        return STATUS_OK;
    text_t text;
    TRY(text_change_case(run, &inout->text, CASE_LOWER, &text));
    *inout = value_text(text);
    return STATUS_OK;
}

static bool is_set(const arguments_t *arguments, size_t at, const char *name)
{
    const value_t *value = argument(arguments, at, name);
    return value != NULL && value_truth(value);
}

/* Items of a value, as a new list, and a key for each of them. */
typedef struct {
    list_t *items;
    value_t *keys;
} keyed_t;

static status_t keyed(jinja_run_t *run, const value_t *value, const value_t *path,
                      const value_t *by_default, bool case_sensitive, keyed_t *out)
{
    list_t *list;
    value_t copy;
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_LIST, list->n, &copy));
    TRY(run_alloc(run, list->n, sizeof *out->keys, &out->keys));
    for (size_t i = 0; i < list->n; i++) {
        TRY(run_charge(run, 1));
        TRY(list_append(run, copy.list, &list->items[i]));
        TRY(item_attribute(run, &list->items[i], path, by_default, &out->keys[i]));
        if (!case_sensitive)
            TRY(ignore_case(run, &out->keys[i]));
    }
    out->items = copy.list;
    return STATUS_OK;
}

/* The key of sort: a list with a value for each of the attributes that commas separate. */
static status_t sort_key(jinja_run_t *run, const value_t *item, const value_t *path,
                         bool case_sensitive, value_t *out)
{
    TRY(list_new(run, VALUE_LIST, 1, out));
    bool texts = path != NULL && path->kind == VALUE_TEXT;
    for (size_t at = 0;;) {
        value_t part = value_none(), value;
        size_t end = 0;
        if (texts) {
            const text_t *text = &path->text;
            const char *comma = at < text->n ? memchr(text->data + at, ',', text->n - at) : NULL;
            end = comma == NULL ? text->n : (size_t)(comma - text->data);
            part = value_text(text_slice(text, at, end - at));
        }
        TRY(item_attribute(run, item, texts ? &part : path, NULL, &value));
        if (!case_sensitive)
            TRY(ignore_case(run, &value));
        TRY(list_append(run, out->list, &value));
        at = end + 1;
        if (!texts || at > path->text.n)
            return STATUS_OK;
    }
}

static status_t filter_sort(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    bool case_sensitive = is_set(arguments, 1, "case_sensitive");
    const value_t *path = argument(arguments, 2, "attribute");
    keyed_t list;
    TRY(keyed(run, value, NULL, NULL, true, &list));
    for (size_t i = 0; i < list.items->n; i++)
        TRY(sort_key(run, &list.items->items[i], path, case_sensitive, &list.keys[i]));
    TRY(sort_values(run, list.items->items, list.keys, list.items->n,
                    is_set(arguments, 0, "reverse")));
    *out = (value_t){.kind = VALUE_LIST, .list = list.items};
    return STATUS_OK;
}

static status_t filter_dictsort(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
    bool case_sensitive = is_set(arguments, 0, "case_sensitive");
    const text_t *by;
    value_t pairs, *keys;
    TRY(argument_text(run, arguments, 1, "by", &by));
    bool by_value = by != NULL && text_is(by, "value");
    if (by != NULL && !by_value && !text_is(by, "key"))
        return jinja_fail(run, "dictsort sorts by \"key\" or \"value\"");
    TRY(dict_items(run, value, VALUE_LIST, &pairs));
    TRY(run_alloc(run, pairs.list->n, sizeof *keys, &keys));
    for (size_t i = 0; i < pairs.list->n; i++) {
        keys[i] = pairs.list->items[i].list->items[by_value];
        if (!case_sensitive)
            TRY(ignore_case(run, &keys[i]));
    }
    TRY(sort_values(run, pairs.list->items, keys, pairs.list->n,
                    is_set(arguments, 2, "reverse")));
    *out = pairs;
    return STATUS_OK;
}

static status_t filter_unique(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    keyed_t list;
    value_t seen, kept;
    TRY(keyed(run, value, argument(arguments, 1, "attribute"), NULL,
              is_set(arguments, 0, "case_sensitive"), &list));
    TRY(list_new(run, VALUE_LIST, 0, &seen));
    TRY(list_new(run, VALUE_GENERATOR, 0, &kept));
    for (size_t i = 0; i < list.items->n; i++) {
        bool known;
        if (list.keys[i].kind == VALUE_LIST || list.keys[i].kind == VALUE_DICT)
            return jinja_fail(run, "unique cannot compare %s", value_kind_name(&list.keys[i]));
        TRY(value_contains(run, &seen, &list.keys[i], &known));
        if (known)
            continue;
        TRY(list_append(run, seen.list, &list.keys[i]));
        TRY(list_append(run, kept.list, &list.items->items[i]));
    }
    *out = kept;
    return STATUS_OK;
}

static status_t extreme(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                        int sign, value_t *out)
{
    keyed_t list;
    size_t best = 0;
    TRY(keyed(run, value, argument(arguments, 1, "attribute"), NULL,
              is_set(arguments, 0, "case_sensitive"), &list));
    for (size_t i = 1; i < list.items->n; i++) {
        int order;
        TRY(value_compare(run, &list.keys[i], &list.keys[best], &order));
        TRY(run_charge(run, 1));
        if (order == sign)
            best = i;
    }
    *out = list.items->n > 0 ? list.items->items[best]
                             : value_undefined(text_of("the extreme of an empty list", MARK_DATA));
    return STATUS_OK;
}

static status_t filter_min(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    return extreme(run, value, arguments, -1, out);
}

static status_t filter_max(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    return extreme(run, value, arguments, 1, out);
}

static status_t filter_sum(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    const value_t *start = argument(arguments, 1, "start");
    value_t sum = start == NULL ? value_integer(0) : *start;
    keyed_t list;
    if (sum.kind == VALUE_TEXT)
        return jinja_fail(run, "sum cannot begin with a string");
    TRY(keyed(run, value, argument(arguments, 0, "attribute"), NULL, true, &list));
    for (size_t i = 0; i < list.items->n; i++) {
        value_t before = sum;
        TRY(value_binary(run, OP_ADD, &before, &list.keys[i], &sum));
    }
    *out = sum;
    return STATUS_OK;
}

static status_t fill(jinja_run_t *run, const value_t *by, size_t n, list_t *list)
{
    for (size_t i = 0; i < n && by != NULL && by->kind != VALUE_NONE; i++)
        TRY(list_append(run, list, by));
    return STATUS_OK;
}

static status_t filter_batch(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    const value_t *by = argument(arguments, 1, "fill_with");
    int64_t size;
    list_t *list;
    value_t batches, batch = value_none();
    TRY(argument_integer(run, arguments, 0, "linecount", 0, &size));
    TRY(value_elements(run, value, &list));
    TRY(list_new(run, VALUE_GENERATOR, 0, &batches));
    TRY(list_new(run, VALUE_LIST, 0, &batch));
    for (size_t i = 0; i < list->n; i++) {
        if ((int64_t)batch.list->n == size) {
            TRY(list_append(run, batches.list, &batch));
            TRY(list_new(run, VALUE_LIST, 0, &batch));
        }
        TRY(list_append(run, batch.list, &list->items[i]));
    }
    int64_t missing = size - (int64_t)batch.list->n;
    if (batch.list->n > 0) {
        TRY(fill(run, by, missing > 0 ? (size_t)missing : 0, batch.list));
        TRY(list_append(run, batches.list, &batch));
    }
    *out = batches;
    return STATUS_OK;
}

static status_t filter_slice(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    const value_t *by = argument(arguments, 1, "fill_with");
    int64_t n_slices;
    list_t *list;
    value_t slices;
    TRY(argument_integer(run, arguments, 0, "slices", 0, &n_slices));
    TRY(value_elements(run, value, &list));
    if (n_slices == 0)
        return jinja_fail(run, "slice needs a number that is not 0");
    TRY(list_new(run, VALUE_GENERATOR, 0, &slices));
    size_t n = n_slices < 0 ? 0 : (size_t)n_slices, at = 0;
    for (size_t i = 0; i < n; i++) {
        value_t slice;
        size_t size = list->n / n + (i < list->n % n);
        TRY(run_charge(run, 1));
        TRY(list_new(run, VALUE_LIST, 0, &slice));
        for (size_t k = 0; k < size; k++)
            TRY(list_append(run, slice.list, &list->items[at++]));
        TRY(fill(run, by, i >= list->n % n, slice.list));
        TRY(list_append(run, slices.list, &slice));
    }
    *out = slices;
    return STATUS_OK;
}

/* A pair (grouper, list): the key as the first item of the group has it. */
static status_t append_group(jinja_run_t *run, const value_t *items, size_t n, const value_t *key,
                             list_t *groups)
{
    value_t pair, list;
    TRY(list_new(run, VALUE_TUPLE, 2, &pair));
    pair.list->type = "group";
    TRY(list_new(run, VALUE_LIST, n, &list));
    for (size_t i = 0; i < n; i++)
        TRY(list_append(run, list.list, &items[i]));
    TRY(list_append(run, pair.list, key));
    TRY(list_append(run, pair.list, &list));
    return list_append(run, groups, &pair);
}

static status_t filter_groupby(jinja_run_t *run, const value_t *value,
                               const arguments_t *arguments, value_t *out)
{
    const value_t *path = argument(arguments, 0, "attribute");
    const value_t *by_default = argument(arguments, 1, "default");
    keyed_t list;
    value_t groups;
    TRY(keyed(run, value, path, by_default, is_set(arguments, 2, "case_sensitive"), &list));
    TRY(sort_values(run, list.items->items, list.keys, list.items->n, false));
    TRY(list_new(run, VALUE_LIST, 0, &groups));
    for (size_t start = 0, end; start < list.items->n; start = end) {
        bool same = true;
        value_t key;
        for (end = start + 1; end < list.items->n; end++) {
            TRY(value_equal(run, &list.keys[start], &list.keys[end], 0, &same));
            if (!same)
                break;
        }
        TRY(item_attribute(run, &list.items->items[start], path, by_default, &key));
        TRY(append_group(run, &list.items->items[start], end - start, &key, groups.list));
    }
    *out = groups;
    return STATUS_OK;
}

const filter_t filters_of_groups[] = {
    {"sort", filter_sort, "reverse= case_sensitive= attribute="},
    {"dictsort", filter_dictsort, "case_sensitive= by= reverse="},
    {"unique", filter_unique, "case_sensitive= attribute="},
    {"min", filter_min, "case_sensitive= attribute="},
    {"max", filter_max, "case_sensitive= attribute="}, {"sum", filter_sum, "attribute= start="},
    {"batch", filter_batch, "linecount fill_with="}, {"slice", filter_slice, "slices fill_with="},
    {"groupby", filter_groupby, "attribute default= case_sensitive="},
    {0},
};
