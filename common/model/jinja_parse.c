/* Statements of chat templates, and what all of the parser needs. */
#include "common/model/jinja_parse.h"

#include <stdlib.h>
#include <string.h>

static bool token_is(const jinja_token_t *token, jinja_token_kind_t kind, const char *text)
{
    return token->kind == kind && token->size == strlen(text) &&
           memcmp(token->text, text, token->size) == 0;
}

bool parser_is_operator(const parser_t *parser, const char *text)
{
    return token_is(parser_token(parser), TOKEN_OPERATOR, text);
}

bool parser_is_name(const parser_t *parser, const char *text)
{
    return token_is(parser_token(parser), TOKEN_NAME, text);
}

bool parser_take_operator(parser_t *parser, const char *text)
{
    bool is = parser_is_operator(parser, text);
    parser->at += is;
    return is;
}

bool parser_take_name(parser_t *parser, const char *text)
{
    bool is = parser_is_name(parser, text);
    parser->at += is;
    return is;
}

status_t parser_unexpected(const parser_t *parser, const char *wanted)
{
    const jinja_token_t *token = parser_token(parser);
    static const char *const names[] = {
        [TOKEN_DATA] = "text", [TOKEN_OPEN_OUTPUT] = "{{", [TOKEN_CLOSE_OUTPUT] = "}}",
        [TOKEN_OPEN_BLOCK] = "{%", [TOKEN_CLOSE_BLOCK] = "%}", [TOKEN_TEXT] = "a text literal",
        [TOKEN_INTEGER] = "a number", [TOKEN_REAL] = "a number", [TOKEN_END] = "the end"};
    if (names[token->kind] != NULL)
        return fail(STATUS_INVALID, "line %u: expected %s, found %s", token->line, wanted,
                    names[token->kind]);
    return fail(STATUS_INVALID, "line %u: expected %s, found \"%.*s\"", token->line, wanted,
                (int)(token->size < 40 ? token->size : 40), token->text);
}

status_t parser_need_operator(parser_t *parser, const char *text)
{
    return parser_take_operator(parser, text) ? STATUS_OK : parser_unexpected(parser, text);
}

status_t parser_need_name(parser_t *parser, const jinja_token_t **out)
{
    *out = parser_token(parser);
    if ((*out)->kind != TOKEN_NAME)
        return parser_unexpected(parser, "a name");
    parser->at++;
    return STATUS_OK;
}

static status_t need_close(parser_t *parser)
{
    if (parser_token(parser)->kind != TOKEN_CLOSE_BLOCK)
        return parser_unexpected(parser, "%}");
    parser->at++;
    return STATUS_OK;
}

status_t parser_enter(parser_t *parser)
{
    if (parser->depth >= JINJA_AST_DEPTH_MAX)
        return fail(STATUS_INVALID, "line %u: nested deeper than %d levels",
                    parser_token(parser)->line, JINJA_AST_DEPTH_MAX);
    parser->depth++;
    return STATUS_OK;
}

void parser_leave(parser_t *parser)
{
    parser->depth--;
}

static uint32_t deeper(uint32_t depth, const node_t *child)
{
    return child != NULL && child->depth > depth ? child->depth : depth;
}

status_t parser_node(parser_t *parser, node_t node, const node_t **out)
{
    uint32_t depth = deeper(deeper(deeper(deeper(0, node.a), node.b), node.c), node.d);
    for (size_t i = 0; i < node.n_items; i++)
        depth = deeper(depth, node.items[i]);
    if (depth >= JINJA_AST_DEPTH_MAX)
        return fail(STATUS_INVALID, "line %u: nested deeper than %d levels", node.line,
                    JINJA_AST_DEPTH_MAX);
    if (++parser->n_nodes > JINJA_NODES_MAX)
        return fail(STATUS_INVALID, "line %u: more than %d parts", node.line, JINJA_NODES_MAX);
    node.depth = depth + 1;
    node_t *kept = ARENA_NEW_ARRAY(parser->arena, node_t, 1);
    *kept = node;
    *out = kept;
    return STATUS_OK;
}

void nodes_add(nodes_t *nodes, const node_t *node)
{
    MEM_GROW(nodes->items, nodes->capacity, nodes->n + 1);
    nodes->items[nodes->n++] = node;
}

void nodes_keep(nodes_t *take_nodes, parser_t *parser, node_t *node)
{
    node->n_items = take_nodes->n;
    if (take_nodes->n > 0) {
        node->items = ARENA_NEW_ARRAY(parser->arena, const node_t *, take_nodes->n);
        memcpy(node->items, take_nodes->items, take_nodes->n * sizeof *node->items);
    }
    nodes_drop(take_nodes);
}

void nodes_drop(nodes_t *nodes)
{
    free(nodes->items);
    *nodes = (nodes_t){0};
}

/* The end of a tag that opens a body, where Jinja lets a colon stand as Python wants one. */
static status_t need_head_close(parser_t *parser)
{
    (void)parser_take_operator(parser, ":");
    return need_close(parser);
}

status_t parse_closed_body(parser_t *parser, const char *end, const node_t **out)
{
    const char *const ends[] = {end, NULL};
    TRY(need_head_close(parser));
    TRY(parse_body(parser, ends, out));
    parser->at++;
    return need_close(parser);
}

static status_t collect_branches(parser_t *parser, nodes_t *nodes)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    do {
        const node_t *condition, *body;
        TRY(parse_tuple(parser, false, &condition));
        TRY(need_head_close(parser));
        TRY(parse_body(parser, ends, &body));
        nodes_add(nodes, condition);
        nodes_add(nodes, body);
    } while (parser_take_name(parser, "elif"));
    return STATUS_OK;
}

static status_t parse_if(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_IF;
    const node_t *branches;
    TRY(collect_into(parser, collect_branches, node, &branches));
    node = *branches;
    if (parser_take_name(parser, "else"))
        TRY(parse_closed_body(parser, "endif", &node.c));
    else {
        parser->at++;
        TRY(need_close(parser));
    }
    return parser_node(parser, node, out);
}

static status_t collect_targets(parser_t *parser, nodes_t *nodes);

/* A name, ns.x, or targets in brackets. */
static status_t parse_one_target(parser_t *parser, bool with_attribute, const node_t **out)
{
    if (parser_take_operator(parser, "(")) {
        TRY(parser_enter(parser));
        status_t status = parse_target(parser, with_attribute, out);
        parser_leave(parser);
        TRY(status);
        return parser_need_operator(parser, ")");
    }
    static const char *const constants[] = {"true", "True", "false", "False", "none", "None"};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (parser_is_name(parser, constants[i]))
            return parser_unexpected(parser, "a name that can be set");
    const jinja_token_t *name;
    TRY(parser_need_name(parser, &name));
    TRY(parser_node(parser, (node_t){.kind = NODE_NAME, .line = name->line, .text = name->text,
                                     .text_size = name->size}, out));
    if (!with_attribute || !parser_take_operator(parser, "."))
        return STATUS_OK;
    TRY(parser_need_name(parser, &name));
    return parser_node(parser, (node_t){.kind = NODE_ATTRIBUTE, .line = name->line, .a = *out,
                                        .text = name->text, .text_size = name->size}, out);
}

/* What stands behind the first of several targets; a comma may end them. */
static status_t collect_targets(parser_t *parser, nodes_t *nodes)
{
    bool with_attribute = nodes->items[0]->kind == NODE_ATTRIBUTE;
    while (parser_take_operator(parser, ",")) {
        if (parser_token(parser)->kind == TOKEN_CLOSE_BLOCK || parser_is_operator(parser, ")"))
            break;
        const node_t *target;
        TRY(parse_one_target(parser, with_attribute, &target));
        nodes_add(nodes, target);
    }
    return STATUS_OK;
}

status_t parse_target(parser_t *parser, bool with_attribute, const node_t **out)
{
    node_t node = {.kind = NODE_TUPLE, .line = parser_token(parser)->line};
    TRY(parse_one_target(parser, with_attribute, out));
    if (!parser_is_operator(parser, ","))
        return STATUS_OK;
    nodes_t nodes = {0};
    nodes_add(&nodes, *out);
    status_t status = collect_targets(parser, &nodes);
    if (status != STATUS_OK) {
        nodes_drop(&nodes);
        return status;
    }
    nodes_keep(&nodes, parser, &node);
    return parser_node(parser, node, out);
}

static status_t parse_for(parser_t *parser, node_t node, const node_t **out)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    node.kind = NODE_FOR;
    nodes_t nodes = {0};
    const node_t *target;
    TRY(parse_target(parser, false, &target));
    nodes_add(&nodes, target);
    nodes_keep(&nodes, parser, &node);
    if (!parser_take_name(parser, "in"))
        return parser_unexpected(parser, "in");
    TRY(parse_tuple(parser, false, &node.a));
    if (parser_take_name(parser, "if"))
        TRY(parse_expression(parser, &node.b));
    node.integer = parser_take_name(parser, "recursive");
    TRY(need_head_close(parser));
    parser->loops++;
    status_t status = parse_body(parser, ends, &node.c);
    parser->loops--;
    TRY(status);
    if (parser_take_name(parser, "else"))
        TRY(parse_closed_body(parser, "endfor", &node.d));
    else {
        parser->at++;
        TRY(need_close(parser));
    }
    return parser_node(parser, node, out);
}

static status_t parse_set(parser_t *parser, node_t node, const node_t **out)
{
    node.kind = NODE_SET;
    nodes_t nodes = {0};
    const node_t *target;
    TRY(parse_target(parser, true, &target));
    nodes_add(&nodes, target);
    nodes_keep(&nodes, parser, &node);
    if (parser_take_operator(parser, "=")) {
        TRY(parse_tuple(parser, true, &node.a));
        TRY(need_close(parser));
        return parser_node(parser, node, out);
    }
    node.kind = NODE_SET_BLOCK;
    if (parser_take_operator(parser, "|"))
        TRY(parse_filter_chain(parser, &node.a));
    TRY(parse_closed_body(parser, "endset", &node.c));
    return parser_node(parser, node, out);
}

static statement_fn find_statement(const parser_t *parser)
{
    if (parser_is_name(parser, "if"))
        return parse_if;
    if (parser_is_name(parser, "for"))
        return parse_for;
    return parser_is_name(parser, "set") ? parse_set : parse_block_statement(parser_token(parser));
}

static status_t parse_statement(parser_t *parser, const node_t **out)
{
    node_t node = {.line = parser_token(parser)->line};
    statement_fn parse = find_statement(parser);
    if (parse == NULL)
        return parser_unexpected(parser, "if, for, set, macro, call, filter, with, generation, "
                                         "break or continue");
    parser->at++;
    TRY(parser_enter(parser));
    status_t status = parse(parser, node, out);
    parser_leave(parser);
    return status;
}

static bool is_end(const parser_t *parser, const char *const *ends)
{
    if (parser_token(parser)->kind != TOKEN_OPEN_BLOCK)
        return false;
    for (; *ends != NULL; ends++)
        if (token_is(parser_token(parser) + 1, TOKEN_NAME, *ends))
            return true;
    return false;
}

static status_t parse_piece(parser_t *parser, const node_t **out)
{
    const jinja_token_t *token = parser_token(parser);
    node_t node = {.kind = NODE_OUTPUT, .line = token->line};
    parser->at++;
    if (token->kind == TOKEN_OPEN_BLOCK)
        return parse_statement(parser, out);
    if (token->kind == TOKEN_DATA) {
        node_t literal = {.kind = NODE_TEXT_LITERAL, .line = token->line, .text = token->text,
                          .text_size = token->size};
        TRY(parser_node(parser, literal, &node.a));
        return parser_node(parser, node, out);
    }
    TRY(parse_tuple(parser, true, &node.a));
    if (parser_token(parser)->kind != TOKEN_CLOSE_OUTPUT)
        return parser_unexpected(parser, "}}");
    parser->at++;
    return parser_node(parser, node, out);
}

status_t parse_body(parser_t *parser, const char *const *ends, const node_t **out)
{
    nodes_t nodes = {0};
    node_t body = {.kind = NODE_BLOCK, .line = parser_token(parser)->line};
    status_t status = STATUS_OK;
    while (status == STATUS_OK && !is_end(parser, ends)) {
        if (parser_token(parser)->kind == TOKEN_END) {
            if (*ends != NULL)
                status = fail(STATUS_INVALID, "line %u: the block that begins here has no %s",
                              body.line, ends[0]);
            break;
        }
        const node_t *node = NULL;
        status = parse_piece(parser, &node);
        if (status == STATUS_OK)
            nodes_add(&nodes, node);
    }
    if (status != STATUS_OK) {
        nodes_drop(&nodes);
        return status;
    }
    parser->at += *ends != NULL;
    nodes_keep(&nodes, parser, &body);
    return parser_node(parser, body, out);
}

status_t jinja_parse(arena_t *arena, const char *source, size_t n, const node_t **out)
{
    static const char *const no_ends[] = {NULL};
    jinja_tokens_t tokens = {0};
    status_t status = jinja_lex(arena, source, n, &tokens);
    if (status == STATUS_OK) {
        parser_t parser = {.arena = arena, .tokens = tokens.tokens};
        status = parse_body(&parser, no_ends, out);
    }
    jinja_tokens_release(&tokens);
    return status == STATUS_OK ? jinja_check(*out) : status;
}
