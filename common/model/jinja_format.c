/* Python's two ways of formatting: format % values and format.format(…). Widths come from
 * templates, so what they fill goes through the memory budget; precisions are bounded here. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

enum { PRECISION_MAX = 64, DIGITS_BYTES = 512 };

/* [[fill]align][sign][#][0][width][,][.precision][type] */
typedef struct {
    text_t fill;
    char align, sign, type, group;
    bool alternate, zero;
    int64_t width, precision; /* precision -1: none */
} spec_t;

static bool take_number(const char **at, const char *end, int64_t *out)
{
    bool any = false;
    for (; *at < end && **at >= '0' && **at <= '9'; (*at)++, any = true) {
        if (!any)
            *out = 0;
        if (*out < INT32_MAX)
            *out = *out * 10 + (**at - '0');
    }
    return any;
}

static bool take_one(const char **at, const char *end, const char *of, char *out)
{
    if (*at == end || **at == 0 || strchr(of, **at) == NULL)
        return false;
    *out = *(*at)++;
    return true;
}

static status_t parse_spec(jinja_run_t *run, const text_t *text, spec_t *spec)
{
    const char *at = text->data, *end = text->data + text->n;
    size_t fill = text->n == 0 ? 0 : text_offset(text, 1);
    char ignored;
    *spec = (spec_t){.fill = text_of(" ", MARK_TEMPLATE), .precision = -1};
    if (fill > 0 && fill < text->n && strchr("<>=^", text->data[fill]) != NULL) {
        spec->fill = text_slice(text, 0, fill);
        at += fill;
    }
    (void)take_one(&at, end, "<>=^", &spec->align);
    (void)take_one(&at, end, "+- ", &spec->sign);
    spec->alternate = take_one(&at, end, "#", &ignored);
    spec->zero = take_one(&at, end, "0", &ignored);
    (void)take_number(&at, end, &spec->width);
    (void)take_one(&at, end, ",_", &spec->group);
    bool dot = take_one(&at, end, ".", &ignored);
    bool malformed = dot && !take_number(&at, end, &spec->precision);
    (void)take_one(&at, end, "bcdeEfFgGnosxX%", &spec->type);
    if (malformed || at != end || spec->precision > PRECISION_MAX)
        return jinja_fail(run, "the format \"%.*s\" is not possible",
                          (int)(text->n < 40 ? text->n : 40), text->data);
    return STATUS_OK;
}

/* Digits of an integer without its sign, in base 2, 8, 10 or 16. */
static const char *integer_digits(uint64_t value, char type, char out[DIGITS_BYTES])
{
    unsigned base = type == 'b' ? 2 : type == 'o' ? 8 : type == 'x' || type == 'X' ? 16 : 10;
    const char *symbols = type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    char *at = out + DIGITS_BYTES - 1;
    *at = 0;
    do
        *--at = symbols[value % base];
    while ((value /= base) > 0);
    return at;
}

static void real_digits(double real, const spec_t *spec, char out[DIGITS_BYTES])
{
    int precision = spec->precision < 0 ? 6 : (int)spec->precision;
    real = fabs(real);
    switch (spec->type) {
    case 'e':
        snprintf(out, DIGITS_BYTES, "%.*e", precision, real);
        return;
    case 'E':
        snprintf(out, DIGITS_BYTES, "%.*E", precision, real);
        return;
    case 'f':
    case 'F':
        snprintf(out, DIGITS_BYTES, "%.*f", precision, real);
        return;
    case '%':
        snprintf(out, DIGITS_BYTES, "%.*f%%", precision, real * 100);
        return;
    case 'g':
    case 'n':
        snprintf(out, DIGITS_BYTES, "%.*g", precision, real);
        return;
    case 'G':
        snprintf(out, DIGITS_BYTES, "%.*G", precision, real);
        return;
    default: { /* no type: as str, or with a precision as g that keeps a decimal */
        char digits[NUMBER_TEXT_BYTES];
        real_text(real, false, digits);
        if (spec->precision >= 0)
            snprintf(digits, sizeof digits, "%.*g", precision == 0 ? 1 : precision, real);
        snprintf(out, DIGITS_BYTES, "%s%s", digits,
                 spec->precision >= 0 && strpbrk(digits, ".ein") == NULL ? ".0" : "");
    }
    }
}

/* Puts `group` between every three digits before the point. */
static void group_digits(const char *digits, char group, char out[2 * DIGITS_BYTES])
{
    size_t n = strspn(digits, "0123456789"), size = 0;
    for (size_t i = 0; digits[i] != 0; i++) {
        if (i > 0 && i < n && (n - i) % 3 == 0)
            out[size++] = group;
        out[size++] = digits[i];
    }
    out[size] = 0;
}

/* Sign and prefix, filling, digits. */
static status_t put_number(jinja_run_t *run, const spec_t *spec, bool negative, const char *digits,
                           text_t *out)
{
    char head[8], grouped[2 * DIGITS_BYTES];
    const char *sign = negative ? "-" : spec->sign == '+' ? "+" : spec->sign == ' ' ? " " : "";
    bool prefixed = spec->alternate && spec->type != 0 && strchr("boxX", spec->type) != NULL;
    snprintf(head, sizeof head, prefixed ? "%s0%c" : "%s", sign, spec->type);
    if (spec->group != 0) {
        group_digits(digits, spec->group, grouped);
        digits = grouped;
    }
    text_t parts[2] = {text_of(head, MARK_DATA), text_of(digits, MARK_DATA)}, zero = spec->fill;
    if (spec->align == 0 && spec->zero)
        zero = text_of("0", MARK_DATA);
    if (spec->align == '=' || (spec->align == 0 && spec->zero))
        TRY(text_pad(run, &parts[1], spec->width - (int64_t)parts[0].n, &zero, 1, &parts[1]));
    TRY(text_join(run, parts, 2, out));
    return text_pad(run, out, spec->width, &spec->fill,
                    spec->align == '<' ? 2 : spec->align == '^' ? 3 : 1, out);
}

static status_t put_text(jinja_run_t *run, const spec_t *spec, const text_t *text, text_t *out)
{
    *out = *text;
    if (spec->precision >= 0)
        *out = text_slice(text, 0, text_offset(text, (size_t)spec->precision));
    return text_pad(run, out, spec->width, &spec->fill,
                    spec->align == '>' ? 1 : spec->align == '^' ? 3 : 2, out);
}

static status_t put_value(jinja_run_t *run, const spec_t *spec, const value_t *value, text_t *out)
{
    char digits[DIGITS_BYTES];
    double real;
    bool number = value_is_number(value, &real);
    bool as_real = spec->type != 0 && strchr("eEfFgG%", spec->type) != NULL;
    if (value->kind == VALUE_TEXT && (spec->type == 0 || spec->type == 's'))
        return put_text(run, spec, &value->text, out);
    if (number && (as_real || (value->kind == VALUE_REAL && spec->type == 0))) {
        real_digits(real, spec, digits);
        return put_number(run, spec, signbit(real), digits, out);
    }
    if (number && value->kind != VALUE_REAL && spec->precision < 0 && spec->type != 's' &&
        spec->type != 'c') {
        int64_t integer = value->kind == VALUE_BOOL ? value->truth : value->integer;
        uint64_t size = integer < 0 ? 0 - (uint64_t)integer : (uint64_t)integer;
        return put_number(run, spec, integer < 0, integer_digits(size, spec->type, digits), out);
    }
    return jinja_fail(run, "%s cannot be formatted so", value_kind_name(value));
}

/* What a percent conversion takes from its right side. */
typedef struct {
    const value_t *values;
    const value_t *items; /* of a tuple, or the one value */
    size_t n, at;
} percent_t;

static status_t next_value(jinja_run_t *run, percent_t *percent, const value_t **out)
{
    if (percent->at >= percent->n)
        return jinja_fail(run, "not enough values for a format");
    *out = &percent->items[percent->at++];
    return STATUS_OK;
}

static status_t width_or_star(jinja_run_t *run, percent_t *percent, const char **at,
                              const char *end, int64_t *out)
{
    const value_t *value;
    char ignored;
    if (!take_one(at, end, "*", &ignored)) {
        (void)take_number(at, end, out);
        return STATUS_OK;
    }
    TRY(next_value(run, percent, &value));
    if (value->kind != VALUE_INTEGER)
        return jinja_fail(run, "* in a format needs an integer");
    *out = value->integer;
    return STATUS_OK;
}

/* %(key) */
static status_t keyed_value(jinja_run_t *run, const percent_t *percent, const text_t *format,
                            const char **at, const value_t **out)
{
    const char *end = format->data + format->n;
    const char *close = memchr(*at, ')', (size_t)(end - *at));
    if (close == NULL || percent->values->kind != VALUE_DICT)
        return jinja_fail(run, "a format with %%(name) needs a mapping");
    text_t key = {*at, (size_t)(close - *at), NULL, MARK_TEMPLATE, false};
    *at = close + 1;
    TRY(dict_get(run, percent->values->dict, &key, out));
    if (*out == NULL)
        return jinja_fail(run, "the format's \"%.*s\" is not there", (int)key.n, key.data);
    return STATUS_OK;
}

/* Text conversions turn any value into text first. */
static status_t convert(jinja_run_t *run, spec_t *spec, const value_t *value, text_t *out)
{
    value_t text = value_text(text_of("", MARK_DATA));
    if (spec->type == 's' || spec->type == 'r' || spec->type == 'a') {
        TRY(spec->type == 's' ? value_string(run, value, &text.text)
                              : value_repr(run, value, &text.text));
        spec->type = 's';
        spec->align = spec->align == '<' ? '<' : '>';
        return put_value(run, spec, &text, out);
    }
    if (spec->type == 'c' && value->kind == VALUE_TEXT && text_length(&value->text) == 1) {
        spec->type = 's';
        spec->align = spec->align == '<' ? '<' : '>';
        return put_value(run, spec, value, out);
    }
    bool whole = strchr("diu", spec->type) != NULL;
    value_t integer = *value;
    if (whole || strchr("oxX", spec->type) != NULL) {
        if (whole && value->kind == VALUE_REAL && fabs(value->real) < 9e18)
            integer = value_integer((int64_t)value->real);
        spec->type = whole ? 'd' : spec->type;
        if (spec->precision >= 0)
            return jinja_fail(run, "a precision of an integer is not possible here");
    }
    if (integer.kind == VALUE_TEXT)
        return jinja_fail(run, "a number is needed for %%%c", spec->type);
    return put_value(run, spec, &integer, out);
}

/* Behind a '%': reads the conversion, moves *at behind it, and makes its text. */
static status_t percent_once(jinja_run_t *run, percent_t *percent, const text_t *format,
                             const char **at, text_t *out)
{
    const char *end = format->data + format->n;
    spec_t spec = {.fill = text_of(" ", MARK_TEMPLATE), .precision = -1};
    const value_t *value = NULL;
    char flag, ignored;
    if (take_one(at, end, "(", &ignored))
        TRY(keyed_value(run, percent, format, at, &value));
    while (take_one(at, end, "#0- +", &flag)) {
        spec.alternate |= flag == '#';
        spec.zero |= flag == '0';
        spec.align = flag == '-' ? '<' : spec.align;
        spec.sign = flag == '+' || (flag == ' ' && spec.sign == 0) ? flag : spec.sign;
    }
    TRY(width_or_star(run, percent, at, end, &spec.width));
    if (take_one(at, end, ".", &ignored)) {
        spec.precision = 0;
        TRY(width_or_star(run, percent, at, end, &spec.precision));
    }
    if (spec.width < 0) {
        spec.align = '<';
        spec.width = spec.width == INT64_MIN ? INT64_MAX : -spec.width;
    }
    (void)take_one(at, end, "hlL", &ignored);
    if (!take_one(at, end, "diouxXeEfFgGcrsa%", &spec.type) || spec.precision > PRECISION_MAX)
        return jinja_fail(run, "a format's conversion is not known");
    if (spec.type == '%') {
        *out = text_of("%", MARK_TEMPLATE);
        return STATUS_OK;
    }
    if (value == NULL)
        TRY(next_value(run, percent, &value));
    return convert(run, &spec, value, out);
}

status_t text_percent(jinja_run_t *run, const text_t *format, const value_t *values, value_t *out)
{
    percent_t percent = {values, values, 1, 0};
    sink_t sink = {0};
    if (values->kind == VALUE_TUPLE) {
        percent.items = values->list->items;
        percent.n = values->list->n;
    }
    for (const char *at = format->data, *end = at + format->n; at < end;) {
        const char *sign = memchr(at, '%', (size_t)(end - at));
        size_t start = (size_t)(at - format->data);
        text_t part = text_slice(format, start, (size_t)((sign == NULL ? end : sign) - at));
        TRY(sink_append(run, &sink, &part));
        TRY(run_charge(run, 1));
        if (sign == NULL)
            break;
        at = sign + 1;
        TRY(percent_once(run, &percent, format, &at, &part));
        TRY(sink_append(run, &sink, &part));
    }
    bool mapping = values->kind == VALUE_DICT || values->kind == VALUE_LIST ||
                   values->kind == VALUE_RANGE;
    if (!mapping && percent.at < percent.n)
        return jinja_fail(run, "not all values fit into the format");
    *out = value_text(sink_text(&sink));
    return STATUS_OK;
}

/* One {field} of format(): its value. `n_auto` counts the fields without a name. */
static status_t field_value(jinja_run_t *run, const text_t *field, const arguments_t *arguments,
                            size_t *n_auto, value_t *out)
{
    size_t n = 0;
    while (n < field->n && field->data[n] != '.' && field->data[n] != '[')
        n++;
    text_t name = text_slice(field, 0, n);
    const char *at = name.data;
    int64_t place = (int64_t)*n_auto;
    const value_t *value = NULL;
    if (name.n == 0)
        ++*n_auto;
    bool numbered = name.n == 0 || (take_number(&at, name.data + name.n, &place) &&
                                    at == name.data + name.n);
    size_t n_positional = arguments->n - arguments->n_named;
    if (numbered && place < (int64_t)n_positional)
        value = &arguments->items[place];
    for (size_t i = 0; !numbered && i < arguments->n_named; i++)
        if (text_equal(&arguments->names[i], &name))
            value = &arguments->items[n_positional + i];
    if (value == NULL)
        return jinja_fail(run, "the format's field \"%.*s\" has no value", (int)name.n, name.data);
    *out = *value;
    while (n < field->n) {
        bool index = field->data[n] == '[';
        size_t start = ++n;
        while (n < field->n && (index ? field->data[n] != ']'
                                      : field->data[n] != '.' && field->data[n] != '['))
            n++;
        text_t word = text_slice(field, start, n - start);
        value_t from = *out, key = value_text(word);
        at = word.data;
        if (index && take_number(&at, word.data + word.n, &place) && at == word.data + word.n)
            key = value_integer(place);
        TRY(index ? value_index(run, &from, &key, out) : value_attribute(run, &from, &word, out));
        n += index;
    }
    return STATUS_OK;
}

static status_t put_field(jinja_run_t *run, const text_t *inside, const arguments_t *arguments,
                          size_t *n_auto, text_t *out)
{
    const char *colon = memchr(inside->data, ':', inside->n);
    size_t n = colon == NULL ? inside->n : (size_t)(colon - inside->data);
    text_t field = text_slice(inside, 0, n);
    text_t format = text_slice(inside, n + (colon != NULL), inside->n - n - (colon != NULL));
    char conversion = 0;
    value_t value;
    spec_t spec;
    if (n >= 2 && field.data[n - 2] == '!') {
        conversion = field.data[n - 1];
        field.n -= 2;
    }
    TRY(field_value(run, &field, arguments, n_auto, &value));
    if (conversion != 0 && strchr("rsa", conversion) == NULL)
        return jinja_fail(run, "a format's conversion is not known");
    if (conversion != 0 || (format.n == 0 && value.kind != VALUE_TEXT)) {
        text_t text;
        TRY(conversion == 0 || conversion == 's' ? value_string(run, &value, &text)
                                                 : value_repr(run, &value, &text));
        value = value_text(text);
    }
    TRY(parse_spec(run, &format, &spec));
    return put_value(run, &spec, &value, out);
}

status_t text_format(jinja_run_t *run, const text_t *format, const arguments_t *arguments,
                     text_t *out)
{
    sink_t sink = {0};
    size_t n_auto = 0;
    for (size_t at = 0; at < format->n;) {
        size_t brace = at;
        while (brace < format->n && format->data[brace] != '{' && format->data[brace] != '}')
            brace++;
        text_t part = text_slice(format, at, brace - at);
        TRY(sink_append(run, &sink, &part));
        TRY(run_charge(run, 1));
        at = brace;
        if (at == format->n)
            break;
        if (at + 1 < format->n && format->data[at + 1] == format->data[at]) {
            part = text_slice(format, at, 1);
            at += 2;
        } else {
            const char *close = memchr(format->data + at, '}', format->n - at);
            if (format->data[at] == '}' || close == NULL)
                return jinja_fail(run, "a format has a single brace");
            part = text_slice(format, at + 1, (size_t)(close - format->data) - at - 1);
            if (memchr(part.data, '{', part.n) != NULL)
                return jinja_fail(run, "fields inside of a format's fields are not supported");
            at += part.n + 2;
            TRY(put_field(run, &part, arguments, &n_auto, &part));
        }
        TRY(sink_append(run, &sink, &part));
    }
    *out = sink_text(&sink);
    return STATUS_OK;
}
