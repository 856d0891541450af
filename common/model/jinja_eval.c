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

static status_t bind(jinja_run_t *run, const node_t *node, const value_t *value)
{
    const value_t *items = value;
    if (node->n_items > 1) {
        list_t *list;
        TRY(value_elements(run, value, &list));
        if (list->n != node->n_items)
            return jinja_fail(run, "%zu values for %zu names", list->n, node->n_items);
        items = list->items;
    }
    for (size_t i = 0; i < node->n_items; i++) {
        const node_t *target = node->items[i];
        text_t name = node_text(target);
        if (target->kind == NODE_ATTRIBUTE)
            TRY(set_attribute(run, target, &items[i]));
        else
            TRY(scope_set(run, &name, &items[i]));
    }
    return STATUS_OK;
}

/* Runs a body with its output going to a text. */
static status_t capture(jinja_run_t *run, const node_t *body, text_t *out)
{
    sink_t sink = {0}, *outer = run->sink;
    run->sink = &sink;
    status_t status = eval_statement(run, body);
    run->sink = outer;
    *out = sink_text(&sink);
    return status;
}

static status_t run_set(jinja_run_t *run, const node_t *node)
{
    value_t value;
    if (node->kind == NODE_SET) {
        TRY(eval_expression(run, node->a, &value));
    } else {
        text_t text;
        TRY(capture(run, node->c, &text));
        value = value_text(text);
        TRY(eval_filter_chain(run, node->a, &value));
    }
    return bind(run, node, &value);
}

static status_t run_filter_block(jinja_run_t *run, const node_t *node)
{
    text_t text;
    TRY(capture(run, node->c, &text));
    value_t value = value_text(text);
    TRY(eval_filter_chain(run, node->a, &value));
    TRY(value_string(run, &value, &text));
    return sink_append(run, run->sink, &text);
}

/* Sets what `loop` shows in iteration i of `items`. It is one object for the whole loop, as in
 * Jinja, so a long conversation costs no memory for it. */
static status_t update_loop(jinja_run_t *run, const list_t *items, size_t i, dict_t *loop)
{
    const struct {
        const char *name;
        value_t value;
    } fields[] = {
        {"index", value_integer((int64_t)i + 1)},
        {"index0", value_integer((int64_t)i)},
        {"first", value_bool(i == 0)},
        {"last", value_bool(i + 1 == items->n)},
        {"length", value_integer((int64_t)items->n)},
        {"revindex", value_integer((int64_t)(items->n - i))},
        {"revindex0", value_integer((int64_t)(items->n - i - 1))},
        {"previtem", i > 0 ? items->items[i - 1] : value_undefined(text_of("loop.previtem", 0))},
        {"nextitem", i + 1 < items->n ? items->items[i + 1]
                                      : value_undefined(text_of("loop.nextitem", 0))},
    };
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
        text_t name = text_of(fields[f].name, MARK_TEMPLATE);
        TRY(dict_set(run, loop, &name, &fields[f].value));
    }
    return STATUS_OK;
}

/* The items that pass the for's own `if`; `loop` counts only these. */
static status_t filter_items(jinja_run_t *run, const node_t *node, list_t **items)
{
    value_t kept;
    TRY(list_new(run, VALUE_LIST, 0, &kept));
    for (size_t i = 0; i < (*items)->n; i++) {
        value_t condition;
        scope_t *outer = run->scope;
        TRY(scope_push(run));
        TRY(bind(run, node, &(*items)->items[i]));
        TRY(eval_expression(run, node->b, &condition));
        run->scope = outer;
        if (value_truth(&condition))
            TRY(list_append(run, kept.list, &(*items)->items[i]));
    }
    *items = kept.list;
    return STATUS_OK;
}

static status_t run_for(jinja_run_t *run, const node_t *node)
{
    value_t iterated;
    list_t *items;
    TRY(eval_expression(run, node->a, &iterated));
    TRY(value_elements(run, &iterated, &items));
    if (node->b != NULL)
        TRY(filter_items(run, node, &items));
    if (items->n == 0)
        return node->d == NULL ? STATUS_OK : eval_statement(run, node->d);
    scope_t *outer = run->scope;
    value_t loop;
    text_t loop_name = text_of("loop", MARK_TEMPLATE);
    TRY(dict_new(run, VALUE_DICT, &loop));
    TRY(scope_push(run));
    for (size_t i = 0; i < items->n && run->flow != FLOW_BREAK; i++) {
        run->flow = FLOW_ON;
        run->scope->n = 0; /* what an iteration sets ends with it */
        TRY(update_loop(run, items, i, loop.dict));
        TRY(scope_set(run, &loop_name, &loop));
        TRY(bind(run, node, &items->items[i]));
        TRY(eval_statement(run, node->c));
    }
    run->scope = outer;
    run->flow = FLOW_ON;
    return STATUS_OK;
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

static status_t bind_parameters(jinja_run_t *run, const node_t *node, const arguments_t *arguments)
{
    size_t n_positional = arguments->n - arguments->n_named, n_bound = 0;
    if (n_positional > node->n_items)
        return jinja_fail(run, "the macro \"%.*s\" takes %zu arguments, not %zu",
                          (int)node->text_size, node->text, node->n_items, n_positional);
    for (size_t i = 0; i < node->n_items; i++) {
        const node_t *parameter = node->items[i];
        text_t name = node_text(parameter);
        value_t value = value_undefined(name);
        if (parameter->a != NULL)
            TRY(eval_expression(run, parameter->a, &value));
        if (i < n_positional)
            value = arguments->items[i];
        for (size_t k = 0; k < arguments->n_named; k++)
            if (text_equal(&arguments->names[k], &name)) {
                value = arguments->items[n_positional + k];
                n_bound++;
            }
        TRY(scope_set(run, &name, &value));
    }
    if (n_bound < arguments->n_named)
        return jinja_fail(run, "the macro \"%.*s\" has no such argument or got it twice",
                          (int)node->text_size, node->text);
    return STATUS_OK;
}

status_t eval_macro(jinja_run_t *run, const macro_t *macro, const arguments_t *arguments,
                    value_t *out)
{
    scope_t *outer = run->scope;
    flow_t flow = run->flow;
    run->scope = macro->scope;
    run->flow = FLOW_ON;
    TRY(scope_push(run));
    TRY(bind_parameters(run, macro->node, arguments));
    text_t text;
    TRY(capture(run, macro->node->c, &text));
    run->scope = outer;
    run->flow = flow;
    *out = value_text(text);
    return STATUS_OK;
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
    case NODE_MACRO:
        return run_macro(run, node);
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
