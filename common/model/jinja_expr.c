/* Evaluates the expressions of a template. See jinja_eval.h. */
#include <string.h>

#include "common/model/chat.h"
#include "common/model/jinja_eval.h"

static text_t node_text(const node_t *node)
{
    return (text_t){node->text, node->text_size, NULL, MARK_TEMPLATE};
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

/* Arguments while they are collected: those by position, then those by name. */
typedef struct {
    list_t positional;
    dict_t named;
} collected_t;

static status_t collect_star(jinja_run_t *run, const node_t *item, collected_t *collected)
{
    value_t value;
    TRY(eval_expression(run, item->a, &value));
    if (item->integer == 1) {
        list_t *list;
        TRY(value_elements(run, &value, &list));
        for (size_t i = 0; i < list->n; i++)
            TRY(list_append(run, &collected->positional, &list->items[i]));
        return STATUS_OK;
    }
    if (value.kind != VALUE_DICT)
        return jinja_fail(run, "** needs a mapping, not %s", value_kind_name(&value));
    for (size_t i = 0; i < value.dict->n; i++)
        TRY(dict_set(run, &collected->named, &value.dict->keys[i], &value.dict->values[i]));
    return STATUS_OK;
}

static status_t collect_argument(jinja_run_t *run, const node_t *item, collected_t *collected)
{
    value_t value;
    const value_t *twice;
    text_t name = node_text(item);
    if (item->kind == NODE_STAR)
        return collect_star(run, item, collected);
    TRY(eval_expression(run, item->kind == NODE_KEYWORD ? item->a : item, &value));
    if (item->kind != NODE_KEYWORD)
        return list_append(run, &collected->positional, &value);
    TRY(dict_get(run, &collected->named, &name, &twice));
    if (twice != NULL)
        return jinja_fail(run, "the argument \"%.*s\" is given twice", (int)name.n, name.data);
    return dict_set(run, &collected->named, &name, &value);
}

status_t eval_arguments(jinja_run_t *run, const node_t *const *items, size_t n, arguments_t *out)
{
    collected_t collected = {0};
    for (size_t i = 0; i < n; i++)
        TRY(collect_argument(run, items[i], &collected));
    *out = (arguments_t){.items = collected.positional.items, .n = collected.positional.n,
                         .names = collected.named.keys, .n_named = collected.named.n};
    for (size_t i = 0; i < collected.named.n; i++)
        TRY(list_append(run, &collected.positional, &collected.named.values[i]));
    out->items = collected.positional.items;
    out->n = collected.positional.n;
    return STATUS_OK;
}

status_t call_value(jinja_run_t *run, const value_t *callee, const arguments_t *arguments,
                    value_t *out)
{
    switch (callee->kind) {
    case VALUE_MACRO:
        return eval_macro(run, callee->macro, arguments, out);
    case VALUE_FUNCTION:
        return callee->function(run, arguments, out);
    case VALUE_METHOD:
        return callee->method->fn(run, &callee->method->value, arguments, out);
    case VALUE_LOOP:
        return eval_loop_call(run, callee->loop, arguments, out);
    case VALUE_UNDEFINED:
        return jinja_fail(run, "\"%.*s\" is undefined", (int)callee->text.n, callee->text.data);
    default:
        return jinja_fail(run, "%s cannot be called", value_kind_name(callee));
    }
}

/* What is called: for x.name(…) without the detour over a bound method. *fn_out is NULL unless
 * it is a method of *object_out. */
static status_t eval_callee(jinja_run_t *run, const node_t *node, value_t *callee_out,
                            value_t *object_out, method_fn *fn_out)
{
    *fn_out = NULL;
    if (node->kind != NODE_ATTRIBUTE)
        return eval_expression(run, node, callee_out);
    text_t name = node_text(node);
    TRY(eval_expression(run, node->a, object_out));
    *fn_out = method_find(object_out, &name);
    if (*fn_out != NULL)
        return STATUS_OK;
    TRY(value_attribute(run, object_out, &name, callee_out));
    if (callee_out->kind == VALUE_UNDEFINED)
        return jinja_fail(run, "%s has no method \"%.*s\"", value_kind_name(object_out),
                          (int)name.n, name.data);
    return STATUS_OK;
}

/* Adds the body of a call block as the argument `caller`. */
static status_t add_caller(jinja_run_t *run, const value_t *caller, arguments_t *arguments)
{
    value_t *items;
    text_t *names;
    TRY(run_alloc(run, arguments->n + 1, sizeof *items, &items));
    TRY(run_alloc(run, arguments->n_named + 1, sizeof *names, &names));
    for (size_t i = 0; i < arguments->n; i++)
        items[i] = arguments->items[i];
    for (size_t i = 0; i < arguments->n_named; i++)
        names[i] = arguments->names[i];
    items[arguments->n++] = *caller;
    names[arguments->n_named++] = text_of("caller", MARK_TEMPLATE);
    arguments->items = items;
    arguments->names = names;
    return STATUS_OK;
}

status_t eval_call(jinja_run_t *run, const node_t *node, const value_t *caller, value_t *out)
{
    arguments_t arguments;
    value_t callee, object;
    method_fn fn;
    TRY(eval_callee(run, node->a, &callee, &object, &fn));
    TRY(eval_arguments(run, node->items, node->n_items, &arguments));
    if (caller != NULL)
        TRY(add_caller(run, caller, &arguments));
    run->line = node->line;
    return fn != NULL ? fn(run, &object, &arguments, out)
                      : call_value(run, &callee, &arguments, out);
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
    if (node->kind == NODE_PLUS && value.kind == VALUE_REAL) {
        *out = value;
        return STATUS_OK;
    }
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
        return eval_call(run, node, NULL, out);
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
