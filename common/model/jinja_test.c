/* The tests of templates: what may follow `is`. */
#include <string.h>

#include "common/model/jinja_character.h"
#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

static bool is_iterable(const value_t *value)
{
    return value_is_sequence(value) || value->kind == VALUE_TEXT || value->kind == VALUE_DICT ||
           value->kind == VALUE_UNDEFINED || value->kind == VALUE_VIEW ||
           value->kind == VALUE_GENERATOR || value->kind == VALUE_LOOP;
}

static const char *const kind_tests[] = {
    "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true",
    "false", "mapping", "iterable", "sequence", "callable", "escaped", "lower", "upper"};

/* Tests of what a value is. */
static bool is_kind(const value_t *value, const text_t *name, bool *out)
{
    const bool number = value->kind == VALUE_INTEGER || value->kind == VALUE_REAL;
    const struct {
        const char *name;
        bool holds;
    } tests[] = {
        {"defined", value->kind != VALUE_UNDEFINED},
        {"undefined", value->kind == VALUE_UNDEFINED},
        {"none", value->kind == VALUE_NONE},
        {"string", value->kind == VALUE_TEXT},
        {"number", number || value->kind == VALUE_BOOL},
        {"integer", value->kind == VALUE_INTEGER},
        {"float", value->kind == VALUE_REAL},
        {"boolean", value->kind == VALUE_BOOL},
        {"true", value->kind == VALUE_BOOL && value->truth},
        {"false", value->kind == VALUE_BOOL && !value->truth},
        {"mapping", value->kind == VALUE_DICT},
        {"iterable", is_iterable(value)},
        {"sequence", value_is_sequence(value) || value->kind == VALUE_TEXT ||
                         value->kind == VALUE_DICT || value->kind == VALUE_UNDEFINED},
        /* Python's Undefined has a __call__, which fails. */
        {"callable", value->kind >= VALUE_LOOP || value->kind == VALUE_UNDEFINED},
        {"escaped", value->kind == VALUE_TEXT && value->text.safe},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (text_is(name, tests[i].name)) {
            *out = tests[i].holds;
            return true;
        }
    return false;
}

/* Whether all letters with a case have this one, and there is one. */
static status_t test_case(jinja_run_t *run, const value_t *value, bool upper, bool *out)
{
    text_t text;
    size_t size;
    bool any = false, other = false;
    TRY(value_string(run, value, &text));
    for (size_t at = 0; at < text.n && !other; at += size) {
        uint32_t code = utf8_decode((const uint8_t *)text.data + at, &size);
        TRY(run_charge(run, 1));
        other = character_is(code, upper ? CHARACTER_LOWER : CHARACTER_UPPER);
        any = any || character_is(code, upper ? CHARACTER_UPPER : CHARACTER_LOWER);
    }
    *out = any && !other;
    return STATUS_OK;
}

static status_t test_number(jinja_run_t *run, const text_t *name, const value_t *value,
                            const arguments_t *arguments, bool *out)
{
    value_t two = value_integer(2), rest, zero = value_integer(text_is(name, "odd"));
    const value_t *divisor = &two;
    if (text_is(name, "divisibleby"))
        divisor = argument(arguments, 0, "num");
    if (value->kind == VALUE_TEXT)
        return jinja_fail(run, "odd, even and divisibleby need numbers");
    TRY(value_binary(run, OP_MODULO, value, divisor, &rest));
    return value_equal(run, &rest, &zero, 0, out);
}

/* Tests that compare with an argument. */
static const struct {
    const char *name;
    jinja_op_t op;
} comparisons[] = {
    {"eq", OP_EQUAL}, {"equalto", OP_EQUAL}, {"==", OP_EQUAL}, {"ne", OP_NOT_EQUAL},
    {"!=", OP_NOT_EQUAL}, {"lt", OP_LESS}, {"lessthan", OP_LESS}, {"<", OP_LESS},
    {"le", OP_LESS_EQUAL}, {"<=", OP_LESS_EQUAL}, {"gt", OP_GREATER}, {"greaterthan", OP_GREATER},
    {">", OP_GREATER}, {"ge", OP_GREATER_EQUAL}, {">=", OP_GREATER_EQUAL}, {"in", OP_IN},
};

static status_t test_comparison(jinja_run_t *run, jinja_op_t op, const value_t *value,
                                const value_t *other, bool *out)
{
    int order;
    if (op == OP_EQUAL || op == OP_NOT_EQUAL) {
        TRY(value_equal(run, value, other, 0, out));
        *out = *out == (op == OP_EQUAL);
        return STATUS_OK;
    }
    if (op == OP_IN)
        return value_contains(run, other, value, out);
    TRY(value_compare(run, value, other, &order));
    *out = op == OP_LESS         ? order < 0
           : op == OP_LESS_EQUAL ? order <= 0
           : op == OP_GREATER    ? order > 0
                                 : order >= 0;
    return STATUS_OK;
}

/* Python's `is`: the same object. Small numbers, texts that are written alike and constants are one
 * object in CPython as well, so equality stands for identity there. */
static status_t test_sameas(jinja_run_t *run, const value_t *a, const value_t *b, bool *out)
{
    *out = false;
    if (a->kind != b->kind)
        return STATUS_OK;
    if (value_is_sequence(a) || a->kind == VALUE_VIEW || a->kind == VALUE_GENERATOR) {
        *out = a->list == b->list;
        return STATUS_OK;
    }
    if (a->kind == VALUE_DICT) {
        *out = a->dict == b->dict;
        return STATUS_OK;
    }
    return value_equal(run, a, b, 0, out);
}

/* The names of tests with an argument of their own, and its name. */
static const char *parameter_of(const text_t *name)
{
    if (text_is(name, "divisibleby"))
        return "num";
    if (text_is(name, "sameas"))
        return "other";
    for (size_t i = 0; i < sizeof comparisons / sizeof *comparisons; i++)
        if (text_is(name, comparisons[i].name))
            return text_is(name, "in") ? "seq" : "other";
    return NULL;
}

bool test_exists(const text_t *name)
{
    static const char *const others[] = {"odd", "even", "filter", "test"};
    for (size_t i = 0; i < sizeof kind_tests / sizeof *kind_tests; i++)
        if (text_is(name, kind_tests[i]))
            return true;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (text_is(name, others[i]))
            return true;
    return parameter_of(name) != NULL;
}

status_t test_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                    const arguments_t *arguments, bool *out)
{
    const char *parameter = parameter_of(name);
    if (!test_exists(name))
        return jinja_fail(run, "no test is named \"%.*s\"", (int)(name->n < 40 ? name->n : 40),
                          name->data);
    TRY(arguments_fit(run, arguments, "test", name, parameter == NULL ? "" : parameter));
    if (is_kind(value, name, out))
        return STATUS_OK;
    if (text_is(name, "lower") || text_is(name, "upper"))
        return test_case(run, value, text_is(name, "upper"), out);
    if (text_is(name, "odd") || text_is(name, "even") || text_is(name, "divisibleby"))
        return test_number(run, name, value, arguments, out);
    if (text_is(name, "filter") || text_is(name, "test")) {
        bool test = text_is(name, "test");
        *out = value->kind == VALUE_TEXT &&
               (test ? test_exists(&value->text) : filter_find(&value->text) != NULL);
        return STATUS_OK;
    }
    if (text_is(name, "sameas"))
        return test_sameas(run, value, argument(arguments, 0, "other"), out);
    for (size_t i = 0; i < sizeof comparisons / sizeof *comparisons; i++)
        if (text_is(name, comparisons[i].name))
            return test_comparison(run, comparisons[i].op, value,
                                   argument(arguments, 0, parameter), out);
    return fail(STATUS_INTERNAL, "a test exists that is not written");
}
