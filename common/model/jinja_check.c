/* What Jinja refuses when it compiles a template, before anything is rendered. A filter or test
 * that does not exist is an error at once, unless an `if` around it can keep it from running:
 * templates ask `'x' is filter` there. A loop, macro or scope inside the `if` ends that grace,
 * as in Jinja. */
#include <string.h>

#include "common/model/jinja_eval.h"

static status_t check_node(const node_t *node, bool graced);

static status_t check_children(const node_t *node, bool graced)
{
    const node_t *const children[] = {node->a, node->b, node->c, node->d};
    for (size_t i = 0; i < sizeof children / sizeof *children; i++)
        if (children[i] != NULL)
            TRY(check_node(children[i], graced));
    for (size_t i = 0; i < node->n_items; i++)
        TRY(check_node(node->items[i], graced));
    return STATUS_OK;
}

static status_t check_name(const node_t *node)
{
    text_t name = {node->text, node->text_size, NULL, MARK_TEMPLATE, false};
    bool known = node->kind == NODE_FILTER ? filter_find(&name) != NULL : test_exists(&name);
    if (known)
        return STATUS_OK;
    return fail(STATUS_INVALID, "line %u: no %s is named \"%.*s\"", node->line,
                node->kind == NODE_FILTER ? "filter" : "test",
                (int)(name.n < 40 ? name.n : 40), name.data);
}

static status_t check_target(const node_t *target, const char *reserved)
{
    for (size_t i = 0; i < target->n_items; i++)
        TRY(check_target(target->items[i], reserved));
    if (target->kind == NODE_NAME && target->text_size == strlen(reserved) &&
        memcmp(target->text, reserved, target->text_size) == 0)
        return fail(STATUS_INVALID, "line %u: a for cannot bind \"%s\"", target->line, reserved);
    return STATUS_OK;
}

/* Parts that run in the frame around, then the body in a frame of its own. */
static status_t check_framed(const node_t *node, bool graced)
{
    if (node->kind == NODE_FOR)
        TRY(check_target(node->items[0], "loop"));
    bool filters = node->kind == NODE_SET_BLOCK || node->kind == NODE_FILTER_BLOCK;
    if (node->a != NULL)
        TRY(check_node(node->a, graced && !filters));
    for (size_t i = 0; i < node->n_items; i++)
        TRY(check_node(node->items[i], graced && node->kind == NODE_WITH));
    const node_t *const inner[] = {node->b, node->c, node->d};
    for (size_t i = 0; i < sizeof inner / sizeof *inner; i++)
        if (inner[i] != NULL)
            TRY(check_node(inner[i], false));
    return STATUS_OK;
}

static status_t check_node(const node_t *node, bool graced)
{
    switch (node->kind) {
    case NODE_IF:
    case NODE_CONDITIONAL:
        return check_children(node, true);
    case NODE_FILTER:
    case NODE_TEST:
        if (!graced)
            TRY(check_name(node));
        return check_children(node, graced);
    case NODE_FOR:
    case NODE_SET_BLOCK:
    case NODE_FILTER_BLOCK:
    case NODE_WITH:
    case NODE_NAMED_BLOCK:
    case NODE_MACRO:
    case NODE_CALL_BLOCK:
        return check_framed(node, graced);
    default:
        return check_children(node, graced);
    }
}

status_t jinja_check(const node_t *root)
{
    return check_node(root, false);
}
