/* Python's methods of strings, as far as templates may call them. */
#include <string.h>

#include "common/model/jinja_character.h"
#include "common/model/jinja_method.h"
#include "common/model/unicode.h"

static status_t strip_with(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           unsigned sides, value_t *out)
{
    const text_t *chars;
    TRY(arguments_fit(run, arguments, "method", NULL, "chars="));
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

/* The part between two places, counted in characters as Python's find and others do. False when the
 * first lies behind the end. */
static status_t part_of(jinja_run_t *run, const text_t *text, const arguments_t *arguments,
                        text_t *out, int64_t *start_out, bool *possible_out)
{
    int64_t n = (int64_t)text_length(text), start, end;
    TRY(run_charge(run, text->n / 64));
    TRY(argument_integer(run, arguments, 1, "start", 0, &start));
    TRY(argument_integer(run, arguments, 2, "end", n, &end));
    start = start < 0 ? (start < -n ? 0 : start + n) : start;
    end = end < 0 ? (end < -n ? 0 : end + n) : end > n ? n : end;
    *start_out = start;
    *possible_out = start <= end;
    if (*possible_out) {
        size_t from = text_offset(text, (size_t)start);
        text_t rest = text_slice(text, from, text->n - from);
        *out = text_slice(&rest, 0, text_offset(&rest, (size_t)(end - start)));
    }
    return STATUS_OK;
}

static status_t affix_with(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           bool at_end, value_t *out)
{
    TRY(arguments_fit(run, arguments, "method", NULL, "affix start= end="));
    const value_t *given = &arguments->items[0], *items = given;
    size_t n = 1;
    text_t part;
    int64_t start;
    bool possible, found = false;
    if (given->kind == VALUE_TUPLE) {
        items = given->list->items;
        n = given->list->n;
    }
    TRY(part_of(run, &value->text, arguments, &part, &start, &possible));
    for (size_t i = 0; i < n; i++) {
        if (items[i].kind != VALUE_TEXT)
            return jinja_fail(run, "startswith and endswith need a string, not %s",
                              value_kind_name(&items[i]));
        found = found || (possible && has_affix(&part, &items[i].text, at_end));
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

static status_t text_method_replace(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    const text_t *old, *by;
    int64_t n_max;
    text_t text;
    TRY(arguments_fit(run, arguments, "method", NULL, "old new count="));
    TRY(argument_text(run, arguments, 0, "old", &old));
    TRY(argument_text(run, arguments, 1, "new", &by));
    TRY(argument_integer(run, arguments, 2, "count", -1, &n_max));
    if (old == NULL || by == NULL)
        return jinja_fail(run, "replace needs what to replace and by what");
    TRY(text_replace(run, &value->text, old, by, n_max, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t case_with(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                          text_case_t to, value_t *out)
{
    text_t text;
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    TRY(text_change_case(run, &value->text, to, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t text_method_upper(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return case_with(run, value, arguments, CASE_UPPER, out);
}

static status_t text_method_lower(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return case_with(run, value, arguments, CASE_LOWER, out);
}

static status_t text_method_capitalize(jinja_run_t *run, const value_t *value,
                                       const arguments_t *arguments, value_t *out)
{
    return case_with(run, value, arguments, CASE_CAPITALIZE, out);
}

static status_t text_method_title(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return case_with(run, value, arguments, CASE_TITLE, out);
}

static status_t text_method_swapcase(jinja_run_t *run, const value_t *value,
                                     const arguments_t *arguments, value_t *out)
{
    return case_with(run, value, arguments, CASE_SWAP, out);
}

/* The place of the first or last hit in characters, or -1. */
static status_t place_of(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                         bool last, int64_t *out)
{
    const text_t *needle;
    text_t part;
    int64_t start;
    bool possible;
    TRY(arguments_fit(run, arguments, "method", NULL, "sub start= end="));
    TRY(argument_text(run, arguments, 0, "sub", &needle));
    if (needle == NULL)
        return jinja_fail(run, "find needs a string");
    TRY(part_of(run, &value->text, arguments, &part, &start, &possible));
    *out = -1;
    if (!possible)
        return STATUS_OK;
    const char *hit = NULL;
    if (last) {
        for (size_t at = part.n - needle->n + 1; needle->n <= part.n && at-- > 0 && hit == NULL;)
            hit = needle->n == 0 || memcmp(part.data + at, needle->data, needle->n) == 0
                      ? part.data + at : NULL;
        TRY(run_charge(run, part.n / 8));
    } else {
        hit = needle->n == 0 ? part.data : memmem(part.data, part.n, needle->data, needle->n);
    }
    if (hit == NULL)
        return STATUS_OK;
    text_t before = text_slice(&part, 0, (size_t)(hit - part.data));
    *out = start + (int64_t)text_length(&before);
    return STATUS_OK;
}

static status_t text_method_find(jinja_run_t *run, const value_t *value,
                                 const arguments_t *arguments, value_t *out)
{
    int64_t place;
    TRY(place_of(run, value, arguments, false, &place));
    *out = value_integer(place);
    return STATUS_OK;
}

static status_t text_method_rfind(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    int64_t place;
    TRY(place_of(run, value, arguments, true, &place));
    *out = value_integer(place);
    return STATUS_OK;
}

static status_t text_method_index(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    TRY(text_method_find(run, value, arguments, out));
    return out->integer >= 0 ? STATUS_OK : jinja_fail(run, "index does not find the text");
}

static status_t text_method_rindex(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    TRY(text_method_rfind(run, value, arguments, out));
    return out->integer >= 0 ? STATUS_OK : jinja_fail(run, "rindex does not find the text");
}

static status_t text_method_count(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    const text_t *needle;
    text_t part;
    int64_t start, n = 0;
    bool possible;
    TRY(arguments_fit(run, arguments, "method", NULL, "sub start= end="));
    TRY(argument_text(run, arguments, 0, "sub", &needle));
    if (needle == NULL)
        return jinja_fail(run, "count needs a string");
    TRY(part_of(run, &value->text, arguments, &part, &start, &possible));
    if (possible && needle->n == 0)
        n = (int64_t)text_length(&part) + 1;
    const char *at = part.data, *end = possible ? part.data + part.n : NULL;
    while (possible && needle->n > 0 &&
           (at = memmem(at, (size_t)(end - at), needle->data, needle->n)) != NULL) {
        at += needle->n;
        n++;
    }
    *out = value_integer(n);
    return STATUS_OK;
}

static status_t text_method_removeprefix(jinja_run_t *run, const value_t *value,
                                         const arguments_t *arguments, value_t *out)
{
    const text_t *affix;
    TRY(arguments_fit(run, arguments, "method", NULL, "prefix"));
    TRY(argument_text(run, arguments, 0, "prefix", &affix));
    if (affix == NULL)
        return jinja_fail(run, "removeprefix needs a string");
    *out = *value;
    if (has_affix(&value->text, affix, false))
        out->text = text_slice(&value->text, affix->n, value->text.n - affix->n);
    return STATUS_OK;
}

static status_t text_method_removesuffix(jinja_run_t *run, const value_t *value,
                                         const arguments_t *arguments, value_t *out)
{
    const text_t *affix;
    TRY(arguments_fit(run, arguments, "method", NULL, "suffix"));
    TRY(argument_text(run, arguments, 0, "suffix", &affix));
    if (affix == NULL)
        return jinja_fail(run, "removesuffix needs a string");
    *out = *value;
    if (has_affix(&value->text, affix, true))
        out->text = text_slice(&value->text, 0, value->text.n - affix->n);
    return STATUS_OK;
}

static status_t pad_with(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                         unsigned sides, value_t *out)
{
    int64_t width;
    const text_t *given;
    TRY(arguments_fit(run, arguments, "method", NULL, "width fillchar="));
    TRY(argument_integer(run, arguments, 0, "width", 0, &width));
    TRY(argument_text(run, arguments, 1, "fillchar", &given));
    text_t fill = given != NULL ? *given : text_of(" ", MARK_TEMPLATE), text;
    if (text_length(&fill) != 1)
        return jinja_fail(run, "what fills is one character");
    TRY(text_pad(run, &value->text, width, &fill, sides, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t text_method_ljust(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return pad_with(run, value, arguments, 2, out);
}

static status_t text_method_rjust(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    return pad_with(run, value, arguments, 1, out);
}

static status_t text_method_center(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    return pad_with(run, value, arguments, 3, out);
}

/* Zeros behind the sign. */
static status_t text_method_zfill(jinja_run_t *run, const value_t *value,
                                  const arguments_t *arguments, value_t *out)
{
    int64_t width;
    TRY(arguments_fit(run, arguments, "method", NULL, "width"));
    TRY(argument_integer(run, arguments, 0, "width", 0, &width));
    const text_t *text = &value->text;
    size_t n_sign = text->n > 0 && (text->data[0] == '-' || text->data[0] == '+');
    text_t zero = text_of("0", MARK_TEMPLATE);
    text_t parts[2] = {text_slice(text, 0, n_sign), text_slice(text, n_sign, text->n - n_sign)};
    TRY(text_pad(run, &parts[1], width - (int64_t)n_sign, &zero, 1, &parts[1]));
    TRY(text_join(run, parts, 2, &parts[0]));
    *out = value_text(parts[0]);
    return STATUS_OK;
}

static status_t text_method_format(jinja_run_t *run, const value_t *value,
                                   const arguments_t *arguments, value_t *out)
{
    text_t text;
    TRY(text_format(run, &value->text, arguments, &text));
    *out = value_text(text);
    return STATUS_OK;
}

/* True when the text is not empty and each character is of a class. */
static status_t all_are(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                        unsigned classes, value_t *out)
{
    const text_t *text = &value->text;
    size_t size;
    bool all = text->n > 0;
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    for (size_t at = 0; at < text->n && all; at += size) {
        uint32_t code = utf8_decode((const uint8_t *)text->data + at, &size);
        TRY(run_charge(run, 1));
        all = false;
        for (unsigned class = 0; class <= CHARACTER_WORD && !all; class++)
            all = (classes >> class & 1) != 0 && character_is(code, (character_class_t)class);
    }
    *out = value_bool(all);
    return STATUS_OK;
}

static status_t text_method_isalpha(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    return all_are(run, value, arguments, 1u << CHARACTER_LETTER, out);
}

static status_t text_method_isdigit(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    return all_are(run, value, arguments, 1u << CHARACTER_DIGIT, out);
}

static status_t text_method_isdecimal(jinja_run_t *run, const value_t *value,
                                      const arguments_t *arguments, value_t *out)
{
    return all_are(run, value, arguments, 1u << CHARACTER_DECIMAL, out);
}

static status_t text_method_isnumeric(jinja_run_t *run, const value_t *value,
                                      const arguments_t *arguments, value_t *out)
{
    return all_are(run, value, arguments, 1u << CHARACTER_NUMERIC, out);
}

static status_t text_method_isalnum(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    return all_are(run, value, arguments, 1u << CHARACTER_LETTER | 1u << CHARACTER_NUMERIC, out);
}

static status_t text_method_isspace(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    text_t stripped = text_strip(&value->text, NULL, 1);
    TRY(arguments_fit(run, arguments, "method", NULL, ""));
    *out = value_bool(value->text.n > 0 && stripped.n == 0);
    return STATUS_OK;
}

static status_t case_test(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                          const char *test, value_t *out)
{
    text_t name = text_of(test, MARK_TEMPLATE);
    bool holds;
    TRY(test_apply(run, &name, value, arguments, &holds));
    *out = value_bool(holds);
    return STATUS_OK;
}

static status_t text_method_isupper(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    return case_test(run, value, arguments, "upper", out);
}

static status_t text_method_islower(jinja_run_t *run, const value_t *value,
                                    const arguments_t *arguments, value_t *out)
{
    return case_test(run, value, arguments, "lower", out);
}

method_fn text_method_of(const text_t *name)
{
    static const struct {
        const char *name;
        method_fn fn;
    } methods[] = {
        {"strip", text_method_strip}, {"lstrip", text_method_lstrip},
        {"rstrip", text_method_rstrip}, {"startswith", text_method_startswith},
        {"endswith", text_method_endswith}, {"replace", text_method_replace},
        {"upper", text_method_upper}, {"lower", text_method_lower},
        {"casefold", text_method_lower}, {"capitalize", text_method_capitalize},
        {"title", text_method_title}, {"swapcase", text_method_swapcase},
        {"find", text_method_find}, {"rfind", text_method_rfind}, {"index", text_method_index},
        {"rindex", text_method_rindex}, {"count", text_method_count},
        {"removeprefix", text_method_removeprefix}, {"removesuffix", text_method_removesuffix},
        {"ljust", text_method_ljust}, {"rjust", text_method_rjust}, {"center", text_method_center},
        {"zfill", text_method_zfill}, {"format", text_method_format},
        {"isalpha", text_method_isalpha}, {"isdigit", text_method_isdigit},
        {"isdecimal", text_method_isdecimal}, {"isnumeric", text_method_isnumeric},
        {"isalnum", text_method_isalnum}, {"isspace", text_method_isspace},
        {"isupper", text_method_isupper}, {"islower", text_method_islower},
        {"split", text_method_split}, {"rsplit", text_method_rsplit},
        {"splitlines", text_method_splitlines}, {"partition", text_method_partition},
        {"rpartition", text_method_rpartition}, {"join", text_method_join},
    };
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (text_is(name, methods[i].name))
            return methods[i].fn;
    return NULL;
}
