/* Filters of templates over single values. Those over lists are in jinja_filter_list.c. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/jinja_eval.h"

static status_t text_input(jinja_run_t *run, const value_t *value, text_t *out)
{
    return value_string(run, value, out);
}

static status_t filter_trim(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    text_t text;
    const text_t *chars;
    TRY(text_input(run, value, &text));
    TRY(argument_text(run, arguments, 0, "chars", &chars));
    *out = value_text(text_strip(&text, chars, 3));
    return STATUS_OK;
}

static status_t filter_length(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    (void)arguments;
    if (value->kind == VALUE_TEXT) {
        TRY(run_charge(run, value->text.n / 64));
        *out = value_integer((int64_t)text_length(&value->text));
    } else if (value_is_list(value)) {
        *out = value_integer((int64_t)value->list->n);
    } else if (value->kind == VALUE_DICT) {
        *out = value_integer((int64_t)value->dict->n);
    } else if (value->kind == VALUE_UNDEFINED && !run->strict) {
        *out = value_integer(0);
    } else {
        return jinja_fail(run, "%s has no length", value_kind_name(value));
    }
    return STATUS_OK;
}

static status_t filter_tojson(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    enum { INDENT_MAX = 16 };
    const value_t *ascii = argument(arguments, 0, "ensure_ascii");
    const value_t *keys = argument(arguments, 3, "sort_keys");
    const value_t *indent = argument(arguments, 1, "indent");
    text_t text;
    /* The filter of Hugging Face takes ensure_ascii first, Jinja's own takes indent first. */
    if (ascii != NULL && ascii->kind == VALUE_INTEGER) {
        indent = ascii;
        ascii = NULL;
    }
    if (ascii != NULL && value_truth(ascii))
        return jinja_fail(run, "tojson writes UTF-8; ensure_ascii is not supported");
    if (argument(arguments, 2, "separators") != NULL)
        return jinja_fail(run, "tojson does not take separators");
    bool indented = indent != NULL && indent->kind != VALUE_NONE;
    if (indented && (indent->kind != VALUE_INTEGER || indent->integer < 0 ||
                     indent->integer > INDENT_MAX))
        return jinja_fail(run, "tojson's indent is 0 to %d", INDENT_MAX);
    TRY(value_json(run, value, indented ? indent->integer : -1,
                   keys != NULL && value_truth(keys), &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t filter_string(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    text_t text;
    (void)arguments;
    TRY(text_input(run, value, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t case_filter(jinja_run_t *run, const value_t *value, text_case_t to, value_t *out)
{
    text_t text;
    TRY(text_input(run, value, &text));
    TRY(text_change_case(run, &text, to, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t filter_upper(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    (void)arguments;
    return case_filter(run, value, CASE_UPPER, out);
}

static status_t filter_lower(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    (void)arguments;
    return case_filter(run, value, CASE_LOWER, out);
}

static status_t filter_capitalize(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    (void)arguments;
    return case_filter(run, value, CASE_CAPITALIZE, out);
}

static status_t filter_title(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    (void)arguments;
    return case_filter(run, value, CASE_TITLE, out);
}

static status_t filter_replace(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                               value_t *out)
{
    text_t text;
    const text_t *old, *by;
    int64_t n_max;
    TRY(text_input(run, value, &text));
    TRY(argument_text(run, arguments, 0, "old", &old));
    TRY(argument_text(run, arguments, 1, "new", &by));
    TRY(argument_integer(run, arguments, 2, "count", -1, &n_max));
    if (old == NULL || by == NULL)
        return jinja_fail(run, "replace needs what to replace and by what");
    TRY(text_replace(run, &text, old, by, n_max, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t filter_default(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                               value_t *out)
{
    const value_t *by_default = argument(arguments, 0, "default_value");
    const value_t *falsy = argument(arguments, 1, "boolean");
    (void)run;
    bool replace = value->kind == VALUE_UNDEFINED ||
                   (falsy != NULL && value_truth(falsy) && !value_truth(value));
    if (!replace)
        *out = *value;
    else
        *out = by_default == NULL ? value_text(text_of("", MARK_TEMPLATE)) : *by_default;
    return STATUS_OK;
}

static status_t filter_int(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    int64_t by_default;
    double number;
    TRY(argument_integer(run, arguments, 0, "default", 0, &by_default));
    *out = value_integer(by_default);
    if (value->kind == VALUE_INTEGER) {
        *out = *value;
    } else if (value_is_number(value, &number)) {
        if (fabs(number) < 9e18)
            *out = value_integer((int64_t)number);
    } else if (value->kind == VALUE_TEXT) {
        text_t digits = text_strip(&value->text, NULL, 3);
        char copy[32], *end;
        if (digits.n == 0 || digits.n >= sizeof copy)
            return STATUS_OK;
        memcpy(copy, digits.data, digits.n);
        copy[digits.n] = 0;
        errno = 0;
        long long parsed = strtoll(copy, &end, 10);
        if (end == copy + digits.n && errno == 0)
            *out = value_integer(parsed);
    }
    return STATUS_OK;
}

static status_t filter_float(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    double number = 0;
    (void)run;
    (void)arguments;
    if (!value_is_number(value, &number) && value->kind == VALUE_TEXT && value->text.n < 64) {
        char copy[64], *end;
        memcpy(copy, value->text.data, value->text.n);
        copy[value->text.n] = 0;
        number = strtod(copy, &end);
        if (*end != 0 || end == copy)
            number = 0;
    }
    *out = value_real(number);
    return STATUS_OK;
}

static status_t filter_abs(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    value_t zero = value_integer(0);
    double number;
    (void)arguments;
    if (!value_is_number(value, &number))
        return jinja_fail(run, "abs needs a number, not %s", value_kind_name(value));
    *out = *value;
    return number < 0 ? value_binary(run, OP_SUBTRACT, &zero, value, out) : STATUS_OK;
}

static status_t filter_items(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    (void)arguments;
    if (value->kind == VALUE_UNDEFINED && !run->strict)
        return list_new(run, VALUE_LIST, 0, out);
    return dict_items(run, value, out);
}

/* Lines after the first get the indentation; blank ones only when asked. */
static status_t filter_indent(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    enum { WIDTH_MAX = 64 };
    text_t text;
    int64_t width;
    TRY(text_input(run, value, &text));
    TRY(argument_integer(run, arguments, 0, "width", 4, &width));
    const value_t *first = argument(arguments, 1, "first");
    const value_t *blank = argument(arguments, 2, "blank");
    if (width < 0 || width > WIDTH_MAX)
        return jinja_fail(run, "indent's width is 0 to %d", WIDTH_MAX);
    static const char spaces[WIDTH_MAX + 1] =
        "                                                                ";
    text_t indentation = {spaces, (size_t)width, NULL, MARK_TEMPLATE};
    sink_t sink = {0};
    for (size_t at = 0; at < text.n;) {
        const char *newline = memchr(text.data + at, '\n', text.n - at);
        size_t end = newline == NULL ? text.n : (size_t)(newline - text.data) + 1;
        bool is_blank = newline == text.data + at;
        bool wanted = at == 0 ? first != NULL && value_truth(first)
                              : !is_blank || (blank != NULL && value_truth(blank));
        if (wanted)
            TRY(sink_append(run, &sink, &indentation));
        text_t line = text_slice(&text, at, end - at);
        TRY(sink_append(run, &sink, &line));
        TRY(run_charge(run, 1));
        at = end;
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

static status_t filter_safe(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    (void)run;
    (void)arguments;
    *out = *value; /* nothing is escaped for HTML here */
    return STATUS_OK;
}

static filter_fn find_filter(const text_t *name)
{
    static const struct {
        const char *name;
        filter_fn fn;
    } filters[] = {
        {"trim", filter_trim}, {"length", filter_length}, {"count", filter_length},
        {"tojson", filter_tojson}, {"string", filter_string}, {"upper", filter_upper},
        {"lower", filter_lower}, {"capitalize", filter_capitalize}, {"title", filter_title},
        {"replace", filter_replace}, {"default", filter_default}, {"d", filter_default},
        {"int", filter_int}, {"float", filter_float}, {"abs", filter_abs}, {"items", filter_items},
        {"indent", filter_indent}, {"safe", filter_safe},
    };
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (text_is(name, filters[i].name))
            return filters[i].fn;
    return filter_list_find(name);
}

status_t filter_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                      const arguments_t *arguments, value_t *out)
{
    filter_fn fn = find_filter(name);
    if (fn == NULL)
        return jinja_fail(run, "no filter is named \"%.*s\"",
                          (int)(name->n < 40 ? name->n : 40), name->data);
    return fn(run, value, arguments, out);
}
