/* The tests of templates: what may follow `is`. */
#include "common/model/jinja_eval.h"

static bool is_kind(const value_t *value, const text_t *name, bool *out)
{
    const bool number = value->kind == VALUE_INTEGER || value->kind == VALUE_REAL;
    const bool list = value_is_list(value), dict = value_is_dict(value);
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
        {"iterable", list || dict || value->kind == VALUE_TEXT || value->kind == VALUE_UNDEFINED},
        {"sequence", list || dict || value->kind == VALUE_TEXT || value->kind == VALUE_UNDEFINED},
        {"callable", value->kind == VALUE_MACRO || value->kind == VALUE_FUNCTION},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (text_is(name, tests[i].name)) {
            *out = tests[i].holds;
            return true;
        }
    return false;
}

static status_t test_number(jinja_run_t *run, const text_t *name, const value_t *value,
                            const arguments_t *arguments, bool *out)
{
    int64_t divisor = 2;
    if (text_is(name, "divisibleby"))
        TRY(argument_integer(run, arguments, 0, "num", 0, &divisor));
    if (value->kind != VALUE_INTEGER || divisor == 0)
        return jinja_fail(run, "odd, even and divisibleby need integers other than a divisor of 0");
    /* -1 divides everything, and the smallest integer by it would leave 64 bits. */
    int64_t rest = divisor == -1 ? 0 : value->integer % divisor;
    *out = (rest == 0) != text_is(name, "odd");
    return STATUS_OK;
}

/* Tests that compare with an argument. */
static const struct {
    const char *name;
    jinja_op_t op;
} comparisons[] = {
    {"eq", OP_EQUAL}, {"equalto", OP_EQUAL}, {"sameas", OP_EQUAL}, {"ne", OP_NOT_EQUAL},
    {"lt", OP_LESS}, {"lessthan", OP_LESS}, {"le", OP_LESS_EQUAL}, {"gt", OP_GREATER},
    {"greaterthan", OP_GREATER}, {"ge", OP_GREATER_EQUAL}, {"in", OP_IN},
};

static status_t test_comparison(jinja_run_t *run, jinja_op_t op, const value_t *value,
                                const arguments_t *arguments, bool *out)
{
    int order;
    TRY(arguments_count(run, arguments, "a comparing test", 1, 1));
    const value_t *other = &arguments->items[0];
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

status_t test_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                    const arguments_t *arguments, bool *out)
{
    if (is_kind(value, name, out))
        return STATUS_OK;
    if (text_is(name, "odd") || text_is(name, "even") || text_is(name, "divisibleby"))
        return test_number(run, name, value, arguments, out);
    for (size_t i = 0; i < sizeof comparisons / sizeof *comparisons; i++)
        if (text_is(name, comparisons[i].name))
            return test_comparison(run, comparisons[i].op, value, arguments, out);
    return jinja_fail(run, "no test is named \"%.*s\"", (int)(name->n < 40 ? name->n : 40),
                      name->data);
}
