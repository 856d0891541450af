/* Filters of templates over single values, and the search for a filter by its name. Those over
 * texts are in jinja_filter_text.c, those over lists in jinja_filter_list.c and
 * jinja_filter_group.c. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/chat.h"
#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

static status_t filter_length(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    (void)arguments;
    switch (value->kind) {
    case VALUE_TEXT:
        TRY(run_charge(run, value->text.n / 64));
        *out = value_integer((int64_t)text_length(&value->text));
        return STATUS_OK;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        *out = value_integer((int64_t)value->list->n);
        return STATUS_OK;
    case VALUE_DICT:
        *out = value_integer((int64_t)value->dict->n);
        return STATUS_OK;
    case VALUE_LOOP:
        *out = value_integer((int64_t)value->loop->items->n);
        return STATUS_OK;
    case VALUE_UNDEFINED:
        if (!run->strict) {
            *out = value_integer(0);
            return STATUS_OK;
        }
        break;
    default:
        break;
    }
    return jinja_fail(run, "%s has no length", value_kind_name(value));
}

/* One level of json.dumps's indent: a number of spaces or a text; none leaves all on one line. */
static status_t json_indent(jinja_run_t *run, const value_t *indent, json_style_t *style)
{
    text_t space = text_of(" ", MARK_TEMPLATE);
    if (indent == NULL || indent->kind == VALUE_NONE)
        return STATUS_OK;
    style->indented = true;
    style->comma = text_of(",", MARK_DATA);
    if (indent->kind == VALUE_TEXT) {
        style->indent = indent->text;
        return STATUS_OK;
    }
    if (indent->kind != VALUE_INTEGER && indent->kind != VALUE_BOOL)
        return jinja_fail(run, "tojson's indent is a number or a string, not %s",
                          value_kind_name(indent));
    int64_t n = indent->kind == VALUE_BOOL ? indent->truth : indent->integer;
    return text_repeat(run, &space, n < 0 ? 0 : (size_t)n, &style->indent);
}

/* Python's json.dumps with the parameters, and their order, that transformers gives this filter. */
static status_t filter_tojson(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    const value_t *ascii = argument(arguments, 0, "ensure_ascii");
    const value_t *separators = argument(arguments, 2, "separators");
    const value_t *keys = argument(arguments, 3, "sort_keys");
    json_style_t style = {.comma = text_of(", ", MARK_DATA), .colon = text_of(": ", MARK_DATA),
                          .ascii = ascii != NULL && value_truth(ascii),
                          .sort_keys = keys != NULL && value_truth(keys)};
    text_t text;
    TRY(json_indent(run, argument(arguments, 1, "indent"), &style));
    if (separators != NULL && separators->kind != VALUE_NONE) {
        list_t *pair;
        TRY(value_elements(run, separators, &pair));
        if (pair->n != 2 || pair->items[0].kind != VALUE_TEXT || pair->items[1].kind != VALUE_TEXT)
            return jinja_fail(run, "tojson's separators are two strings");
        style.comma = pair->items[0].text;
        style.colon = pair->items[1].text;
    }
    TRY(value_json(run, value, &style, &text));
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

/* A text as Python's float() or, with a base, int() reads it: white space around, _ between digits.
 * False when it is none. */
static bool text_number(const text_t *text, char out[64])
{
    text_t digits = text_strip(text, NULL, 3);
    size_t n = 0;
    if (digits.n == 0 || digits.n >= 64)
        return false;
    for (size_t i = 0; i < digits.n; i++) {
        bool between = i > 0 && i + 1 < digits.n && digits.data[i - 1] != '_' &&
                       digits.data[i + 1] != '_';
        if (digits.data[i] == '_' && !between)
            return false;
        if (digits.data[i] != '_')
            out[n++] = digits.data[i];
    }
    out[n] = 0;
    return strlen(out) == n;
}

static bool text_real(const text_t *text, double *out)
{
    char digits[64], *end;
    if (!text_number(text, digits) || strpbrk(digits, "xXpP(") != NULL)
        return false;
    *out = strtod(digits, &end);
    return *end == 0;
}

static bool text_integer(const text_t *text, int64_t base, int64_t *out)
{
    char digits[64], *end;
    if (!text_number(text, digits) || base < 0 || base == 1 || base > 36)
        return false;
    const char *at = digits + (digits[0] == '-' || digits[0] == '+');
    char prefix[3] = {at[0], (char)(at[0] == 0 ? 0 : at[1] | 0x20), 0};
    int named = strcmp(prefix, "0x") == 0   ? 16
                : strcmp(prefix, "0o") == 0 ? 8
                : strcmp(prefix, "0b") == 0 ? 2
                                            : 0;
    if (at[0] == '+' || at[0] == '-' || at[0] == ' ')
        return false;
    if (named != 0 && (base == 0 || base == named)) {
        memmove(digits + (at - digits), at + 2, strlen(at + 2) + 1);
        base = named;
    } else if (base == 0) {
        base = 10;
    }
    errno = 0;
    *out = strtoll(digits, &end, (int)base);
    return *end == 0 && end != digits && errno == 0;
}

static status_t filter_int(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out)
{
    int64_t base, integer;
    double number;
    const value_t *by_default = argument(arguments, 0, "default");
    TRY(argument_integer(run, arguments, 1, "base", 10, &base));
    *out = by_default == NULL ? value_integer(0) : *by_default;
    if (value->kind == VALUE_UNDEFINED)
        return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
    if (value->kind == VALUE_INTEGER) {
        *out = *value;
        return STATUS_OK;
    }
    if (value->kind == VALUE_TEXT && text_integer(&value->text, base, &integer)) {
        *out = value_integer(integer);
        return STATUS_OK;
    }
    bool found = value->kind == VALUE_TEXT ? text_real(&value->text, &number)
                                           : value_is_number(value, &number);
    if (!found || !isfinite(number))
        return STATUS_OK;
    if (fabs(number) >= 9.2e18)
        return jinja_fail(run, "an integer leaves 64 bits");
    *out = value_integer((int64_t)number);
    return STATUS_OK;
}

static status_t filter_float(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    const value_t *by_default = argument(arguments, 0, "default");
    double number;
    if (value->kind == VALUE_UNDEFINED)
        return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
    bool found = value->kind == VALUE_TEXT ? text_real(&value->text, &number)
                                           : value_is_number(value, &number);
    *out = found ? value_real(number) : by_default == NULL ? value_real(0) : *by_default;
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
    if (value->kind == VALUE_REAL) {
        *out = value_real(fabs(number));
        return STATUS_OK;
    }
    return value_binary(run, number < 0 ? OP_SUBTRACT : OP_ADD, &zero, value, out);
}

/* To the digits that a decimal of this precision shows, half of the last to the even one: what
 * printf does with the exact value, as Python's round. */
static double round_real(double number, int64_t precision)
{
    char digits[NUMBER_TEXT_BYTES];
    if (precision >= 0) {
        snprintf(digits, sizeof digits, "%.*f", precision > 40 ? 40 : (int)precision, number);
        return strtod(digits, NULL);
    }
    double unit = pow(10, (double)(precision < -320 ? 320 : -precision));
    return nearbyint(number / unit) * unit;
}

static status_t filter_round(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    const text_t *method;
    int64_t precision;
    double number;
    TRY(argument_integer(run, arguments, 0, "precision", 0, &precision));
    TRY(argument_text(run, arguments, 1, "method", &method));
    if (!value_is_number(value, &number))
        return jinja_fail(run, "round needs a number, not %s", value_kind_name(value));
    if (method == NULL || text_is(method, "common")) {
        *out = *value;
        if (value->kind == VALUE_REAL && isfinite(number))
            *out = value_real(round_real(number, precision));
        else if (value->kind == VALUE_BOOL || precision < 0)
            *out = value_integer((int64_t)round_real(number, precision));
        return STATUS_OK;
    }
    if (!text_is(method, "ceil") && !text_is(method, "floor"))
        return jinja_fail(run, "round's method is common, ceil or floor");
    double unit = pow(10, (double)precision);
    number *= unit;
    *out = value_real((text_is(method, "ceil") ? ceil(number) : floor(number)) / unit);
    return STATUS_OK;
}

static status_t filter_filesizeformat(jinja_run_t *run, const value_t *value,
                                      const arguments_t *arguments, value_t *out)
{
    static const char *const units[] = {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
    const value_t *binary = argument(arguments, 0, "binary");
    bool by_1024 = binary != NULL && value_truth(binary);
    double bytes, base = by_1024 ? 1024 : 1000, unit = base;
    char text[NUMBER_TEXT_BYTES];
    bool found = value->kind == VALUE_TEXT ? text_real(&value->text, &bytes)
                                           : value_is_number(value, &bytes);
    if (!found || !isfinite(bytes))
        return jinja_fail(run, "filesizeformat needs a number, not %s", value_kind_name(value));
    if (bytes == 1) {
        snprintf(text, sizeof text, "1 Byte");
    } else if (bytes < base) {
        snprintf(text, sizeof text, "%.0f Bytes", trunc(bytes));
    } else {
        size_t i = 0;
        for (; i + 1 < sizeof units / sizeof *units && bytes >= unit * base; i++)
            unit *= base;
        snprintf(text, sizeof text, "%.1f %c%s", bytes / unit,
                 by_1024 && i == 0 ? 'K' : units[i][0], by_1024 ? "iB" : "B");
    }
    text_t made = text_of(text, MARK_DATA);
    TRY(text_join(run, &made, 1, &made));
    *out = value_text(made);
    return STATUS_OK;
}

static status_t filter_attr(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    const text_t *name;
    bool found;
    TRY(argument_text(run, arguments, 0, "name", &name));
    if (name == NULL)
        return jinja_fail(run, "attr needs a name");
    TRY(value_own_attribute(run, value, name, out, &found));
    if (!found)
        *out = value_undefined(*name);
    return STATUS_OK;
}

static status_t filter_from_json(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    (void)arguments;
    if (value->kind != VALUE_TEXT)
        return jinja_fail(run, "from_json needs a string, not %s", value_kind_name(value));
    return value_from_text(run, &value->text, out);
}

/* `random` is not here: a rendering is a function of its input. */
static const filter_t filters_of_values[] = {
    {"length", filter_length, ""}, {"count", filter_length, ""},
    {"tojson", filter_tojson, "ensure_ascii= indent= separators= sort_keys="},
    {"default", filter_default, "default_value= boolean="},
    {"d", filter_default, "default_value= boolean="}, {"int", filter_int, "default= base="},
    {"float", filter_float, "default="}, {"abs", filter_abs, ""},
    {"round", filter_round, "precision= method="},
    {"filesizeformat", filter_filesizeformat, "binary="}, {"attr", filter_attr, "name"},
    {"from_json", filter_from_json, ""}, {"fromjson", filter_from_json, ""},
    {0},
};

const filter_t *filter_find(const text_t *name)
{
    const filter_t *const tables[] = {filters_of_values, filters_of_texts, filters_of_lists,
                                      filters_of_groups};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        for (const filter_t *filter = tables[i]; filter->name != NULL; filter++)
            if (text_is(name, filter->name))
                return filter;
    return NULL;
}

status_t filter_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                      const arguments_t *arguments, value_t *out)
{
    const filter_t *filter = filter_find(name);
    if (filter == NULL)
        return jinja_fail(run, "no filter is named \"%.*s\"",
                          (int)(name->n < 40 ? name->n : 40), name->data);
    TRY(arguments_fit(run, arguments, "filter", name, filter->parameters));
    return filter->fn(run, value, arguments, out);
}
