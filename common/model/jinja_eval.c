/* Runs the statements of a template. See jinja_eval.h. */
#include "common/model/jinja_eval.h"

#include <string.h>

status_t run_enter(jinja_run_t *run, const node_t *node)
{
    run->line = node->line;
    if (run->depth >= JINJA_RUN_DEPTH_MAX)
        return jinja_fail(run, "the template calls itself or nests deeper than %d levels",
                          JINJA_RUN_DEPTH_MAX);
    TRY(run_charge(run, 1));
    run->depth++;
    return STATUS_OK;
}

status_t scope_push(jinja_run_t *run)
{
    scope_t *scope;
    TRY(run_alloc(run, 1, sizeof *scope, &scope));
    scope->parent = run->scope;
    run->scope = scope;
    return STATUS_OK;
}

static binding_t *find_here(const scope_t *scope, const text_t *name)
{
    for (size_t i = 0; i < scope->n; i++)
        if (text_equal(&scope->bindings[i].name, name))
            return &scope->bindings[i];
    return NULL;
}

status_t scope_set(jinja_run_t *run, const text_t *name, const value_t *value)
{
    scope_t *scope = run->scope;
    TRY(run_charge(run, scope->n / 8));
    binding_t *binding = find_here(scope, name);
    if (binding == NULL) {
        if (scope->n == scope->capacity) {
            size_t capacity = scope->capacity == 0 ? 4 : 2 * scope->capacity;
            binding_t *bindings;
            TRY(run_alloc(run, capacity, sizeof *bindings, &bindings));
            if (scope->n > 0)
                memcpy(bindings, scope->bindings, scope->n * sizeof *bindings);
            scope->bindings = bindings;
            scope->capacity = capacity;
        }
        binding = &scope->bindings[scope->n++];
        binding->name = *name;
    }
    binding->value = *value;
    return STATUS_OK;
}

status_t scope_find(jinja_run_t *run, const text_t *name, const value_t **out)
{
    *out = NULL;
    for (const scope_t *scope = run->scope; scope != NULL && *out == NULL; scope = scope->parent) {
        TRY(run_charge(run, scope->n / 8));
        const binding_t *binding = find_here(scope, name);
        if (binding != NULL)
            *out = &binding->value;
    }
    return STATUS_OK;
}

static text_t node_text(const node_t *node)
{
    return (text_t){node->text, node->text_size, NULL, MARK_TEMPLATE};
}

static status_t run_output(jinja_run_t *run, const node_t *node)
{
    value_t value;
    text_t text;
    TRY(eval_expression(run, node->a, &value));
    TRY(value_string(run, &value, &text));
    return sink_append(run, run->sink, &text);
}

static status_t run_block(jinja_run_t *run, const node_t *node)
{
    for (size_t i = 0; i < node->n_items && run->flow == FLOW_ON; i++)
        TRY(eval_statement(run, node->items[i]));
    return STATUS_OK;
}

static status_t run_if(jinja_run_t *run, const node_t *node)
{
    for (size_t i = 0; i + 1 < node->n_items; i += 2) {
        value_t condition;
        TRY(eval_expression(run, node->items[i], &condition));
        if (value_truth(&condition))
            return eval_statement(run, node->items[i + 1]);
    }
    return node->c == NULL ? STATUS_OK : eval_statement(run, node->c);
}

static status_t set_attribute(jinja_run_t *run, const node_t *target, const value_t *value)
{
    value_t object;
    TRY(eval_expression(run, target->a, &object));
    if (object.kind != VALUE_NAMESPACE)
        return jinja_fail(run, "set changes attributes of a namespace, not of %s",
                          value_kind_name(&object));
    text_t name = node_text(target);
    return dict_set(run, object.dict, &name, value);
}

status_t eval_bind(jinja_run_t *run, const node_t *target, const value_t *value)
{
    if (target->kind == NODE_ATTRIBUTE)
        return set_attribute(run, target, value);
    if (target->kind == NODE_NAME) {
        text_t name = node_text(target);
        return scope_set(run, &name, value);
    }
    list_t *list;
    TRY(value_elements(run, value, &list));
    if (list->n != target->n_items)
        return jinja_fail(run, "%zu values for %zu names", list->n, target->n_items);
    for (size_t i = 0; i < target->n_items; i++)
        TRY(eval_bind(run, target->items[i], &list->items[i]));
    return STATUS_OK;
}

status_t eval_capture(jinja_run_t *run, const node_t *body, text_t *out)
{
    sink_t sink = {0}, *outer_sink = run->sink;
    scope_t *outer = run->scope;
    TRY(scope_push(run));
    run->sink = &sink;
    status_t status = eval_statement(run, body);
    run->sink = outer_sink;
    run->scope = outer;
    *out = sink_text(&sink);
    return status;
}

/* A break or continue inside a captured body leaves the set as well. */
static status_t run_set(jinja_run_t *run, const node_t *node)
{
    value_t value;
    if (node->kind == NODE_SET) {
        TRY(eval_expression(run, node->a, &value));
    } else {
        text_t text;
        TRY(eval_capture(run, node->c, &text));
        if (run->flow != FLOW_ON)
            return STATUS_OK;
        value = value_text(text);
        TRY(eval_filter_chain(run, node->a, &value));
    }
    return eval_bind(run, node->items[0], &value);
}

static status_t run_filter_block(jinja_run_t *run, const node_t *node)
{
    text_t text;
    TRY(eval_capture(run, node->c, &text));
    if (run->flow != FLOW_ON)
        return STATUS_OK;
    value_t value = value_text(text);
    TRY(eval_filter_chain(run, node->a, &value));
    TRY(value_string(run, &value, &text));
    return sink_append(run, run->sink, &text);
}

/* The values are computed outside of the new scope. */
static status_t run_with(jinja_run_t *run, const node_t *node)
{
    value_t *values;
    scope_t *outer = run->scope;
    TRY(run_alloc(run, node->n_items / 2, sizeof *values, &values));
    for (size_t i = 0; i < node->n_items / 2; i++)
        TRY(eval_expression(run, node->items[2 * i + 1], &values[i]));
    TRY(scope_push(run));
    for (size_t i = 0; i < node->n_items / 2; i++)
        TRY(eval_bind(run, node->items[2 * i], &values[i]));
    TRY(eval_statement(run, node->c));
    run->scope = outer;
    return STATUS_OK;
}

/* A named block sees the variables of the template, not those of loops or scopes around it. */
static status_t run_named_block(jinja_run_t *run, const node_t *node)
{
    scope_t *outer = run->scope;
    while (run->scope->parent != NULL)
        run->scope = run->scope->parent;
    TRY(scope_push(run));
    TRY(eval_statement(run, node->c));
    run->scope = outer;
    return STATUS_OK;
}

/* The items that pass the for's own `if`; `loop` counts only these. */
static status_t filter_items(jinja_run_t *run, const node_t *node, const list_t **items)
{
    value_t kept;
    TRY(list_new(run, VALUE_LIST, 0, &kept));
    for (size_t i = 0; i < (*items)->n; i++) {
        value_t condition;
        scope_t *outer = run->scope;
        TRY(scope_push(run));
        TRY(eval_bind(run, node->items[0], &(*items)->items[i]));
        TRY(eval_expression(run, node->b, &condition));
        run->scope = outer;
        if (value_truth(&condition))
            TRY(list_append(run, kept.list, &(*items)->items[i]));
    }
    *items = kept.list;
    return STATUS_OK;
}

status_t eval_loop(jinja_run_t *run, const node_t *node, const list_t *items, size_t depth0)
{
    scope_t *outer = run->scope;
    loop_t *loop;
    if (node->b != NULL)
        TRY(filter_items(run, node, &items));
    TRY(run_alloc(run, 1, sizeof *loop, &loop));
    *loop = (loop_t){.items = items, .depth0 = depth0, .node = node, .scope = outer};
    value_t value = {.kind = VALUE_LOOP, .loop = loop};
    text_t name = text_of("loop", MARK_TEMPLATE);
    TRY(scope_push(run));
    if (items->n == 0) {
        status_t status = node->d == NULL ? STATUS_OK : eval_statement(run, node->d);
        run->scope = outer;
        return status;
    }
    for (size_t i = 0; i < items->n && run->flow != FLOW_BREAK; i++) {
        run->flow = FLOW_ON;
        run->scope->n = 0; /* what an iteration sets ends with it */
        loop->index0 = i;
        TRY(scope_set(run, &name, &value));
        TRY(eval_bind(run, node->items[0], &items->items[i]));
        TRY(eval_statement(run, node->c));
    }
    run->scope = outer;
    run->flow = FLOW_ON;
    return STATUS_OK;
}

static status_t run_for(jinja_run_t *run, const node_t *node)
{
    value_t iterated;
    list_t *items;
    TRY(eval_expression(run, node->a, &iterated));
    TRY(value_elements(run, &iterated, &items));
    return eval_loop(run, node, items, 0);
}

static status_t run_macro(jinja_run_t *run, const node_t *node)
{
    macro_t *macro;
    TRY(run_alloc(run, 1, sizeof *macro, &macro));
    *macro = (macro_t){node, run->scope};
    value_t value = {.kind = VALUE_MACRO, .macro = macro};
    text_t name = node_text(node);
    return scope_set(run, &name, &value);
}

static status_t run_call_block(jinja_run_t *run, const node_t *node)
{
    macro_t *body;
    value_t result;
    text_t text;
    TRY(run_alloc(run, 1, sizeof *body, &body));
    *body = (macro_t){node, run->scope};
    value_t caller = {.kind = VALUE_MACRO, .macro = body};
    TRY(eval_call(run, node->a, &caller, &result));
    TRY(value_string(run, &result, &text));
    return sink_append(run, run->sink, &text);
}

static status_t run_statement(jinja_run_t *run, const node_t *node)
{
    switch (node->kind) {
    case NODE_OUTPUT:
        return run_output(run, node);
    case NODE_BLOCK:
        return run_block(run, node);
    case NODE_IF:
        return run_if(run, node);
    case NODE_FOR:
        return run_for(run, node);
    case NODE_SET:
    case NODE_SET_BLOCK:
        return run_set(run, node);
    case NODE_FILTER_BLOCK:
        return run_filter_block(run, node);
    case NODE_WITH:
        return run_with(run, node);
    case NODE_NAMED_BLOCK:
        return run_named_block(run, node);
    case NODE_MACRO:
        return run_macro(run, node);
    case NODE_CALL_BLOCK:
        return run_call_block(run, node);
    case NODE_BREAK:
        run->flow = FLOW_BREAK;
        return STATUS_OK;
    case NODE_CONTINUE:
        run->flow = FLOW_CONTINUE;
        return STATUS_OK;
    default:
        return fail(STATUS_INTERNAL, "an expression stands where a statement should");
    }
}

status_t eval_statement(jinja_run_t *run, const node_t *node)
{
    TRY(run_enter(run, node));
    TRY(run_statement(run, node));
    run->depth--;
    return STATUS_OK;
}
