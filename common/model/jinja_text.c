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

const value_t *argument(const arguments_t *arguments, size_t at, const char *name)
{
    size_t n_positional = arguments->n - arguments->n_named;
    if (at < n_positional)
        return &arguments->items[at];
    for (size_t i = 0; i < arguments->n_named; i++)
        if (text_is(&arguments->names[i], name))
            return &arguments->items[n_positional + i];
    return NULL;
}

status_t argument_integer(jinja_run_t *run, const arguments_t *arguments, size_t at,
                          const char *name, int64_t by_default, int64_t *out)
{
    const value_t *value = argument(arguments, at, name);
    *out = by_default;
    if (value == NULL || value->kind == VALUE_NONE)
        return STATUS_OK;
    if (value->kind != VALUE_INTEGER)
        return jinja_fail(run, "\"%s\" must be an integer, not %s", name, value_kind_name(value));
    *out = value->integer;
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

status_t text_replace(jinja_run_t *run, const text_t *text, const text_t *old, const text_t *by,
                      int64_t n_max, text_t *out)
{
    sink_t sink = {0};
    size_t from = 0;
    if (old->n == 0)
        return jinja_fail(run, "replace needs something to replace");
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

status_t text_change_case(jinja_run_t *run, const text_t *text, text_case_t to, text_t *out)
{
    TRY(text_join(run, text, 1, out));
    char *data = (char *)(uintptr_t)out->data; /* fresh from text_join, so ours to change */
    bool in_word = false;
    for (size_t i = 0; i < out->n; i++) {
        char c = data[i];
        bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
        bool first = to == CASE_TITLE ? !in_word : i == 0;
        bool raise = to == CASE_UPPER || (to >= CASE_CAPITALIZE && first);
        if (lower && raise)
            data[i] = (char)(c - 'a' + 'A');
        else if (upper && !raise)
            data[i] = (char)(c - 'A' + 'a');
        in_word = lower || upper || ((uint8_t)c & 0x80) != 0;
    }
    return STATUS_OK;
}

status_t dict_items(jinja_run_t *run, const value_t *value, value_t *out)
{
    if (!value_is_dict(value))
        return jinja_fail(run, "items needs a mapping, not %s", value_kind_name(value));
    const dict_t *dict = value->dict;
    TRY(list_new(run, VALUE_LIST, dict->n, out));
    for (size_t i = 0; i < dict->n; i++) {
        value_t pair, key = value_text(dict->keys[i]);
        TRY(list_new(run, VALUE_TUPLE, 2, &pair));
        TRY(list_append(run, pair.list, &key));
        TRY(list_append(run, pair.list, &dict->values[i]));
        TRY(list_append(run, out->list, &pair));
    }
    return STATUS_OK;
}
