/* Evaluates the expressions of a template. See jinja_eval.h. */
#include <string.h>

#include "common/model/chat.h"
#include "common/model/jinja_eval.h"

static text_t node_text(const node_t *node)
{
    return (text_t){node->text, node->text_size, NULL, MARK_TEMPLATE};
}

status_t value_attribute(jinja_run_t *run, const value_t *value, const text_t *name, value_t *out)
{
    if (name->n >= 2 && memcmp(name->data, "__", 2) == 0)
        return jinja_fail(run, "the attribute \"%.*s\" is not accessible",
                          (int)(name->n < 40 ? name->n : 40), name->data);
    if (value->kind == VALUE_UNDEFINED)
        return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
    const value_t *found = NULL;
    if (value_is_dict(value))
        TRY(dict_get(run, value->dict, name, &found));
    *out = found == NULL ? value_undefined(*name) : *found;
    return STATUS_OK;
}

status_t value_index(jinja_run_t *run, const value_t *value, const value_t *index, value_t *out)
{
    if (index->kind == VALUE_TEXT && (value_is_dict(value) || value->kind == VALUE_UNDEFINED)) {
        if (value->kind == VALUE_UNDEFINED)
            return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
        const value_t *found;
        TRY(dict_get(run, value->dict, &index->text, &found));
        *out = found == NULL ? value_undefined(index->text) : *found;
        return STATUS_OK;
    }
    if (value->kind == VALUE_UNDEFINED)
        return jinja_fail(run, "\"%.*s\" is undefined", (int)value->text.n, value->text.data);
    *out = value_undefined(text_of("an element", MARK_DATA));
    if (index->kind != VALUE_INTEGER)
        return STATUS_OK;
    int64_t at = index->integer;
    if (value_is_list(value)) {
        int64_t n = (int64_t)value->list->n;
        at += at < 0 ? n : 0;
        if (at >= 0 && at < n)
            *out = value->list->items[at];
    } else if (value->kind == VALUE_TEXT) {
        TRY(run_charge(run, value->text.n / 64));
        int64_t n = (int64_t)text_length(&value->text);
        at += at < 0 ? n : 0;
        if (at >= 0 && at < n) {
            size_t start = text_offset(&value->text, (size_t)at);
            text_t rest = text_slice(&value->text, start, value->text.n - start);
            *out = value_text(text_slice(&rest, 0, text_offset(&rest, 1)));
        }
    }
    return STATUS_OK;
}

/* start:stop:step over n elements, as Python clamps them. */
typedef struct {
    int64_t start, stop, step;
} range_t;

static status_t slice_part(jinja_run_t *run, const node_t *node, int64_t *inout)
{
    value_t value;
    if (node == NULL)
        return STATUS_OK;
    TRY(eval_expression(run, node, &value));
    if (value.kind == VALUE_NONE)
        return STATUS_OK;
    if (value.kind != VALUE_INTEGER)
        return jinja_fail(run, "a slice needs integers, not %s", value_kind_name(&value));
    *inout = value.integer;
    return STATUS_OK;
}

static int64_t clamp(int64_t at, int64_t n, int64_t low, int64_t high)
{
    if (at < 0)
        at = at < -n ? low : at + n; /* far enough below is below the first */
    return at < low ? low : at > high ? high : at;
}

static status_t slice_range(jinja_run_t *run, const node_t *node, int64_t n, range_t *out)
{
    out->step = 1;
    TRY(slice_part(run, node->d, &out->step));
    if (out->step == 0 || out->step == INT64_MIN)
        return jinja_fail(run, "a slice step of %lld is not possible", (long long)out->step);
    bool up = out->step > 0;
    int64_t low = up ? 0 : -1, high = up ? n : n - 1;
    int64_t start = INT64_MIN, stop = INT64_MIN;
    TRY(slice_part(run, node->b, &start));
    TRY(slice_part(run, node->c, &stop));
    out->start = start == INT64_MIN ? (up ? low : high) : clamp(start, n, low, high);
    out->stop = stop == INT64_MIN ? (up ? high : low) : clamp(stop, n, low, high);
    return STATUS_OK;
}

static status_t eval_slice(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t value;
    list_t *list;
    range_t range;
    TRY(eval_expression(run, node->a, &value));
    if (value.kind != VALUE_TEXT && !value_is_list(&value))
        return jinja_fail(run, "%s cannot be sliced", value_kind_name(&value));
    TRY(value_elements(run, &value, &list));
    TRY(slice_range(run, node, (int64_t)list->n, &range));
    value_t picked;
    TRY(list_new(run, value.kind == VALUE_TEXT ? VALUE_LIST : value.kind, 0, &picked));
    for (int64_t at = range.start; range.step > 0 ? at < range.stop : at > range.stop;) {
        TRY(run_charge(run, 1));
        TRY(list_append(run, picked.list, &list->items[at]));
        if (__builtin_add_overflow(at, range.step, &at))
            break;
    }
    *out = picked;
    if (value.kind != VALUE_TEXT)
        return STATUS_OK;
    text_t *parts;
    TRY(run_alloc(run, picked.list->n, sizeof *parts, &parts));
    for (size_t i = 0; i < picked.list->n; i++)
        parts[i] = picked.list->items[i].text;
    text_t text;
    TRY(text_join(run, parts, picked.list->n, &text));
    *out = value_text(text);
    return STATUS_OK;
}

static status_t eval_binary(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t a, b;
    TRY(eval_expression(run, node->a, &a));
    TRY(eval_expression(run, node->b, &b));
    run->line = node->line;
    return value_binary(run, (jinja_op_t)node->integer, &a, &b, out);
}

static status_t compare_once(jinja_run_t *run, jinja_op_t op, const value_t *a, const value_t *b,
                             bool *out)
{
    int order;
    switch (op) {
    case OP_EQUAL:
        return value_equal(run, a, b, 0, out);
    case OP_NOT_EQUAL:
        TRY(value_equal(run, a, b, 0, out));
        *out = !*out;
        return STATUS_OK;
    case OP_IN:
        return value_contains(run, b, a, out);
    case OP_NOT_IN:
        TRY(value_contains(run, b, a, out));
        *out = !*out;
        return STATUS_OK;
    default:
        TRY(value_compare(run, a, b, &order));
        *out = op == OP_LESS         ? order < 0
               : op == OP_LESS_EQUAL ? order <= 0
               : op == OP_GREATER    ? order > 0
                                     : order >= 0;
        return STATUS_OK;
    }
}

static status_t eval_compare(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t left, right;
    bool holds = true;
    TRY(eval_expression(run, node->a, &left));
    for (size_t i = 0; i < node->n_items && holds; i++) {
        TRY(eval_expression(run, node->items[i]->b, &right));
        TRY(compare_once(run, (jinja_op_t)node->items[i]->integer, &left, &right, &holds));
        left = right;
    }
    *out = value_bool(holds);
    return STATUS_OK;
}

static status_t eval_items(jinja_run_t *run, const node_t *node, value_t *out)
{
    TRY(list_new(run, node->kind == NODE_TUPLE ? VALUE_TUPLE : VALUE_LIST, node->n_items, out));
    for (size_t i = 0; i < node->n_items; i++)
        TRY(eval_expression(run, node->items[i], &out->list->items[i]));
    out->list->n = node->n_items;
    return STATUS_OK;
}

static status_t eval_dict(jinja_run_t *run, const node_t *node, value_t *out)
{
    TRY(dict_new(run, VALUE_DICT, out));
    for (size_t i = 0; i + 1 < node->n_items; i += 2) {
        value_t key, value;
        TRY(eval_expression(run, node->items[i], &key));
        TRY(eval_expression(run, node->items[i + 1], &value));
        if (key.kind != VALUE_TEXT)
            return jinja_fail(run, "a mapping's keys are strings, not %s", value_kind_name(&key));
        TRY(dict_set(run, out->dict, &key.text, &value));
    }
    return STATUS_OK;
}

status_t eval_arguments(jinja_run_t *run, const node_t *const *items, size_t n, arguments_t *out)
{
    value_t *values;
    text_t *names;
    *out = (arguments_t){.n = n};
    TRY(run_alloc(run, n, sizeof *values, &values));
    TRY(run_alloc(run, n, sizeof *names, &names));
    for (size_t i = 0; i < n; i++) {
        const node_t *item = items[i];
        if (item->kind == NODE_KEYWORD) {
            names[out->n_named++] = node_text(item);
            item = item->a;
        }
        TRY(eval_expression(run, item, &values[i]));
    }
    out->items = values;
    out->names = names;
    return STATUS_OK;
}

static status_t eval_call(jinja_run_t *run, const node_t *node, value_t *out)
{
    arguments_t arguments;
    value_t callee;
    if (node->a->kind == NODE_ATTRIBUTE) {
        value_t object;
        bool found;
        text_t name = node_text(node->a);
        TRY(eval_expression(run, node->a->a, &object));
        TRY(eval_arguments(run, node->items, node->n_items, &arguments));
        run->line = node->line;
        TRY(method_call(run, &object, &name, &arguments, out, &found));
        if (found)
            return STATUS_OK;
        TRY(value_attribute(run, &object, &name, &callee));
        if (callee.kind == VALUE_UNDEFINED)
            return jinja_fail(run, "%s has no method \"%.*s\"", value_kind_name(&object),
                              (int)name.n, name.data);
    } else {
        TRY(eval_expression(run, node->a, &callee));
        TRY(eval_arguments(run, node->items, node->n_items, &arguments));
    }
    run->line = node->line;
    if (callee.kind == VALUE_MACRO)
        return eval_macro(run, callee.macro, &arguments, out);
    if (callee.kind == VALUE_FUNCTION)
        return callee.function(run, &arguments, out);
    if (callee.kind == VALUE_UNDEFINED)
        return jinja_fail(run, "\"%.*s\" is undefined", (int)callee.text.n, callee.text.data);
    return jinja_fail(run, "%s cannot be called", value_kind_name(&callee));
}

static status_t eval_filter(jinja_run_t *run, const node_t *node, const value_t *left, value_t *out)
{
    arguments_t arguments;
    text_t name = node_text(node);
    value_t value = *left;
    TRY(eval_arguments(run, node->items, node->n_items, &arguments));
    run->line = node->line;
    return filter_apply(run, &name, &value, &arguments, out);
}

status_t eval_filter_chain(jinja_run_t *run, const node_t *chain, value_t *inout)
{
    if (chain == NULL)
        return STATUS_OK;
    TRY(eval_filter_chain(run, chain->a, inout));
    return eval_filter(run, chain, inout, inout);
}

static status_t eval_test(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t value;
    arguments_t arguments;
    bool holds;
    text_t name = node_text(node);
    TRY(eval_expression(run, node->a, &value));
    TRY(eval_arguments(run, node->items, node->n_items, &arguments));
    run->line = node->line;
    TRY(test_apply(run, &name, &value, &arguments, &holds));
    *out = value_bool(holds != (node->integer != 0));
    return STATUS_OK;
}

static status_t eval_name(jinja_run_t *run, const node_t *node, value_t *out)
{
    text_t name = node_text(node);
    const value_t *found;
    TRY(scope_find(run, &name, &found));
    if (found != NULL)
        *out = *found;
    else if (!global_find(&name, out))
        *out = value_undefined(name);
    return STATUS_OK;
}

static status_t eval_sign(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t value, zero = value_integer(0);
    double number;
    TRY(eval_expression(run, node->a, &value));
    if (!value_is_number(&value, &number))
        return jinja_fail(run, "%s has no sign", value_kind_name(&value));
    *out = value_real(-number);
    if (node->kind == NODE_NEGATE && value.kind == VALUE_REAL)
        return STATUS_OK;
    return value_binary(run, node->kind == NODE_NEGATE ? OP_SUBTRACT : OP_ADD, &zero, &value, out);
}

/* and, or and the conditional evaluate only what they need. */
static status_t eval_choice(jinja_run_t *run, const node_t *node, value_t *out)
{
    if (node->kind == NODE_CONDITIONAL) {
        value_t condition;
        TRY(eval_expression(run, node->b, &condition));
        if (value_truth(&condition))
            return eval_expression(run, node->a, out);
        *out = value_undefined(text_of("the missing else", MARK_DATA));
        return node->c == NULL ? STATUS_OK : eval_expression(run, node->c, out);
    }
    TRY(eval_expression(run, node->a, out));
    if (value_truth(out) == (node->kind == NODE_OR))
        return STATUS_OK;
    return eval_expression(run, node->b, out);
}

static status_t eval_left(jinja_run_t *run, const node_t *node, value_t *out)
{
    value_t left, index;
    TRY(eval_expression(run, node->a, &left));
    run->line = node->line;
    if (node->kind == NODE_FILTER)
        return eval_filter(run, node, &left, out);
    if (node->kind == NODE_NOT) {
        *out = value_bool(!value_truth(&left));
        return STATUS_OK;
    }
    if (node->kind == NODE_INDEX) {
        TRY(eval_expression(run, node->b, &index));
        return value_index(run, &left, &index, out);
    }
    text_t name = node_text(node);
    return value_attribute(run, &left, &name, out);
}

static status_t eval_node(jinja_run_t *run, const node_t *node, value_t *out)
{
    switch (node->kind) {
    case NODE_TEXT_LITERAL:
        *out = value_text(node_text(node));
        return STATUS_OK;
    case NODE_INTEGER:
        *out = value_integer(node->integer);
        return STATUS_OK;
    case NODE_REAL:
        *out = value_real(node->real);
        return STATUS_OK;
    case NODE_BOOL:
        *out = value_bool(node->integer != 0);
        return STATUS_OK;
    case NODE_NONE:
        *out = value_none();
        return STATUS_OK;
    case NODE_NAME:
        return eval_name(run, node, out);
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_items(run, node, out);
    case NODE_DICT:
        return eval_dict(run, node, out);
    case NODE_ATTRIBUTE:
    case NODE_INDEX:
    case NODE_FILTER:
    case NODE_NOT:
        return eval_left(run, node, out);
    case NODE_SLICE:
        return eval_slice(run, node, out);
    case NODE_CALL:
        return eval_call(run, node, out);
    case NODE_TEST:
        return eval_test(run, node, out);
    case NODE_NEGATE:
    case NODE_PLUS:
        return eval_sign(run, node, out);
    case NODE_BINARY:
        return eval_binary(run, node, out);
    case NODE_COMPARE:
        return eval_compare(run, node, out);
    case NODE_AND:
    case NODE_OR:
    case NODE_CONDITIONAL:
        return eval_choice(run, node, out);
    default:
        return fail(STATUS_INTERNAL, "a statement stands where an expression should");
    }
}

status_t eval_expression(jinja_run_t *run, const node_t *node, value_t *out)
{
    TRY(run_enter(run, node));
    TRY(eval_node(run, node, out));
    run->depth--;
    return STATUS_OK;
}
