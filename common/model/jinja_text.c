/* String work that the filters and methods of templates share, and access to call arguments. */
#include <string.h>

#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

status_t arguments_count(jinja_run_t *run, const arguments_t *arguments, const char *what,
                         size_t n_min, size_t n_max)
{
    if (arguments->n < n_min || arguments->n > n_max)
        return jinja_fail(run, "%s takes %zu to %zu arguments, not %zu", what, n_min, n_max,
                          arguments->n);
    return STATUS_OK;
}

static const value_t *named_argument(const arguments_t *arguments, const text_t *name)
{
    for (size_t i = 0; i < arguments->n_named; i++)
        if (text_equal(&arguments->names[i], name))
            return &arguments->items[arguments->n - arguments->n_named + i];
    return NULL;
}

/* Where `name` stands among the words of `parameters`, or -1. */
static int parameter_place(const char *parameters, const text_t *name)
{
    int place = 0;
    for (const char *at = parameters; *at != 0 && *at != '*'; place++) {
        size_t n = strcspn(at, " =");
        if (n == name->n && memcmp(at, name->data, n) == 0)
            return place;
        at += n;
        at += strspn(at, "= ");
    }
    return -1;
}

status_t arguments_fit(jinja_run_t *run, const arguments_t *arguments, const char *what,
                       const text_t *name, const char *parameters)
{
    size_t n_positional = arguments->n - arguments->n_named, n = 0;
    text_t callee = name != NULL ? *name : text_of(what, MARK_TEMPLATE);
    if (strchr(parameters, '*') != NULL)
        return STATUS_OK;
    for (const char *at = parameters; *at != 0; n++) {
        text_t word = {at, strcspn(at, " ="), NULL, MARK_TEMPLATE, false};
        at += word.n;
        if (*at != '=' && n >= n_positional && named_argument(arguments, &word) == NULL)
            return jinja_fail(run, "the %s %.*s needs \"%.*s\"", what, (int)callee.n, callee.data,
                              (int)word.n, word.data);
        at += strspn(at, "= ");
    }
    if (n_positional > n)
        return jinja_fail(run, "the %s %.*s takes %zu arguments, not %zu", what, (int)callee.n,
                          callee.data, n, n_positional);
    for (size_t i = 0; i < arguments->n_named; i++) {
        int place = parameter_place(parameters, &arguments->names[i]);
        if (place < 0 || (size_t)place < n_positional)
            return jinja_fail(run, "the %s %.*s takes no \"%.*s\", or got it twice", what,
                              (int)callee.n, callee.data, (int)arguments->names[i].n,
                              arguments->names[i].data);
    }
    return STATUS_OK;
}

const value_t *argument(const arguments_t *arguments, size_t at, const char *name)
{
    size_t n_positional = arguments->n - arguments->n_named;
    text_t word = text_of(name, MARK_TEMPLATE);
    return at < n_positional ? &arguments->items[at] : named_argument(arguments, &word);
}

status_t argument_integer(jinja_run_t *run, const arguments_t *arguments, size_t at,
                          const char *name, int64_t by_default, int64_t *out)
{
    const value_t *value = argument(arguments, at, name);
    *out = by_default;
    if (value == NULL || value->kind == VALUE_NONE)
        return STATUS_OK;
    if (value->kind != VALUE_INTEGER && value->kind != VALUE_BOOL)
        return jinja_fail(run, "\"%s\" must be an integer, not %s", name, value_kind_name(value));
    *out = value->kind == VALUE_BOOL ? value->truth : value->integer;
    return STATUS_OK;
}

status_t argument_text(jinja_run_t *run, const arguments_t *arguments, size_t at, const char *name,
                       const text_t **out)
{
    const value_t *value = argument(arguments, at, name);
    *out = NULL;
    if (value == NULL || value->kind == VALUE_NONE)
        return STATUS_OK;
    if (value->kind != VALUE_TEXT)
        return jinja_fail(run, "\"%s\" must be a string, not %s", name, value_kind_name(value));
    *out = &value->text;
    return STATUS_OK;
}

/* Whether the character at `at` is to be stripped. */
static bool is_stripped(const text_t *text, size_t at, size_t length, const text_t *chars)
{
    if (chars == NULL)
        return unicode_is_space(utf8_decode((const uint8_t *)text->data + at, &length));
    return chars->n > 0 && memmem(chars->data, chars->n, text->data + at, length) != NULL;
}

text_t text_strip(const text_t *text, const text_t *chars, unsigned sides)
{
    size_t start = 0, end = text->n, length;
    while ((sides & 1) != 0 && start < end) {
        (void)utf8_decode((const uint8_t *)text->data + start, &length);
        if (!is_stripped(text, start, length, chars))
            break;
        start += length;
    }
    while ((sides & 2) != 0 && end > start) {
        size_t at = end - 1;
        while (((uint8_t)text->data[at] & 0xC0) == 0x80)
            at--;
        if (!is_stripped(text, at, end - at, chars))
            break;
        end = at;
    }
    return text_slice(text, start, end - start);
}

/* What replacing the empty text does: `by` before each character and at the end. */
static status_t insert_between(jinja_run_t *run, const text_t *text, const text_t *by,
                               int64_t n_max, text_t *out)
{
    sink_t sink = {0};
    size_t at = 0, size;
    for (int64_t n = 0; n_max < 0 || n < n_max; n++) {
        TRY(sink_append(run, &sink, by));
        TRY(run_charge(run, 1));
        if (at == text->n)
            break;
        (void)utf8_decode((const uint8_t *)text->data + at, &size);
        text_t character = text_slice(text, at, size);
        TRY(sink_append(run, &sink, &character));
        at += size;
    }
    text_t rest = text_slice(text, at, text->n - at);
    TRY(sink_append(run, &sink, &rest));
    *out = sink_text(&sink);
    return STATUS_OK;
}

status_t text_replace(jinja_run_t *run, const text_t *text, const text_t *old, const text_t *by,
                      int64_t n_max, text_t *out)
{
    sink_t sink = {0};
    size_t from = 0;
    if (old->n == 0)
        return insert_between(run, text, by, n_max, out);
    for (int64_t n = 0; n_max < 0 || n < n_max; n++) {
        const char *hit = text->n == from ? NULL
                                          : memmem(text->data + from, text->n - from, old->data,
                                                   old->n);
        if (hit == NULL)
            break;
        size_t at = (size_t)(hit - text->data);
        text_t kept = text_slice(text, from, at - from);
        TRY(sink_append(run, &sink, &kept));
        TRY(sink_append(run, &sink, by));
        TRY(run_charge(run, 1));
        from = at + old->n;
    }
    text_t rest = text_slice(text, from, text->n - from);
    TRY(sink_append(run, &sink, &rest));
    *out = sink_text(&sink);
    return STATUS_OK;
}

status_t dict_items(jinja_run_t *run, const value_t *value, value_kind_t kind, value_t *out)
{
    if (value->kind != VALUE_DICT)
        return jinja_fail(run, "items needs a mapping, not %s", value_kind_name(value));
    const dict_t *dict = value->dict;
    TRY(list_new(run, kind, dict->n, out));
    out->list->type = "dict_items";
    for (size_t i = 0; i < dict->n; i++) {
        value_t pair, key = value_text(dict->keys[i]);
        TRY(list_new(run, VALUE_TUPLE, 2, &pair));
        TRY(list_append(run, pair.list, &key));
        TRY(list_append(run, pair.list, &dict->values[i]));
        TRY(list_append(run, out->list, &pair));
    }
    return STATUS_OK;
}

status_t text_repeat(jinja_run_t *run, const text_t *unit, size_t n, text_t *out)
{
    text_t *parts;
    if (unit->n == 0)
        n = 0;
    TRY(run_alloc(run, n, sizeof *parts, &parts));
    for (size_t i = 0; i < n; i++)
        parts[i] = *unit;
    return text_join(run, parts, n, out);
}

status_t text_pad(jinja_run_t *run, const text_t *text, int64_t width, const text_t *fill,
                  unsigned sides, text_t *out)
{
    int64_t n = (int64_t)text_length(text);
    *out = *text;
    if (width <= n)
        return STATUS_OK;
    int64_t room = width - n;
    /* Python's str.center puts the odd one to the left when the width is odd. */
    int64_t left = sides == 3 ? room / 2 + (room & width & 1) : sides == 1 ? room : 0;
    text_t parts[3] = {{0}, *text, {0}};
    TRY(text_repeat(run, fill, (size_t)left, &parts[0]));
    TRY(text_repeat(run, fill, (size_t)(room - left), &parts[2]));
    return text_join(run, parts, 3, out);
}

/* The size of the line end at `at`, by Python's str.splitlines; 0 when there is none. */
static size_t line_end(const text_t *text, size_t at)
{
    size_t size;
    uint32_t code = utf8_decode((const uint8_t *)text->data + at, &size);
    if (code == '\r' && at + 1 < text->n && text->data[at + 1] == '\n')
        return 2;
    bool ends = (code >= '\n' && code <= '\r') || (code >= 0x1C && code <= 0x1E) ||
                code == 0x85 || code == 0x2028 || code == 0x2029;
    return ends ? size : 0;
}

status_t text_lines(jinja_run_t *run, const text_t *text, bool keep_ends, list_t *out)
{
    size_t start = 0, size;
    for (size_t at = 0; at < text->n; at += size) {
        size_t end = line_end(text, at);
        (void)utf8_decode((const uint8_t *)text->data + at, &size);
        if (end == 0)
            continue;
        size = end;
        value_t line = value_text(text_slice(text, start, at - start + (keep_ends ? end : 0)));
        TRY(list_append(run, out, &line));
        start = at + end;
    }
    if (start == text->n)
        return STATUS_OK;
    value_t line = value_text(text_slice(text, start, text->n - start));
    return list_append(run, out, &line);
}

status_t text_escape(jinja_run_t *run, const text_t *text, text_t *out)
{
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    sink_t sink = {0};
    for (size_t at = 0; at < text->n; at++) {
        const char *found = text->data[at] == 0 ? NULL : strchr(from, text->data[at]);
        text_t part = text_slice(text, at, 1);
        if (found != NULL) {
            uint8_t mark = part.marks != NULL ? part.marks[0] : part.mark;
            part = text_of(to[found - from], mark);
        }
        TRY(sink_append(run, &sink, &part));
        TRY(run_charge(run, (at & 63) == 0));
    }
    *out = sink_text(&sink);
    out->safe = true;
    return STATUS_OK;
}
