/* The methods of strings and mappings, and the functions that every template can call. What is not
 * in these tables does not exist for a template. */
#include <string.h>
#include <time.h>

#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

typedef status_t (*method_fn)(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out);

static status_t strip_with(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           unsigned sides, value_t *out)
{
    const text_t *chars;
    TRY(argument_text(run, arguments, 0, "chars", &chars));
    *out = value_text(text_strip(&value->text, chars, sides));
    return STATUS_OK;
}

static status_t text_method_strip(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return strip_with(run, value, arguments, 3, out);
}

static status_t text_method_lstrip(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    return strip_with(run, value, arguments, 1, out);
}

static status_t text_method_rstrip(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    return strip_with(run, value, arguments, 2, out);
}

static bool has_affix(const text_t *text, const text_t *affix, bool at_end)
{
    if (affix->n > text->n)
        return false;
    return affix->n == 0 ||
           memcmp(text->data + (at_end ? text->n - affix->n : 0), affix->data, affix->n) == 0;
}

static status_t affix_with(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           bool at_end, value_t *out)
{
    TRY(arguments_count(run, arguments, "startswith or endswith", 1, 1));
    const value_t *given = &arguments->items[0], *items = given;
    size_t n = 1;
    if (given->kind == VALUE_TUPLE) {
        items = given->list->items;
        n = given->list->n;
    }
    bool found = false;
    for (size_t i = 0; i < n; i++) {
        if (items[i].kind != VALUE_TEXT)
            return jinja_fail(run, "startswith and endswith need a string, not %s",
                              value_kind_name(&items[i]));
        found = found || has_affix(&value->text, &items[i].text, at_end);
    }
    *out = value_bool(found);
    return STATUS_OK;
}

static status_t text_method_startswith(jinja_run_t *run, const value_t *value,
                                       const arguments_t *arguments, value_t *out)
{
    return affix_with(run, value, arguments, false, out);
}

static status_t text_method_endswith(jinja_run_t *run, const value_t *value,
                                     const arguments_t *arguments, value_t *out)
{
    return affix_with(run, value, arguments, true, out);
}

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
        rest = text_strip(&rest, NULL, n == n_max ? 3 : 1);
        if (rest.n == 0)
            return STATUS_OK;
        size_t start = (size_t)(rest.data - text->data), end = start;
        if (n == n_max)
            return append_slice(run, list, text, start, start + rest.n);
        while (end < text->n &&
               !unicode_is_space(utf8_decode((const uint8_t *)text->data + end, &length)))
            end += length;
        TRY(append_slice(run, list, text, start, end));
        at = end;
    }
}

static status_t text_method_split(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    const text_t *separator, *text = &value->text;
    int64_t n_max;
    TRY(argument_text(run, arguments, 0, "sep", &separator));
    TRY(argument_integer(run, arguments, 1, "maxsplit", -1, &n_max));
    TRY(list_new(run, VALUE_LIST, 0, out));
    TRY(run_charge(run, text->n / 64));
    if (separator == NULL)
        return split_spaces(run, text, n_max, out->list);
    if (separator->n == 0)
        return jinja_fail(run, "split needs a separator that is not empty");
    size_t from = 0;
    for (int64_t n = 0; n != n_max && from < text->n; n++) {
        const char *hit = memmem(text->data + from, text->n - from, separator->data, separator->n);
        if (hit == NULL)
            break;
        TRY(append_slice(run, out->list, text, from, (size_t)(hit - text->data)));
        from = (size_t)(hit - text->data) + separator->n;
    }
    return append_slice(run, out->list, text, from, text->n);
}

static status_t text_method_replace(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    const text_t *old, *by;
    int64_t n_max;
    text_t text;
    TRY(argument_text(run, arguments, 0, "old", &old));
    TRY(argument_text(run, arguments, 1, "new", &by));
    TRY(argument_integer(run, arguments, 2, "count", -1, &n_max));
    if (old == NULL || by == NULL)
        return jinja_fail(run, "replace needs what to replace and by what");
    TRY(text_replace(run, &value->text, old, by, n_max, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t case_with(jinja_run_t *run, const value_t *value, text_case_t to, value_t *out)
{
    text_t text;
    TRY(text_change_case(run, &value->text, to, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t text_method_upper(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    (void)arguments;
    return case_with(run, value, CASE_UPPER, out);
}

static status_t text_method_lower(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    (void)arguments;
    return case_with(run, value, CASE_LOWER, out);
}

static status_t text_method_capitalize(jinja_run_t *run, const value_t *value,
                                       const arguments_t *arguments, value_t *out)
{
    (void)arguments;
    return case_with(run, value, CASE_CAPITALIZE, out);
}

static status_t text_method_title(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    (void)arguments;
    return case_with(run, value, CASE_TITLE, out);
}

static status_t text_method_find(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    const text_t *needle;
    TRY(argument_text(run, arguments, 0, "sub", &needle));
    if (needle == NULL)
        return jinja_fail(run, "find needs a string");
    TRY(run_charge(run, value->text.n / 64));
    const char *hit = needle->n == 0 ? value->text.data
                                     : memmem(value->text.data, value->text.n, needle->data,
                                              needle->n);
    text_t before = text_slice(&value->text, 0, hit == NULL ? 0 : (size_t)(hit - value->text.data));
    *out = value_integer(hit == NULL ? -1 : (int64_t)text_length(&before));
    return STATUS_OK;
}

static status_t dict_method_get(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
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
    TRY(arguments_count(run, arguments, "items", 0, 0));
    return dict_items(run, value, out);
}

static status_t dict_method_keys(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    TRY(arguments_count(run, arguments, "keys", 0, 0));
    TRY(list_new(run, VALUE_LIST, value->dict->n, out));
    for (size_t i = 0; i < value->dict->n; i++)
        out->list->items[out->list->n++] = value_text(value->dict->keys[i]);
    return STATUS_OK;
}

static status_t dict_method_values(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    TRY(arguments_count(run, arguments, "values", 0, 0));
    TRY(list_new(run, VALUE_LIST, value->dict->n, out));
    for (size_t i = 0; i < value->dict->n; i++)
        out->list->items[out->list->n++] = value->dict->values[i];
    return STATUS_OK;
}

/* loop.cycle(a, b): the argument of this iteration. Only `loop` has an index0. */
static status_t dict_method_cycle(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    text_t name = text_of("index0", MARK_TEMPLATE);
    const value_t *index;
    TRY(dict_get(run, value->dict, &name, &index));
    if (index == NULL || index->kind != VALUE_INTEGER || index->integer < 0 || arguments->n == 0)
        return jinja_fail(run, "cycle belongs to loop and needs arguments");
    *out = arguments->items[(size_t)index->integer % arguments->n];
    return STATUS_OK;
}

static const struct {
    const char *name;
    method_fn fn;
} text_methods[] = {
    {"strip", text_method_strip}, {"lstrip", text_method_lstrip}, {"rstrip", text_method_rstrip},
    {"startswith", text_method_startswith}, {"endswith", text_method_endswith},
    {"split", text_method_split}, {"replace", text_method_replace}, {"upper", text_method_upper},
    {"lower", text_method_lower}, {"capitalize", text_method_capitalize},
    {"title", text_method_title}, {"find", text_method_find},
}, dict_methods[] = {
    {"get", dict_method_get}, {"items", dict_method_items}, {"keys", dict_method_keys},
    {"values", dict_method_values}, {"cycle", dict_method_cycle},
};

status_t method_call(jinja_run_t *run, const value_t *value, const text_t *name,
                     const arguments_t *arguments, value_t *out, bool *found_out)
{
    *found_out = true;
    if (value->kind == VALUE_TEXT) {
        for (size_t i = 0; i < sizeof text_methods / sizeof *text_methods; i++)
            if (text_is(name, text_methods[i].name))
                return text_methods[i].fn(run, value, arguments, out);
    } else if (value->kind == VALUE_DICT) {
        for (size_t i = 0; i < sizeof dict_methods / sizeof *dict_methods; i++)
            if (text_is(name, dict_methods[i].name))
                return dict_methods[i].fn(run, value, arguments, out);
    }
    *found_out = false;
    return STATUS_OK;
}

static status_t function_range(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    int64_t start = 0, stop, step;
    TRY(arguments_count(run, arguments, "range", 1, 3));
    if (arguments->n > 1)
        TRY(argument_integer(run, arguments, 0, "start", 0, &start));
    TRY(argument_integer(run, arguments, arguments->n > 1, "stop", 0, &stop));
    TRY(argument_integer(run, arguments, 2, "step", 1, &step));
    if (step == 0)
        return jinja_fail(run, "range needs a step that is not 0");
    TRY(list_new(run, VALUE_LIST, 0, out));
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        value_t item = value_integer(i);
        TRY(run_charge(run, 1));
        TRY(list_append(run, out->list, &item));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return STATUS_OK;
}

static status_t new_mapping(jinja_run_t *run, const arguments_t *arguments, value_kind_t kind,
                            value_t *out)
{
    if (arguments->n != arguments->n_named)
        return jinja_fail(run, "namespace and dict take name=value arguments only");
    TRY(dict_new(run, kind, out));
    for (size_t i = 0; i < arguments->n; i++)
        TRY(dict_set(run, out->dict, &arguments->names[i], &arguments->items[i]));
    return STATUS_OK;
}

static status_t function_namespace(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    return new_mapping(run, arguments, VALUE_NAMESPACE, out);
}

static status_t function_dict(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    return new_mapping(run, arguments, VALUE_DICT, out);
}

static status_t function_raise(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    text_t text;
    (void)out;
    TRY(arguments_count(run, arguments, "raise_exception", 1, 1));
    TRY(value_string(run, &arguments->items[0], &text));
    return fail(STATUS_INVALID, "the template refuses these messages: %.*s",
                (int)(text.n < 300 ? text.n : 300), text.data);
}

static status_t function_strftime_now(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    enum { FORMAT_BYTES_MAX = 128, DATE_BYTES_MAX = 1024 };
    const text_t *format;
    TRY(argument_text(run, arguments, 0, "format", &format));
    if (format == NULL || format->n >= FORMAT_BYTES_MAX ||
        memchr(format->data, 0, format->n) != NULL)
        return jinja_fail(run, "strftime_now needs a format of less than %d bytes",
                          FORMAT_BYTES_MAX);
    char pattern[FORMAT_BYTES_MAX], *date;
    memcpy(pattern, format->data, format->n);
    pattern[format->n] = 0;
    struct tm now;
    time_t seconds = (time_t)run->now_unix_s;
    if (gmtime_r(&seconds, &now) == NULL)
        return jinja_fail(run, "the time is out of range");
    TRY(run_alloc(run, DATE_BYTES_MAX, 1, &date));
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(date, DATE_BYTES_MAX, pattern, &now);
#pragma GCC diagnostic pop
    /* The date may hold whatever the format holds, so it is the template's only if all of that is.
     * */
    uint8_t mark = format->marks == NULL ? format->mark : MARK_DATA;
    *out = value_text((text_t){date, n, NULL, mark});
    return STATUS_OK;
}

bool global_find(const text_t *name, value_t *out)
{
    static const struct {
        const char *name;
        function_fn fn;
    } functions[] = {
        {"range", function_range}, {"namespace", function_namespace}, {"dict", function_dict},
        {"raise_exception", function_raise}, {"strftime_now", function_strftime_now},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (text_is(name, functions[i].name)) {
            *out = (value_t){.kind = VALUE_FUNCTION, .function = functions[i].fn};
            return true;
        }
    return false;
}
