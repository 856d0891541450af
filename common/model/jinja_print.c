/* Template values as text: what {{ }} prints (Python's str), Python's repr inside of lists and
 * mappings, and JSON as the filter tojson writes it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/chat.h"
#include "common/model/jinja_value.h"
#include "common/model/unicode.h"

typedef struct {
    jinja_run_t *run;
    sink_t sink;
    bool json;      /* otherwise Python */
    int64_t indent; /* of JSON; negative: on one line */
    bool sort_keys;
} printer_t;

static status_t put(printer_t *printer, const char *text)
{
    text_t part = text_of(text, MARK_DATA);
    return sink_append(printer->run, &printer->sink, &part);
}

static status_t put_bytes(printer_t *printer, const char *data, size_t n)
{
    text_t part = {data, n, NULL, MARK_DATA};
    return sink_append(printer->run, &printer->sink, &part);
}

enum { NUMBER_BYTES = 48 };

/* The shortest digits that read back as the same number, laid out as Python does: an exponent below
 * 1e-4 and from 1e16 on. */
static void real_text(double real, bool json, char out[NUMBER_BYTES])
{
    if (!isfinite(real)) {
        const char *name = isnan(real) ? (json ? "NaN" : "nan")
                           : real < 0  ? (json ? "-Infinity" : "-inf")
                                       : (json ? "Infinity" : "inf");
        snprintf(out, NUMBER_BYTES, "%s", name);
        return;
    }
    int precision = 1;
    for (; precision < 17; precision++) {
        snprintf(out, NUMBER_BYTES, "%.*e", precision - 1, real);
        if (strtod(out, NULL) == real)
            break;
    }
    snprintf(out, NUMBER_BYTES, "%.*e", precision - 1, real);
    const char *mark = strchr(out, 'e');
    int exponent = mark == NULL ? 0 : atoi(mark + 1);
    if (exponent < -4 || exponent >= 16)
        return;
    int decimals = precision - 1 - exponent;
    snprintf(out, NUMBER_BYTES, "%.*f", decimals < 1 ? 1 : decimals, real);
}

static status_t put_number(printer_t *printer, const value_t *value)
{
    char text[NUMBER_BYTES];
    if (value->kind == VALUE_INTEGER)
        snprintf(text, sizeof text, "%lld", (long long)value->integer);
    else
        real_text(value->real, printer->json, text);
    return put(printer, text);
}

/* What stands for a byte inside quotes, or NULL when it stands for itself. */
static const char *escape_of(const printer_t *printer, uint8_t byte, char quote, char hex[8])
{
    switch (byte) {
    case '\n':
        return "\\n";
    case '\r':
        return "\\r";
    case '\t':
        return "\\t";
    case '\\':
        return "\\\\";
    case '\b':
        return printer->json ? "\\b" : "\\x08";
    case '\f':
        return printer->json ? "\\f" : "\\x0c";
    default:
        break;
    }
    if (byte == (uint8_t)quote) {
        snprintf(hex, 8, "\\%c", quote);
        return hex;
    }
    if (byte >= 0x20 && !(byte == 0x7F && !printer->json))
        return NULL;
    snprintf(hex, 8, printer->json ? "\\u%04x" : "\\x%02x", byte);
    return hex;
}

static status_t put_quoted(printer_t *printer, const text_t *text)
{
    char quote = '"', hex[8];
    if (!printer->json && (memchr(text->data, '\'', text->n) == NULL ||
                           memchr(text->data, '"', text->n) != NULL))
        quote = '\'';
    TRY(put_bytes(printer, &quote, 1));
    size_t from = 0;
    for (size_t at = 0; at < text->n; at++) {
        const char *escape = escape_of(printer, (uint8_t)text->data[at], quote, hex);
        if (escape == NULL)
            continue;
        TRY(put_bytes(printer, text->data + from, at - from));
        TRY(put(printer, escape));
        from = at + 1;
    }
    TRY(put_bytes(printer, text->data + from, text->n - from));
    return put_bytes(printer, &quote, 1);
}

static status_t put_value(printer_t *printer, const value_t *value, unsigned depth);

/* Between items: ", " or, indented, a new line. */
static status_t put_break(printer_t *printer, bool first, bool last, unsigned depth)
{
    bool indented = printer->json && printer->indent >= 0;
    if (!first && !last)
        TRY(put(printer, indented ? "," : ", "));
    if (!indented || (first && last))
        return STATUS_OK;
    TRY(put(printer, "\n"));
    for (int64_t i = 0; i < printer->indent * (depth + (last ? 0 : 1)); i++)
        TRY(put(printer, " "));
    return STATUS_OK;
}

static status_t put_list(printer_t *printer, const value_t *value, unsigned depth)
{
    bool round = value->kind == VALUE_TUPLE && !printer->json;
    const list_t *list = value->list;
    TRY(put(printer, round ? "(" : "["));
    for (size_t i = 0; i < list->n; i++) {
        TRY(put_break(printer, i == 0, false, depth));
        TRY(put_value(printer, &list->items[i], depth + 1));
    }
    TRY(put_break(printer, list->n == 0, true, depth));
    if (round && list->n == 1)
        TRY(put(printer, ","));
    return put(printer, round ? ")" : "]");
}

static int compare_keys(const void *a, const void *b, void *context)
{
    const dict_t *dict = context;
    const text_t *x = &dict->keys[*(const size_t *)a], *y = &dict->keys[*(const size_t *)b];
    int order = memcmp(x->data, y->data, x->n < y->n ? x->n : y->n);
    return order != 0 ? order : x->n < y->n ? -1 : x->n > y->n;
}

static status_t put_dict(printer_t *printer, const dict_t *dict, unsigned depth)
{
    size_t *order;
    TRY(run_alloc(printer->run, dict->n, sizeof *order, &order));
    for (size_t i = 0; i < dict->n; i++)
        order[i] = i;
    if (printer->sort_keys)
        qsort_r(order, dict->n, sizeof *order, compare_keys, (void *)(uintptr_t)dict);
    TRY(put(printer, "{"));
    for (size_t i = 0; i < dict->n; i++) {
        TRY(put_break(printer, i == 0, false, depth));
        TRY(put_quoted(printer, &dict->keys[order[i]]));
        TRY(put(printer, ": "));
        TRY(put_value(printer, &dict->values[order[i]], depth + 1));
    }
    TRY(put_break(printer, dict->n == 0, true, depth));
    return put(printer, "}");
}

static status_t put_value(printer_t *printer, const value_t *value, unsigned depth)
{
    TRY(run_charge(printer->run, 1));
    if (depth > CHAT_NESTING_MAX)
        return jinja_fail(printer->run, "a value nested deeper than %d levels is printed",
                          CHAT_NESTING_MAX);
    switch (value->kind) {
    case VALUE_NONE:
        return put(printer, printer->json ? "null" : "None");
    case VALUE_BOOL:
        if (printer->json)
            return put(printer, value->truth ? "true" : "false");
        return put(printer, value->truth ? "True" : "False");
    case VALUE_INTEGER:
    case VALUE_REAL:
        return put_number(printer, value);
    case VALUE_TEXT:
        return put_quoted(printer, &value->text);
    case VALUE_LIST:
    case VALUE_TUPLE:
        return put_list(printer, value, depth);
    case VALUE_DICT:
        return put_dict(printer, value->dict, depth);
    default:
        return jinja_fail(printer->run, "%s cannot be printed%s", value_kind_name(value),
                          printer->json ? " as JSON" : "");
    }
}

status_t value_string(jinja_run_t *run, const value_t *value, text_t *out)
{
    if (value->kind == VALUE_TEXT) {
        *out = value->text;
        return STATUS_OK;
    }
    if (value->kind == VALUE_UNDEFINED) {
        if (run->strict)
            return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
        *out = text_of("", MARK_DATA);
        return STATUS_OK;
    }
    printer_t printer = {.run = run, .indent = -1};
    TRY(put_value(&printer, value, 0));
    *out = sink_text(&printer.sink);
    return STATUS_OK;
}

status_t value_json(jinja_run_t *run, const value_t *value, int64_t indent, bool sort_keys,
                    text_t *out)
{
    printer_t printer = {.run = run, .json = true, .indent = indent, .sort_keys = sort_keys};
    TRY(put_value(&printer, value, 0));
    *out = sink_text(&printer.sink);
    return STATUS_OK;
}
