/* The functions that every template can call. */
#include <string.h>
#include <time.h>

#include "common/model/jinja_eval.h"

enum { RANGE_MAX = 100000 }; /* items; Jinja's sandbox has the same bound */

/* How many items start, start + step, … has before stop. */
static uint64_t range_size(int64_t start, int64_t stop, int64_t step)
{
    if (step > 0 ? start >= stop : start <= stop)
        return 0;
    uint64_t span = step > 0 ? (uint64_t)stop - (uint64_t)start : (uint64_t)start - (uint64_t)stop;
    uint64_t stride = step > 0 ? (uint64_t)step : 0 - (uint64_t)step;
    return (span - 1) / stride + 1;
}

static status_t function_range(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    int64_t start = 0, stop, step;
    TRY(arguments_count(run, arguments, "range", 1, 3));
    for (size_t i = 0; i < arguments->n; i++)
        if (arguments->n_named > 0 || arguments->items[i].kind == VALUE_NONE)
            return jinja_fail(run, "range takes integers by position");
    if (arguments->n > 1)
        TRY(argument_integer(run, arguments, 0, "start", 0, &start));
    TRY(argument_integer(run, arguments, arguments->n > 1, "stop", 0, &stop));
    TRY(argument_integer(run, arguments, 2, "step", 1, &step));
    if (step == 0)
        return jinja_fail(run, "range needs a step that is not 0");
    uint64_t n = range_size(start, stop, step);
    if (n > RANGE_MAX)
        return jinja_fail(run, "a range has at most %d numbers", RANGE_MAX);
    TRY(list_new(run, VALUE_RANGE, (size_t)n, out));
    out->list->start = start;
    out->list->stop = stop;
    out->list->step = step;
    for (uint64_t i = 0; i < n; i++) {
        value_t item = value_integer((int64_t)((uint64_t)start + i * (uint64_t)step));
        TRY(run_charge(run, 1));
        TRY(list_append(run, out->list, &item));
    }
    return STATUS_OK;
}

/* dict(pairs or mapping, name=value …), which namespace takes as well. */
static status_t new_mapping(jinja_run_t *run, const arguments_t *arguments, value_kind_t kind,
                            value_t *out)
{
    size_t n_positional = arguments->n - arguments->n_named;
    TRY(dict_new(run, kind, out));
    if (n_positional > 1)
        return jinja_fail(run, "dict takes one mapping, then name=value");
    if (n_positional == 1 && arguments->items[0].kind == VALUE_DICT) {
        const dict_t *dict = arguments->items[0].dict;
        for (size_t i = 0; i < dict->n; i++)
            TRY(dict_set(run, out->dict, &dict->keys[i], &dict->values[i]));
    } else if (n_positional == 1) {
        list_t *pairs, *pair;
        TRY(value_elements(run, &arguments->items[0], &pairs));
        for (size_t i = 0; i < pairs->n; i++) {
            TRY(value_elements(run, &pairs->items[i], &pair));
            if (pair->n != 2 || pair->items[0].kind != VALUE_TEXT)
                return jinja_fail(run, "dict needs pairs of a string and a value");
            TRY(dict_set(run, out->dict, &pair->items[0].text, &pair->items[1]));
        }
    }
    for (size_t i = 0; i < arguments->n_named; i++)
        TRY(dict_set(run, out->dict, &arguments->names[i], &arguments->items[n_positional + i]));
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
    enum { WORDS_BYTES_MAX = STATUS_TEXT_MAX - 16 };
    text_t text;
    (void)out;
    TRY(arguments_fit(run, arguments, "function", NULL, "message"));
    TRY(value_string(run, &arguments->items[0], &text));
    run->refused = true;
    size_t n = text.n < WORDS_BYTES_MAX ? text.n : WORDS_BYTES_MAX;
    while (n < text.n && n > 0 && ((uint8_t)text.data[n] & 0xC0) == 0x80)
        n--; /* not in the middle of a character */
    return fail(STATUS_INVALID, "TemplateError: %.*s", (int)n, text.data);
}

/* What Python's datetime without a zone prints differently from the C library: no zone, and
 * microseconds. */
static size_t naive_format(const text_t *format, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < format->n; i++) {
        char next = format->data[i] == '%' && i + 1 < format->n ? format->data[i + 1] : 0;
        if (next == 'z' || next == 'Z') {
            i++;
        } else if (next == 'f') {
            memcpy(out + n, "000000", 6);
            n += 6;
            i++;
        } else {
            out[n++] = format->data[i];
            if (next != 0)
                out[n++] = format->data[++i];
        }
    }
    out[n] = 0;
    return n;
}

static status_t function_strftime_now(jinja_run_t *run, const arguments_t *arguments, value_t *out)
{
    enum { FORMAT_BYTES_MAX = 128, DATE_BYTES_MAX = 1024 };
    const text_t *format;
    TRY(arguments_fit(run, arguments, "function", NULL, "format"));
    TRY(argument_text(run, arguments, 0, "format", &format));
    if (format == NULL || format->n >= FORMAT_BYTES_MAX ||
        (format->n > 0 && memchr(format->data, 0, format->n) != NULL))
        return jinja_fail(run, "strftime_now needs a format of less than %d bytes",
                          FORMAT_BYTES_MAX);
    char pattern[3 * FORMAT_BYTES_MAX], *date;
    size_t n = naive_format(format, pattern);
    struct tm now;
    time_t seconds = (time_t)run->now_unix_s;
    if (gmtime_r(&seconds, &now) == NULL)
        return jinja_fail(run, "the time is out of range");
    TRY(run_alloc(run, DATE_BYTES_MAX, 1, &date));
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    n = n == 0 ? 0 : strftime(date, DATE_BYTES_MAX, pattern, &now);
#pragma GCC diagnostic pop
    /* The date may hold whatever the format holds, so it is the template's only if all of that is.
     * */
    uint8_t mark = format->marks == NULL ? format->mark : MARK_DATA;
    *out = value_text((text_t){date, n, NULL, mark, false});
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
