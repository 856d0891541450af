/* Calls of macros, of the body of a call block (`caller`) and of recursive loops: how arguments
 * meet parameters, and what a macro has without declaring it (caller, varargs, kwargs). */
#include <string.h>

#include "common/model/jinja_eval.h"

static text_t node_text(const node_t *node)
{
    return (text_t){node->text, node->text_size, NULL, MARK_TEMPLATE, false};
}

/* Takes the argument of a name out of those that no parameter has taken. */
static const value_t *take_named(const arguments_t *arguments, const text_t *name, bool *taken)
{
    for (size_t i = 0; i < arguments->n_named; i++)
        if (!taken[i] && text_equal(&arguments->names[i], name)) {
            taken[i] = true;
            return &arguments->items[arguments->n - arguments->n_named + i];
        }
    return NULL;
}

/* Parameters get arguments by position, then by name, then their default, which may use the
 * parameters before it. */
static status_t bind_parameters(jinja_run_t *run, const node_t *node, const arguments_t *arguments,
                                bool *taken)
{
    size_t n_positional = arguments->n - arguments->n_named;
    const value_t **given;
    TRY(run_alloc(run, node->n_items, sizeof *given, &given));
    for (size_t i = 0; i < node->n_items; i++) {
        text_t name = node_text(node->items[i]);
        given[i] = i < n_positional ? &arguments->items[i] : take_named(arguments, &name, taken);
    }
    for (size_t i = 0; i < node->n_items; i++) {
        text_t name = node_text(node->items[i]);
        value_t value = value_undefined(name);
        if (given[i] != NULL)
            value = *given[i];
        else if (node->items[i]->a != NULL)
            TRY(eval_expression(run, node->items[i]->a, &value));
        TRY(scope_set(run, &name, &value));
    }
    return STATUS_OK;
}

static status_t bind_caller(jinja_run_t *run, const arguments_t *arguments, bool *taken)
{
    text_t name = text_of("caller", MARK_TEMPLATE);
    const value_t *caller = take_named(arguments, &name, taken);
    value_t none = value_undefined(name);
    if (caller == NULL || caller->kind == VALUE_NONE)
        caller = &none;
    return scope_set(run, &name, caller);
}

/* What no parameter took: into kwargs and varargs when the body uses them, else an error. */
static status_t bind_rest(jinja_run_t *run, const node_t *node, const arguments_t *arguments,
                          const bool *taken)
{
    size_t n_positional = arguments->n - arguments->n_named;
    value_t rest;
    TRY(dict_new(run, VALUE_DICT, &rest));
    for (size_t i = 0; i < arguments->n_named; i++)
        if (!taken[i])
            TRY(dict_set(run, rest.dict, &arguments->names[i],
                         &arguments->items[n_positional + i]));
    text_t name = text_of("kwargs", MARK_TEMPLATE);
    if ((node->integer & SPECIAL_KWARGS) != 0)
        TRY(scope_set(run, &name, &rest));
    else if (rest.dict->n > 0)
        return jinja_fail(run, "the macro \"%.*s\" takes no argument \"%.*s\", or got it twice",
                          (int)node->text_size, node->text, (int)rest.dict->keys[0].n,
                          rest.dict->keys[0].data);
    size_t n_rest = n_positional > node->n_items ? n_positional - node->n_items : 0;
    if ((node->integer & SPECIAL_VARARGS) == 0)
        return n_rest == 0 ? STATUS_OK
                           : jinja_fail(run, "the macro \"%.*s\" takes %zu arguments, not %zu",
                                        (int)node->text_size, node->text, node->n_items,
                                        n_positional);
    TRY(list_new(run, VALUE_TUPLE, n_rest, &rest));
    for (size_t i = 0; i < n_rest; i++)
        TRY(list_append(run, rest.list, &arguments->items[node->n_items + i]));
    name = text_of("varargs", MARK_TEMPLATE);
    return scope_set(run, &name, &rest);
}

static bool declares_caller(const node_t *node)
{
    for (size_t i = 0; i < node->n_items; i++)
        if (node->items[i]->text_size == 6 && memcmp(node->items[i]->text, "caller", 6) == 0)
            return true;
    return false;
}

status_t eval_macro(jinja_run_t *run, const macro_t *macro, const arguments_t *arguments,
                    value_t *out)
{
    scope_t *outer = run->scope;
    flow_t flow = run->flow;
    const node_t *node = macro->node;
    bool *taken;
    text_t text;
    TRY(run_alloc(run, arguments->n_named, sizeof *taken, &taken));
    run->scope = macro->scope;
    run->flow = FLOW_ON;
    TRY(scope_push(run));
    TRY(bind_parameters(run, node, arguments, taken));
    if ((node->integer & SPECIAL_CALLER) != 0 && !declares_caller(node))
        TRY(bind_caller(run, arguments, taken));
    TRY(bind_rest(run, node, arguments, taken));
    TRY(eval_capture(run, node->c, &text));
    run->scope = outer;
    run->flow = flow;
    *out = value_text(text);
    return STATUS_OK;
}

status_t eval_loop_call(jinja_run_t *run, const loop_t *loop, const arguments_t *arguments,
                        value_t *out)
{
    scope_t *outer = run->scope;
    sink_t sink = {0}, *outer_sink = run->sink;
    flow_t flow = run->flow;
    list_t *items;
    if (loop->node->integer == 0)
        return jinja_fail(run, "only a loop marked recursive can be called");
    TRY(arguments_fit(run, arguments, "function", NULL, "iterable"));
    TRY(value_elements(run, &arguments->items[0], &items));
    run->scope = loop->scope;
    run->sink = &sink;
    run->flow = FLOW_ON;
    status_t status = eval_loop(run, loop->node, items, loop->depth0 + 1);
    run->scope = outer;
    run->sink = outer_sink;
    run->flow = flow;
    *out = value_text(sink_text(&sink));
    return status;
}
