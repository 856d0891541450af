/* The arithmetic of templates: Python's, on 64-bit integers (leaving them is an error) and doubles,
 * with + and * for texts and lists. */
#include <math.h>

#include "common/model/jinja_eval.h"

static status_t real_power(jinja_run_t *run, double a, double b, value_t *out)
{
    double result = pow(a, b);
    if (a == 0 && b < 0)
        return jinja_fail(run, "0 has no negative power");
    if (a < 0 && isfinite(b) && b != floor(b))
        return jinja_fail(run, "a negative number has no power that is not whole");
    if (isinf(result) && isfinite(a) && isfinite(b))
        return jinja_fail(run, "the power is too large");
    *out = value_real(result);
    return STATUS_OK;
}

static status_t integer_math(jinja_run_t *run, jinja_op_t op, int64_t a, int64_t b, value_t *out)
{
    int64_t result = 0;
    bool overflow = false;
    switch (op) {
    case OP_ADD:
        overflow = __builtin_add_overflow(a, b, &result);
        break;
    case OP_SUBTRACT:
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case OP_MULTIPLY:
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case OP_FLOOR_DIVIDE:
    case OP_MODULO:
        if (b == 0)
            return jinja_fail(run, "division by zero");
        overflow = a == INT64_MIN && b == -1;
        if (!overflow) { /* Python rounds down, C towards zero */
            int64_t quotient = a / b, rest = a % b;
            bool down = rest != 0 && (rest < 0) != (b < 0);
            result = op == OP_MODULO ? rest + (down ? b : 0) : quotient - down;
        }
        break;
    default: /* OP_POWER of integers */
        if (b < 0)
            return real_power(run, (double)a, (double)b, out);
        result = 1;
        for (int64_t i = 0; i < b && !overflow; i++) {
            TRY(run_charge(run, 1));
            overflow = __builtin_mul_overflow(result, a, &result);
        }
    }
    if (overflow)
        return jinja_fail(run, "an integer leaves 64 bits");
    *out = value_integer(result);
    return STATUS_OK;
}

/* Python's float modulo: the sign of the divisor. */
static double real_modulo(double a, double b)
{
    double rest = fmod(a, b);
    return rest == 0 ? copysign(0.0, b) : (rest < 0) != (b < 0) ? rest + b : rest;
}

static double real_floor_divide(double a, double b)
{
    double quotient = (a - real_modulo(a, b)) / b, rounded = floor(quotient);
    return quotient == 0 ? copysign(0.0, a / b) : quotient - rounded > 0.5 ? rounded + 1 : rounded;
}

static status_t real_math(jinja_run_t *run, jinja_op_t op, double a, double b, value_t *out)
{
    if (op == OP_POWER)
        return real_power(run, a, b, out);
    if (b == 0 && (op == OP_DIVIDE || op == OP_FLOOR_DIVIDE || op == OP_MODULO))
        return jinja_fail(run, "division by zero");
    double result = op == OP_ADD            ? a + b
                    : op == OP_SUBTRACT     ? a - b
                    : op == OP_MULTIPLY     ? a * b
                    : op == OP_DIVIDE       ? a / b
                    : op == OP_FLOOR_DIVIDE ? real_floor_divide(a, b)
                                            : real_modulo(a, b);
    *out = value_real(result);
    return STATUS_OK;
}

/* text * n and list * n. The memory budget bounds n, and an empty operand needs no loop. */
static status_t repeat(jinja_run_t *run, const value_t *value, int64_t times, value_t *out)
{
    size_t n = times < 0 ? 0 : (size_t)times;
    if (value->kind == VALUE_TEXT) {
        text_t *parts;
        if (value->text.n == 0)
            n = 0;
        TRY(run_alloc(run, n, sizeof *parts, &parts));
        for (size_t i = 0; i < n; i++)
            parts[i] = value->text;
        text_t text;
        TRY(text_join(run, parts, n, &text));
        *out = value_text(text);
        return STATUS_OK;
    }
    TRY(list_new(run, value->kind, 0, out));
    for (size_t i = 0; i < n && value->list->n > 0; i++)
        for (size_t k = 0; k < value->list->n; k++)
            TRY(list_append(run, out->list, &value->list->items[k]));
    return STATUS_OK;
}

static status_t add_lists(jinja_run_t *run, const value_t *a, const value_t *b, value_t *out)
{
    TRY(list_new(run, a->kind, a->list->n + b->list->n, out));
    for (size_t i = 0; i < a->list->n; i++)
        TRY(list_append(run, out->list, &a->list->items[i]));
    for (size_t i = 0; i < b->list->n; i++)
        TRY(list_append(run, out->list, &b->list->items[i]));
    return STATUS_OK;
}

static int64_t as_integer(const value_t *value)
{
    return value->kind == VALUE_BOOL ? value->truth : value->integer;
}

/* a + b escapes the side that is not marked as safe when the other one is; a ~ b does not. */
static status_t add_texts(jinja_run_t *run, jinja_op_t op, const value_t *a, const value_t *b,
                          value_t *out)
{
    text_t parts[2], text;
    TRY(value_string(run, a, &parts[0]));
    TRY(value_string(run, b, &parts[1]));
    bool safe = op == OP_ADD && (parts[0].safe || parts[1].safe);
    for (size_t i = 0; i < 2; i++)
        if (safe && !parts[i].safe)
            TRY(text_escape(run, &parts[i], &parts[i]));
    TRY(text_join(run, parts, 2, &text));
    text.safe = safe;
    *out = value_text(text);
    return STATUS_OK;
}

status_t value_binary(jinja_run_t *run, jinja_op_t op, const value_t *a, const value_t *b,
                      value_t *out)
{
    double x, y;
    if (op == OP_CONCAT || (op == OP_ADD && a->kind == VALUE_TEXT && b->kind == VALUE_TEXT))
        return add_texts(run, op, a, b, out);
    if (op == OP_MODULO && a->kind == VALUE_TEXT)
        return text_percent(run, &a->text, b, out);
    if (value_is_number(a, &x) && value_is_number(b, &y)) {
        bool whole = a->kind != VALUE_REAL && b->kind != VALUE_REAL && op != OP_DIVIDE;
        return whole ? integer_math(run, op, as_integer(a), as_integer(b), out)
                     : real_math(run, op, x, y, out);
    }
    if (op == OP_ADD && value_is_list(a) && a->kind == b->kind)
        return add_lists(run, a, b, out);
    bool a_repeats = a->kind == VALUE_TEXT || value_is_list(a);
    bool b_repeats = b->kind == VALUE_TEXT || value_is_list(b);
    if (op == OP_MULTIPLY && a_repeats && (b->kind == VALUE_INTEGER || b->kind == VALUE_BOOL))
        return repeat(run, a, as_integer(b), out);
    if (op == OP_MULTIPLY && b_repeats && (a->kind == VALUE_INTEGER || a->kind == VALUE_BOOL))
        return repeat(run, b, as_integer(a), out);
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**", "~"};
    return jinja_fail(run, "%s is not defined between %s and %s", names[op], value_kind_name(a),
                      value_kind_name(b));
}

