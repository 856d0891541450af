/* Template values as text: what {{ }} prints (Python's str), Python's repr inside of lists and
 * mappings, and JSON as the filter tojson writes it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/chat.h"
#include "common/model/jinja_character.h"
#include "common/model/jinja_value.h"
#include "common/model/unicode.h"

typedef struct {
    jinja_run_t *run;
    sink_t sink;
    const json_style_t *json; /* NULL: Python */
} printer_t;

static status_t put(printer_t *printer, const char *text)
{
    text_t part = text_of(text, MARK_DATA);
    return sink_append(printer->run, &printer->sink, &part);
}

static status_t put_bytes(printer_t *printer, const char *data, size_t n)
{
    text_t part = {data, n, NULL, MARK_DATA, false};
    return sink_append(printer->run, &printer->sink, &part);
}

void real_text(double real, bool json, char out[NUMBER_TEXT_BYTES])
{
    if (!isfinite(real)) {
        const char *name = isnan(real) ? (json ? "NaN" : "nan")
                           : real < 0  ? (json ? "-Infinity" : "-inf")
                                       : (json ? "Infinity" : "inf");
        snprintf(out, NUMBER_TEXT_BYTES, "%s", name);
        return;
    }
    int precision = 1;
    for (; precision < 17; precision++) {
        snprintf(out, NUMBER_TEXT_BYTES, "%.*e", precision - 1, real);
        if (strtod(out, NULL) == real)
            break;
    }
    snprintf(out, NUMBER_TEXT_BYTES, "%.*e", precision - 1, real);
    const char *mark = strchr(out, 'e');
    int exponent = mark == NULL ? 0 : atoi(mark + 1);
    /* An exponent below 1e-4 and from 1e16 on. */
    if (exponent < -4 || exponent >= 16)
        return;
    int decimals = precision - 1 - exponent;
    snprintf(out, NUMBER_TEXT_BYTES, "%.*f", decimals < 1 ? 1 : decimals, real);
}

static status_t put_number(printer_t *printer, const value_t *value)
{
    char text[NUMBER_TEXT_BYTES];
    if (value->kind == VALUE_INTEGER)
        snprintf(text, sizeof text, "%lld", (long long)value->integer);
    else
        real_text(value->real, printer->json != NULL, text);
    return put(printer, text);
}

enum { ESCAPE_BYTES = 16 };

/* What stands for an ASCII character inside quotes, or NULL when it stands for itself. */
static const char *ascii_escape(const json_style_t *style, uint8_t byte, char quote,
                                char hex[ESCAPE_BYTES])
{
    const bool json = style != NULL, shows_delete = json && !style->ascii;
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
        return json ? "\\b" : "\\x08";
    case '\f':
        return json ? "\\f" : "\\x0c";
    default:
        break;
    }
    if (byte == (uint8_t)quote) {
        snprintf(hex, ESCAPE_BYTES, "\\%c", quote);
        return hex;
    }
    if (byte >= 0x20 && (byte != 0x7F || shows_delete))
        return NULL;
    snprintf(hex, ESCAPE_BYTES, json ? "\\u%04x" : "\\x%02x", byte);
    return hex;
}

/* The same for the others: JSON escapes them when asked to write ASCII, repr when they would not be
 * seen. */
static const char *wide_escape(const json_style_t *json, uint32_t code, char hex[ESCAPE_BYTES])
{
    if (json != NULL ? !json->ascii : character_prints(code))
        return NULL;
    if (json == NULL)
        snprintf(hex, ESCAPE_BYTES, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x"
                                                                            : "\\U%08x", code);
    else if (code < 0x10000)
        snprintf(hex, ESCAPE_BYTES, "\\u%04x", code);
    else
        snprintf(hex, ESCAPE_BYTES, "\\u%04x\\u%04x", 0xD800 + ((code - 0x10000) >> 10),
                 0xDC00 + ((code - 0x10000) & 0x3FF));
    return hex;
}

static status_t put_quoted(printer_t *printer, const text_t *text)
{
    char quote = '"', hex[ESCAPE_BYTES];
    if (printer->json == NULL && (memchr(text->data, '\'', text->n) == NULL ||
                                  memchr(text->data, '"', text->n) != NULL))
        quote = '\'';
    TRY(put_bytes(printer, &quote, 1));
    size_t from = 0, size;
    for (size_t at = 0; at < text->n; at += size) {
        uint32_t code = utf8_decode((const uint8_t *)text->data + at, &size);
        const char *escape = code < 0x80
                                 ? ascii_escape(printer->json, (uint8_t)code, quote, hex)
                                 : wide_escape(printer->json, code, hex);
        if (escape == NULL)
            continue;
        TRY(put_bytes(printer, text->data + from, at - from));
        TRY(put(printer, escape));
        from = at + size;
    }
    TRY(put_bytes(printer, text->data + from, text->n - from));
    return put_bytes(printer, &quote, 1);
}

static status_t put_value(printer_t *printer, const value_t *value, unsigned depth);

/* Between items: ", " or what the style says, and perhaps a new line. */
static status_t put_break(printer_t *printer, bool first, bool last, unsigned depth)
{
    const json_style_t *json = printer->json;
    if (!first && !last)
        TRY(json == NULL ? put(printer, ", ")
                         : sink_append(printer->run, &printer->sink, &json->comma));
    if (json == NULL || !json->indented || (first && last))
        return STATUS_OK;
    TRY(put(printer, "\n"));
    for (unsigned i = 0; i < depth + (last ? 0 : 1); i++)
        TRY(sink_append(printer->run, &printer->sink, &json->indent));
    return STATUS_OK;
}

static status_t put_list(printer_t *printer, const value_t *value, unsigned depth)
{
    bool round = value->kind == VALUE_TUPLE && printer->json == NULL;
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
    if (printer->json != NULL && printer->json->sort_keys)
        qsort_r(order, dict->n, sizeof *order, compare_keys, (void *)(uintptr_t)dict);
    TRY(put(printer, "{"));
    for (size_t i = 0; i < dict->n; i++) {
        TRY(put_break(printer, i == 0, false, depth));
        TRY(put_quoted(printer, &dict->keys[order[i]]));
        TRY(printer->json == NULL
                ? put(printer, ": ")
                : sink_append(printer->run, &printer->sink, &printer->json->colon));
        TRY(put_value(printer, &dict->values[order[i]], depth + 1));
    }
    TRY(put_break(printer, dict->n == 0, true, depth));
    return put(printer, "}");
}

static status_t put_range(printer_t *printer, const list_t *range)
{
    char text[96];
    int n = snprintf(text, sizeof text, "range(%lld, %lld", (long long)range->start,
                     (long long)range->stop);
    if (range->step != 1)
        n += snprintf(text + n, sizeof text - (size_t)n, ", %lld", (long long)range->step);
    snprintf(text + n, sizeof text - (size_t)n, ")");
    return put(printer, text);
}

/* Python's words for what has no literal. None of them is JSON. */
static status_t put_object(printer_t *printer, const value_t *value, unsigned depth)
{
    char text[96];
    switch (value->kind) {
    case VALUE_UNDEFINED:
        return put(printer, "Undefined");
    case VALUE_RANGE:
        return put_range(printer, value->list);
    case VALUE_VIEW:
        TRY(put(printer, value->list->type));
        TRY(put(printer, "("));
        TRY(put_list(printer, value, depth));
        return put(printer, ")");
    case VALUE_NAMESPACE:
        TRY(put(printer, "<Namespace "));
        TRY(put_dict(printer, value->dict, depth));
        return put(printer, ">");
    case VALUE_LOOP:
        snprintf(text, sizeof text, "<LoopContext %zu/%zu>", value->loop->index0 + 1,
                 value->loop->items->n);
        return put(printer, text);
    case VALUE_MACRO:
        if (value->macro->node->kind == NODE_CALL_BLOCK)
            return put(printer, "<Macro anonymous>");
        TRY(put(printer, "<Macro '"));
        TRY(put_bytes(printer, value->macro->node->text, value->macro->node->text_size));
        return put(printer, "'>");
    default:
        return jinja_fail(printer->run, "%s cannot be printed", value_kind_name(value));
    }
}

static status_t put_value(printer_t *printer, const value_t *value, unsigned depth)
{
    TRY(run_charge(printer->run, 1));
    if (depth > CHAT_NESTING_MAX)
        return jinja_fail(printer->run, "a value nested deeper than %d levels is printed",
                          CHAT_NESTING_MAX);
    switch (value->kind) {
    case VALUE_NONE:
        return put(printer, printer->json != NULL ? "null" : "None");
    case VALUE_BOOL:
        if (printer->json != NULL)
            return put(printer, value->truth ? "true" : "false");
        return put(printer, value->truth ? "True" : "False");
    case VALUE_INTEGER:
    case VALUE_REAL:
        return put_number(printer, value);
    case VALUE_TEXT:
        if (printer->json != NULL || !value->text.safe)
            return put_quoted(printer, &value->text);
        TRY(put(printer, "Markup("));
        TRY(put_quoted(printer, &value->text));
        return put(printer, ")");
    case VALUE_LIST:
    case VALUE_TUPLE:
        return put_list(printer, value, depth);
    case VALUE_DICT:
        return put_dict(printer, value->dict, depth);
    default:
        if (printer->json != NULL)
            return jinja_fail(printer->run, "%s cannot be printed as JSON",
                              value_kind_name(value));
        return put_object(printer, value, depth + 1);
    }
}

status_t value_repr(jinja_run_t *run, const value_t *value, text_t *out)
{
    printer_t printer = {.run = run};
    TRY(put_value(&printer, value, 0));
    *out = sink_text(&printer.sink);
    return STATUS_OK;
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
    return value_repr(run, value, out);
}

status_t value_json(jinja_run_t *run, const value_t *value, const json_style_t *style,
                    text_t *out)
{
    printer_t printer = {.run = run, .json = style};
    TRY(put_value(&printer, value, 0));
    *out = sink_text(&printer.sink);
    return STATUS_OK;
}
