/* Filters of templates over texts. */
#include <stdio.h>
#include <string.h>

#include "common/model/jinja_character.h"
#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

static status_t filter_trim(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    text_t text;
    const text_t *chars;
    TRY(value_string(run, value, &text));
    TRY(argument_text(run, arguments, 0, "chars", &chars));
    *out = value_text(text_strip(&text, chars, 3));
    return STATUS_OK;
}

static status_t filter_string(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    text_t text;
    (void)arguments;
    TRY(value_string(run, value, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t case_filter(jinja_run_t *run, const value_t *value, text_case_t to, value_t *out)
{
    text_t text;
    TRY(value_string(run, value, &text));
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

/* Whether a word begins behind the character, by the filter's own measure (not str.title's). */
static bool separates_words(uint32_t code)
{
    return unicode_is_space(code) || (code < 0x80 && code != 0 && strchr("-({[<", (char)code));
}

static status_t filter_title(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                             value_t *out)
{
    text_t text;
    sink_t sink = {0};
    (void)arguments;
    TRY(value_string(run, value, &text));
    size_t start = 0, size;
    bool between = true;
    for (size_t at = 0; at <= text.n; at += size) {
        size = 1;
        bool separator = at < text.n &&
                         separates_words(utf8_decode((const uint8_t *)text.data + at, &size));
        if (at < text.n && separator == between)
            continue;
        text_t part = text_slice(&text, start, at - start);
        size_t first = part.n == 0 ? 0 : text_offset(&part, 1);
        text_t head = text_slice(&part, 0, first), tail = text_slice(&part, first, part.n - first);
        TRY(text_change_case(run, &head, CASE_UPPER, &head));
        TRY(text_change_case(run, &tail, CASE_LOWER, &tail));
        TRY(sink_append(run, &sink, &head));
        TRY(sink_append(run, &sink, &tail));
        start = at;
        between = separator;
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

static status_t filter_replace(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                               value_t *out)
{
    text_t text, old, by;
    int64_t n_max;
    TRY(value_string(run, value, &text));
    TRY(value_string(run, argument(arguments, 0, "old"), &old));
    TRY(value_string(run, argument(arguments, 1, "new"), &by));
    TRY(argument_integer(run, arguments, 2, "count", -1, &n_max));
    TRY(text_replace(run, &text, &old, &by, n_max, &text));
    *out = value_text(text);
    return STATUS_OK;
}

/* Lines after the first get the indentation; blank ones only when asked. */
static status_t filter_indent(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    const value_t *width = argument(arguments, 0, "width");
    const value_t *first = argument(arguments, 1, "first");
    const value_t *blank = argument(arguments, 2, "blank");
    text_t indent, space = text_of(" ", MARK_TEMPLATE), newline = text_of("\n", MARK_TEMPLATE);
    int64_t n;
    value_t lines;
    sink_t sink = {0};
    if (value->kind != VALUE_TEXT)
        return jinja_fail(run, "indent needs a string, not %s", value_kind_name(value));
    if (width != NULL && width->kind == VALUE_TEXT) {
        indent = width->text;
    } else {
        TRY(argument_integer(run, arguments, 0, "width", 4, &n));
        TRY(text_repeat(run, &space, n < 0 ? 0 : (size_t)n, &indent));
    }
    text_t whole[2] = {value->text, newline}, text;
    TRY(text_join(run, whole, 2, &text));
    TRY(list_new(run, VALUE_LIST, 0, &lines));
    TRY(text_lines(run, &text, false, lines.list));
    for (size_t i = 0; i < lines.list->n; i++) {
        const text_t *line = &lines.list->items[i].text;
        bool wanted = i == 0 ? first != NULL && value_truth(first)
                             : line->n > 0 || (blank != NULL && value_truth(blank));
        if (i > 0)
            TRY(sink_append(run, &sink, &newline));
        if (wanted)
            TRY(sink_append(run, &sink, &indent));
        TRY(sink_append(run, &sink, line));
        TRY(run_charge(run, 1));
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

static status_t filter_safe(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out)
{
    TRY(filter_string(run, value, arguments, out));
    out->text.safe = true;
    return STATUS_OK;
}

static status_t filter_forceescape(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    TRY(filter_string(run, value, arguments, out));
    return text_escape(run, &out->text, &out->text);
}

static status_t filter_escape(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    *out = *value;
    return value->kind == VALUE_TEXT && value->text.safe
               ? STATUS_OK : filter_forceescape(run, value, arguments, out);
}

static status_t filter_center(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    text_t text, space = text_of(" ", MARK_TEMPLATE);
    int64_t width;
    TRY(value_string(run, value, &text));
    TRY(argument_integer(run, arguments, 0, "width", 80, &width));
    TRY(text_pad(run, &text, width, &space, 3, &text));
    *out = value_text(text);
    return STATUS_OK;
}

/* printf-style: "%s"|format(x). */
static status_t filter_format(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out)
{
    text_t text;
    value_t values;
    TRY(value_string(run, value, &text));
    if (arguments->n_named == 0) {
        TRY(list_new(run, VALUE_TUPLE, arguments->n, &values));
        for (size_t i = 0; i < arguments->n; i++)
            TRY(list_append(run, values.list, &arguments->items[i]));
        return text_percent(run, &text, &values, out);
    }
    if (arguments->n_named < arguments->n)
        return jinja_fail(run, "format takes positional or named arguments, not both");
    TRY(dict_new(run, VALUE_DICT, &values));
    for (size_t i = 0; i < arguments->n; i++)
        TRY(dict_set(run, values.dict, &arguments->names[i], &arguments->items[i]));
    return text_percent(run, &text, &values, out);
}

/* Where the last space among the first n bytes is, or n. */
static size_t last_space(const text_t *text, size_t n)
{
    const char *space = memrchr(text->data, ' ', n);
    return space == NULL ? n : (size_t)(space - text->data);
}

static status_t filter_truncate(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out)
{
    int64_t length, leeway;
    const value_t *kill = argument(arguments, 1, "killwords");
    const text_t *given;
    TRY(argument_integer(run, arguments, 0, "length", 255, &length));
    TRY(argument_text(run, arguments, 2, "end", &given));
    TRY(argument_integer(run, arguments, 3, "leeway", 5, &leeway));
    text_t end = given != NULL ? *given : text_of("...", MARK_TEMPLATE);
    int64_t n_end = (int64_t)text_length(&end);
    if (value->kind != VALUE_TEXT || length < n_end || leeway < 0)
        return jinja_fail(run, "truncate needs a string, a length of its end at least and no "
                               "negative leeway");
    *out = *value;
    int64_t n = (int64_t)text_length(&value->text);
    if (n <= length || n - length <= leeway)
        return STATUS_OK;
    size_t kept = text_offset(&value->text, (size_t)(length - n_end));
    if (kill == NULL || !value_truth(kill))
        kept = last_space(&value->text, kept);
    text_t parts[2] = {text_slice(&value->text, 0, kept), end}, text;
    TRY(text_join(run, parts, 2, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t filter_wordcount(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    text_t text;
    int64_t n = 0;
    size_t size;
    bool in_word = false;
    (void)arguments;
    TRY(value_string(run, value, &text));
    for (size_t at = 0; at < text.n; at += size) {
        bool word = character_is(utf8_decode((const uint8_t *)text.data + at, &size),
                                 CHARACTER_WORD);
        n += word && !in_word;
        in_word = word;
        TRY(run_charge(run, 1));
    }
    *out = value_integer(n);
    return STATUS_OK;
}

static status_t filter_urlencode(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                "_.-~/";
    text_t text;
    sink_t sink = {0};
    (void)arguments;
    if (value->kind == VALUE_DICT || value_is_sequence(value))
        return jinja_fail(run, "urlencode takes texts only here, not %s", value_kind_name(value));
    TRY(value_string(run, value, &text));
    for (size_t at = 0; at < text.n; at++) {
        char hex[8];
        text_t part = text_slice(&text, at, 1);
        snprintf(hex, sizeof hex, "%%%02X", (uint8_t)text.data[at]);
        if (text.data[at] == 0 || strchr(plain, text.data[at]) == NULL)
            part = text_of(hex, MARK_DATA);
        TRY(sink_append(run, &sink, &part));
        TRY(run_charge(run, (at & 63) == 0));
    }
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

const filter_t filters_of_texts[] = {
    {"trim", filter_trim, "chars="}, {"string", filter_string, ""}, {"upper", filter_upper, ""},
    {"lower", filter_lower, ""}, {"capitalize", filter_capitalize, ""},
    {"title", filter_title, ""}, {"replace", filter_replace, "old new count="},
    {"indent", filter_indent, "width= first= blank="}, {"safe", filter_safe, ""},
    {"escape", filter_escape, ""}, {"e", filter_escape, ""},
    {"forceescape", filter_forceescape, ""}, {"center", filter_center, "width="},
    {"format", filter_format, "*"},
    {"truncate", filter_truncate, "length= killwords= end= leeway="},
    {"wordcount", filter_wordcount, ""}, {"urlencode", filter_urlencode, ""},
    {0},
};
