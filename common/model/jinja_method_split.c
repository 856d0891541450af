/* Methods of template strings that take them apart and put them together. */
#include <string.h>

#include "common/model/jinja_method.h"
#include "common/model/unicode.h"

static status_t append_slice(jinja_run_t *run, list_t *list, const text_t *text, size_t start,
                             size_t end)
{
    value_t part = value_text(text_slice(text, start, end - start));
    return list_append(run, list, &part);
}

/* split() without a separator: runs of white space separate, and the ends hold none. */
static status_t split_spaces(jinja_run_t *run, const text_t *text, int64_t n_max, list_t *list)
{
    size_t at = 0, length;
    for (int64_t n = 0;; n++) {
        text_t rest = text_slice(text, at, text->n - at);
        rest = text_strip(&rest, NULL, 1);
        if (rest.n == 0)
            return STATUS_OK;
        size_t start = (size_t)(rest.data - text->data), end = start;
        if (n == n_max)
            return append_slice(run, list, text, start, text->n);
        while (end < text->n &&
               !unicode_is_space(utf8_decode((const uint8_t *)text->data + end, &length)))
            end += length;
        TRY(append_slice(run, list, text, start, end));
        at = end;
    }
}

static void reverse(list_t *list)
{
    for (size_t i = 0, k = list->n; i + 1 < k; i++) {
        value_t item = list->items[i];
        list->items[i] = list->items[--k];
        list->items[k] = item;
    }
}

/* The same from the right; the parts come out in their order. */
static status_t rsplit_spaces(jinja_run_t *run, const text_t *text, int64_t n_max, list_t *list)
{
    size_t end = text->n, length;
    for (int64_t n = 0;; n++) {
        text_t rest = text_slice(text, 0, end);
        rest = text_strip(&rest, NULL, 2);
        if (rest.n == 0)
            break;
        if (n == n_max) {
            TRY(append_slice(run, list, text, 0, rest.n));
            break;
        }
        size_t start = rest.n;
        while (start > 0) {
            size_t before = start - 1;
            while (((uint8_t)text->data[before] & 0xC0) == 0x80)
                before--;
            if (unicode_is_space(utf8_decode((const uint8_t *)text->data + before, &length)))
                break;
            start = before;
        }
        TRY(append_slice(run, list, text, start, rest.n));
        end = start;
    }
    reverse(list);
    return STATUS_OK;
}

static status_t split_by(jinja_run_t *run, const text_t *text, const text_t *separator,
                         int64_t n_max, list_t *list)
{
    size_t from = 0;
    for (int64_t n = 0; n != n_max && from < text->n; n++) {
        const char *hit = memmem(text->data + from, text->n - from, separator->data, separator->n);
        if (hit == NULL)
            break;
        TRY(append_slice(run, list, text, from, (size_t)(hit - text->data)));
        from = (size_t)(hit - text->data) + separator->n;
    }
    return append_slice(run, list, text, from, text->n);
}

/* The last hit that ends at `end` or before; n when there is none. */
static size_t last_hit(const text_t *text, size_t end, const text_t *needle)
{
    if (needle->n > end)
        return text->n;
    for (size_t at = end - needle->n + 1; at-- > 0;)
        if (memcmp(text->data + at, needle->data, needle->n) == 0)
            return at;
    return text->n;
}

static status_t rsplit_by(jinja_run_t *run, const text_t *text, const text_t *separator,
                          int64_t n_max, list_t *list)
{
    size_t end = text->n;
    for (int64_t n = 0; n != n_max; n++) {
        size_t hit = last_hit(text, end, separator);
        if (hit == text->n)
            break;
        TRY(append_slice(run, list, text, hit + separator->n, end));
        end = hit;
    }
    TRY(append_slice(run, list, text, 0, end));
    reverse(list);
    return STATUS_OK;
}

static status_t split_from(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           bool right, value_t *out)
{
    const text_t *separator, *text = &value->text;
    int64_t n_max;
    TRY(arguments_fit(run, arguments, "method", NULL, "sep= maxsplit="));
    TRY(argument_text(run, arguments, 0, "sep", &separator));
    TRY(argument_integer(run, arguments, 1, "maxsplit", -1, &n_max));
    TRY(list_new(run, VALUE_LIST, 0, out));
    TRY(run_charge(run, text->n / (right ? 8 : 64)));
    n_max = n_max < 0 ? -1 : n_max;
    if (separator == NULL)
        return right ? rsplit_spaces(run, text, n_max, out->list)
                     : split_spaces(run, text, n_max, out->list);
    if (separator->n == 0)
        return jinja_fail(run, "split needs a separator that is not empty");
    return right ? rsplit_by(run, text, separator, n_max, out->list)
                 : split_by(run, text, separator, n_max, out->list);
}

status_t text_method_split(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    return split_from(run, value, arguments, false, out);
}

status_t text_method_rsplit(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    return split_from(run, value, arguments, true, out);
}

status_t text_method_splitlines(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
    TRY(arguments_fit(run, arguments, "method", NULL, "keepends="));
    const value_t *keep = argument(arguments, 0, "keepends");
    TRY(list_new(run, VALUE_LIST, 0, out));
    return text_lines(run, &value->text, keep != NULL && value_truth(keep), out->list);
}

static status_t partition_at(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             bool last, value_t *out)
{
    const text_t *separator, *text = &value->text;
    TRY(arguments_fit(run, arguments, "method", NULL, "sep"));
    TRY(argument_text(run, arguments, 0, "sep", &separator));
    if (separator == NULL || separator->n == 0)
        return jinja_fail(run, "partition needs a separator that is not empty");
    TRY(list_new(run, VALUE_TUPLE, 3, out));
    TRY(run_charge(run, text->n / (last ? 8 : 64)));
    const char *found = memmem(text->data, text->n, separator->data, separator->n);
    size_t hit = last            ? last_hit(text, text->n, separator)
                 : found == NULL ? text->n
                                 : (size_t)(found - text->data);
    bool whole = hit == text->n;
    size_t start = whole ? (last ? 0 : text->n) : hit, end = whole ? start : hit + separator->n;
    TRY(append_slice(run, out->list, text, 0, start));
    TRY(append_slice(run, out->list, text, start, end));
    return append_slice(run, out->list, text, end, text->n);
}

status_t text_method_partition(jinja_run_t *run, const value_t *value,
                               const arguments_t *arguments, value_t *out)
{
    return partition_at(run, value, arguments, false, out);
}

status_t text_method_rpartition(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
    return partition_at(run, value, arguments, true, out);
}

status_t text_method_join(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                          value_t *out)
{
    list_t *list;
    sink_t sink = {0};
    TRY(arguments_fit(run, arguments, "method", NULL, "iterable"));
    TRY(value_elements(run, &arguments->items[0], &list));
    for (size_t i = 0; i < list->n; i++) {
        if (list->items[i].kind != VALUE_TEXT)
            return jinja_fail(run, "join needs strings, not %s", value_kind_name(&list->items[i]));
        if (i > 0)
            TRY(sink_append(run, &sink, &value->text));
        TRY(sink_append(run, &sink, &list->items[i].text));
        TRY(run_charge(run, 1));
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}
