/* The statements of chat templates other than if, for and set: macros and calls of them, blocks
 * that scope or filter what stands in them, and what leaves a loop. */
#include <string.h>

#include "common/model/jinja_parse.h"

static status_t need_close(parser_t *parser)
{
    if (parser_token(parser)->kind != TOKEN_CLOSE_BLOCK)
        return parser_unexpected(parser, "%}");
    parser->at++;
    return STATUS_OK;
}

static status_t collect_parameters(parser_t *parser, nodes_t *nodes)
{
    bool defaults = false;
    TRY(parser_need_operator(parser, "("));
    while (!parser_is_operator(parser, ")")) {
        if (nodes->n > 0)
            TRY(parser_need_operator(parser, ","));
        const jinja_token_t *name;
        TRY(parser_need_name(parser, &name));
        node_t node = {.kind = NODE_KEYWORD, .line = name->line, .text = name->text,
                       .text_size = name->size};
        for (size_t i = 0; i < nodes->n; i++)
            if (nodes->items[i]->text_size == name->size &&
                memcmp(nodes->items[i]->text, name->text, name->size) == 0)
                return parser_unexpected(parser, "parameters of different names");
        if (parser_take_operator(parser, "="))
            TRY(parse_expression(parser, &node.a));
        else if (defaults)
            return parser_unexpected(parser, "a default, as the parameters before have one");
        defaults = node.a != NULL;
        const node_t *parameter;
        TRY(parser_node(parser, node, &parameter));
        nodes_add(nodes, parameter);
    }
    return parser_need_operator(parser, ")");
}

/* The body of a macro or call block. Inside, no break leaves the loop around it. The special names
 * that it uses also count for a macro around it, as in Jinja. */
static status_t parse_callable_body(parser_t *parser, const char *end, node_t *node)
{
    unsigned loops = parser->loops, specials = parser->specials;
    parser->loops = 0;
    parser->specials = 0;
    status_t status = parse_closed_body(parser, end, &node->c);
    parser->loops = loops;
    node->integer = parser->specials;
    parser->specials |= specials;
    return status;
}

static status_t parse_macro(parser_t *parser, node_t node, const node_t **out)
{
    const jinja_token_t *name;
    TRY(parser_need_name(parser, &name));
    node.kind = NODE_MACRO;
    node.text = name->text;
    node.text_size = name->size;
    const node_t *head;
    TRY(collect_into(parser, collect_parameters, node, &head));
    node = *head;
    TRY(parse_callable_body(parser, "endmacro", &node));
    return parser_node(parser, node, out);
}

static status_t parse_call_block(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_CALL_BLOCK;
    if (parser_is_operator(parser, "(")) {
        const node_t *head;
        TRY(collect_into(parser, collect_parameters, node, &head));
        node = *head;
    }
    TRY(parse_expression(parser, &node.a));
    if (node.a->kind != NODE_CALL)
        return fail(STATUS_INVALID, "line %u: a call block needs the call of a macro", node.line);
    TRY(parse_callable_body(parser, "endcall", &node));
    return parser_node(parser, node, out);
}

static status_t parse_filter_block(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_FILTER_BLOCK;
    TRY(parse_filter_chain(parser, &node.a));
    TRY(parse_closed_body(parser, "endfilter", &node.c));
    return parser_node(parser, node, out);
}

static status_t collect_bindings(parser_t *parser, nodes_t *nodes)
{
    while (parser_token(parser)->kind != TOKEN_CLOSE_BLOCK) {
        const node_t *target, *value;
        if (nodes->n > 0)
            TRY(parser_need_operator(parser, ","));
        TRY(parse_target(parser, false, &target));
        TRY(parser_need_operator(parser, "="));
        TRY(parse_expression(parser, &value));
        nodes_add(nodes, target);
        nodes_add(nodes, value);
    }
    return STATUS_OK;
}

static status_t parse_with(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_WITH;
    const node_t *head;
    TRY(collect_into(parser, collect_bindings, node, &head));
    node = *head;
    TRY(parse_closed_body(parser, "endwith", &node.c));
    return parser_node(parser, node, out);
}

/* Marks what the assistant wrote, for training; the text is the same with and without. To Jinja
 * it is the body of a call, so it scopes its variables and holds back a break. */
static status_t parse_generation(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_WITH;
    TRY(parse_callable_body(parser, "endgeneration", &node));
    return parser_node(parser, node, out);
}

/* A block of inheritance, which without inheritance prints itself where it stands. */
static status_t parse_named_block(parser_t *parser, node_t node, const node_t **out)
{
    const jinja_token_t *name;
    node.kind = NODE_NAMED_BLOCK;
    TRY(parser_need_name(parser, &name));
    unsigned loops = parser->loops;
    static const char *const ends[] = {"endblock", NULL};
    TRY(need_close(parser));
    parser->loops = 0;
    status_t status = parse_body(parser, ends, &node.c);
    parser->loops = loops;
    TRY(status);
    parser->at++;
    if (parser_token(parser)->kind == TOKEN_NAME && parser_token(parser)->size == name->size &&
        memcmp(parser_token(parser)->text, name->text, name->size) == 0)
        parser->at++;
    TRY(need_close(parser));
    return parser_node(parser, node, out);
}

static status_t collect_prints(parser_t *parser, nodes_t *nodes)
{
    while (parser_token(parser)->kind != TOKEN_CLOSE_BLOCK) {
        if (nodes->n > 0)
            TRY(parser_need_operator(parser, ","));
        node_t node = {.kind = NODE_OUTPUT, .line = parser_token(parser)->line};
        const node_t *output;
        TRY(parse_expression(parser, &node.a));
        TRY(parser_node(parser, node, &output));
        nodes_add(nodes, output);
    }
    return STATUS_OK;
}

static status_t parse_print(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_BLOCK;
    TRY(collect_into(parser, collect_prints, node, out));
    return need_close(parser);
}

static status_t parse_loop_exit(parser_t *parser, node_t node, const node_t **out)
{
    if (parser->loops == 0)
        return fail(STATUS_INVALID, "line %u: break and continue stand inside a for only",
                    node.line);
    TRY(need_close(parser));
    return parser_node(parser, node, out);
}

static status_t parse_break(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_BREAK;
    return parse_loop_exit(parser, node, out);
}

static status_t parse_continue(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_CONTINUE;
    return parse_loop_exit(parser, node, out);
}

statement_fn parse_block_statement(const jinja_token_t *word)
{
    static const struct {
        const char *name;
        statement_fn parse;
    } statements[] = {
        {"macro", parse_macro}, {"call", parse_call_block}, {"filter", parse_filter_block},
        {"with", parse_with}, {"generation", parse_generation}, {"block", parse_named_block},
        {"print", parse_print}, {"break", parse_break}, {"continue", parse_continue},
    };
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (word->kind == TOKEN_NAME && word->size == strlen(statements[i].name) &&
            memcmp(word->text, statements[i].name, word->size) == 0)
            return statements[i].parse;
    return NULL;
}
