/* The tight half of a chat template's expressions: literals, brackets, postfix ( . [] () ),
 * filters, tests and signs. jinja_parse_op.c has the operators above them. */
#include <string.h>

#include "common/model/jinja_parse.h"

static status_t make(parser_t *parser, node_kind_t kind, const node_t *a, const node_t *b,
                     const node_t **out)
{
    return parser_node(parser, (node_t){.kind = kind, .line = parser_token(parser)->line, .a = a,
                                        .b = b}, out);
}

/* Items up to the closing operator; a comma may stand before it. */
static status_t collect(parser_t *parser, const char *close, nodes_t *nodes)
{
    while (!parser_is_operator(parser, close)) {
        if (nodes->n > 0)
            TRY(parser_need_operator(parser, ","));
        if (parser_is_operator(parser, close))
            break;
        const node_t *item;
        TRY(parse_expression(parser, &item));
        nodes_add(nodes, item);
    }
    return parser_need_operator(parser, close);
}

static status_t collect_pairs(parser_t *parser, nodes_t *nodes)
{
    while (!parser_is_operator(parser, "}")) {
        if (nodes->n > 0)
            TRY(parser_need_operator(parser, ","));
        if (parser_is_operator(parser, "}"))
            break;
        const node_t *key, *value;
        TRY(parse_expression(parser, &key));
        TRY(parser_need_operator(parser, ":"));
        TRY(parse_expression(parser, &value));
        nodes_add(nodes, key);
        nodes_add(nodes, value);
    }
    return parser_need_operator(parser, "}");
}

/* *list or **mapping in a call. */
static status_t parse_star(parser_t *parser, int64_t stars, nodes_t *nodes)
{
    node_t node = {.kind = NODE_STAR, .line = parser_token(parser)->line, .integer = stars};
    const node_t *star;
    TRY(parse_expression(parser, &node.a));
    TRY(parser_node(parser, node, &star));
    nodes_add(nodes, star);
    return STATUS_OK;
}

/* Positional arguments, then name=value ones; *list may stand between or behind these, **mapping at
 * the end. The opening bracket is already taken. */
static status_t collect_arguments(parser_t *parser, nodes_t *nodes)
{
    bool keywords = false, list = false, mapping = false;
    while (!parser_is_operator(parser, ")")) {
        if (nodes->n > 0)
            TRY(parser_need_operator(parser, ","));
        if (parser_is_operator(parser, ")"))
            break;
        if (mapping)
            return parser_unexpected(parser, "nothing behind **");
        bool star = !list && parser_take_operator(parser, "*");
        mapping = !star && parser_take_operator(parser, "**");
        list = list || star;
        if (star || mapping) {
            TRY(parse_star(parser, mapping ? 2 : 1, nodes));
            continue;
        }
        const jinja_token_t *name = parser_token(parser);
        bool keyword = name->kind == TOKEN_NAME && name[1].kind == TOKEN_OPERATOR &&
                       name[1].size == 1 && name[1].text[0] == '=';
        if (keyword)
            parser->at += 2;
        else if (keywords || list)
            return parser_unexpected(parser, "a name=value argument");
        const node_t *value;
        TRY(parse_expression(parser, &value));
        if (keyword)
            TRY(parser_node(parser, (node_t){.kind = NODE_KEYWORD, .line = name->line,
                                             .text = name->text, .text_size = name->size,
                                             .a = value}, &value));
        keywords = keyword;
        nodes_add(nodes, value);
    }
    return parser_need_operator(parser, ")");
}

status_t collect_into(parser_t *parser, collect_fn fn, node_t node, const node_t **out)
{
    nodes_t nodes = {0};
    status_t status = parser_enter(parser);
    if (status == STATUS_OK) {
        status = fn(parser, &nodes);
        parser_leave(parser);
    }
    if (status != STATUS_OK) {
        nodes_drop(&nodes);
        return status;
    }
    nodes_keep(&nodes, parser, &node);
    return parser_node(parser, node, out);
}

static status_t collect_list(parser_t *parser, nodes_t *nodes)
{
    return collect(parser, "]", nodes);
}

static status_t parse_bracketed(parser_t *parser, const node_t **out)
{
    if (parser_take_operator(parser, ")"))
        return make(parser, NODE_TUPLE, NULL, NULL, out);
    TRY(parser_enter(parser));
    status_t status = parse_tuple(parser, true, out);
    parser_leave(parser);
    TRY(status);
    return parser_need_operator(parser, ")");
}

static status_t parse_text(parser_t *parser, const node_t **out)
{
    const jinja_token_t *token = parser_token(parser);
    node_t node = {.kind = NODE_TEXT_LITERAL, .line = token->line, .text = token->text,
                   .text_size = token->size};
    parser->at++;
    size_t n_more = 0; /* literals side by side are one */
    for (; parser_token(parser)->kind == TOKEN_TEXT; parser->at++, n_more++)
        node.text_size += parser_token(parser)->size;
    if (n_more > 0) {
        char *joined = arena_new(parser->arena, node.text_size + 1, 1);
        size_t size = 0;
        for (size_t i = 0; i <= n_more; i++) {
            if (token[i].size > 0)
                memcpy(joined + size, token[i].text, token[i].size);
            size += token[i].size;
        }
        node.text = joined;
    }
    return parser_node(parser, node, out);
}

static status_t parse_name(parser_t *parser, const node_t **out)
{
    static const struct {
        const char *name;
        node_kind_t kind;
        int64_t integer;
    } constants[] = {{"true", NODE_BOOL, 1},  {"True", NODE_BOOL, 1}, {"false", NODE_BOOL, 0},
                     {"False", NODE_BOOL, 0}, {"none", NODE_NONE, 0}, {"None", NODE_NONE, 0}};
    const jinja_token_t *token = parser_token(parser);
    node_t node = {.kind = NODE_NAME, .line = token->line, .text = token->text,
                   .text_size = token->size};
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (parser_is_name(parser, constants[i].name)) {
            node.kind = constants[i].kind;
            node.integer = constants[i].integer;
        }
    parser->specials |= (parser_is_name(parser, "caller") ? SPECIAL_CALLER : 0u) |
                        (parser_is_name(parser, "kwargs") ? SPECIAL_KWARGS : 0u) |
                        (parser_is_name(parser, "varargs") ? SPECIAL_VARARGS : 0u);
    parser->at++;
    return parser_node(parser, node, out);
}

static status_t parse_primary(parser_t *parser, const node_t **out)
{
    const jinja_token_t *token = parser_token(parser);
    node_t node = {.line = token->line, .integer = token->integer, .real = token->real};
    switch (token->kind) {
    case TOKEN_NAME:
        return parse_name(parser, out);
    case TOKEN_TEXT:
        return parse_text(parser, out);
    case TOKEN_INTEGER:
    case TOKEN_REAL:
        node.kind = token->kind == TOKEN_REAL ? NODE_REAL : NODE_INTEGER;
        parser->at++;
        return parser_node(parser, node, out);
    default:
        break;
    }
    if (parser_take_operator(parser, "("))
        return parse_bracketed(parser, out);
    node.kind = NODE_LIST;
    if (parser_take_operator(parser, "["))
        return collect_into(parser, collect_list, node, out);
    node.kind = NODE_DICT;
    if (parser_take_operator(parser, "{"))
        return collect_into(parser, collect_pairs, node, out);
    return parser_unexpected(parser, "an expression");
}

/* After "[": an index or a slice. */
static status_t parse_subscript(parser_t *parser, const node_t *left, const node_t **out)
{
    const node_t *parts[3] = {NULL, NULL, NULL};
    size_t n = 0;
    uint32_t line = parser_token(parser)->line;
    while (!parser_is_operator(parser, "]")) {
        if (parser_take_operator(parser, ":")) {
            if (++n > 2)
                return parser_unexpected(parser, "at most start:stop:step");
            continue;
        }
        if (parts[n] != NULL)
            return parser_unexpected(parser, "]");
        TRY(parse_expression(parser, &parts[n]));
    }
    if (n == 0 && parts[0] == NULL)
        return parser_unexpected(parser, "an index");
    parser->at++;
    if (n == 0)
        return parser_node(parser, (node_t){.kind = NODE_INDEX, .line = line, .a = left,
                                            .b = parts[0]}, out);
    return parser_node(parser, (node_t){.kind = NODE_SLICE, .line = line, .a = left, .b = parts[0],
                                        .c = parts[1], .d = parts[2]}, out);
}

static status_t parse_call(parser_t *parser, const node_t *callee, const node_t **out)
{
    node_t node = {.kind = NODE_CALL, .line = parser_token(parser)->line, .a = callee};
    return collect_into(parser, collect_arguments, node, out);
}

static status_t parse_postfix(parser_t *parser, const node_t **left)
{
    for (;;) {
        if (parser_take_operator(parser, ".")) {
            node_t node = {.kind = NODE_ATTRIBUTE, .line = parser_token(parser)->line, .a = *left};
            if (parser_token(parser)->kind == TOKEN_INTEGER) {
                node.kind = NODE_INDEX; /* items.0 is items[0] */
                TRY(parse_primary(parser, &node.b));
            } else {
                const jinja_token_t *name;
                TRY(parser_need_name(parser, &name));
                node.text = name->text;
                node.text_size = name->size;
            }
            TRY(parser_node(parser, node, left));
        } else if (parser_take_operator(parser, "[")) {
            TRY(parser_enter(parser));
            status_t status = parse_subscript(parser, *left, left);
            parser_leave(parser);
            TRY(status);
        } else if (parser_take_operator(parser, "(")) {
            TRY(parse_call(parser, *left, left));
        } else {
            return STATUS_OK;
        }
    }
}

static status_t parse_filter(parser_t *parser, const node_t *left, const node_t **out)
{
    const jinja_token_t *name;
    TRY(parser_need_name(parser, &name));
    node_t node = {.kind = NODE_FILTER, .line = name->line, .text = name->text,
                   .text_size = name->size, .a = left};
    if (parser_take_operator(parser, "("))
        return collect_into(parser, collect_arguments, node, out);
    return parser_node(parser, node, out);
}

status_t parse_filter_chain(parser_t *parser, const node_t **out)
{
    *out = NULL;
    do
        TRY(parse_filter(parser, *out, out));
    while (parser_take_operator(parser, "|"));
    return STATUS_OK;
}

/* Whether a test's argument follows without brackets, as in "x is divisibleby 3". Jinja takes every
 * name but these three for one. */
static bool is_bare_argument(const parser_t *parser)
{
    const jinja_token_t *token = parser_token(parser);
    if (token->kind == TOKEN_TEXT || token->kind == TOKEN_INTEGER || token->kind == TOKEN_REAL)
        return true;
    if (token->kind == TOKEN_OPERATOR)
        return parser_is_operator(parser, "[") || parser_is_operator(parser, "{");
    return token->kind == TOKEN_NAME && !parser_is_name(parser, "else") &&
           !parser_is_name(parser, "or") && !parser_is_name(parser, "and");
}

static status_t collect_bare(parser_t *parser, nodes_t *nodes)
{
    const node_t *argument;
    if (parser_is_name(parser, "is"))
        return parser_unexpected(parser, "one test at a time");
    TRY(parse_primary(parser, &argument));
    TRY(parse_postfix(parser, &argument));
    nodes_add(nodes, argument);
    return STATUS_OK;
}

static status_t parse_test(parser_t *parser, const node_t *left, const node_t **out)
{
    bool negated = parser_take_name(parser, "not");
    const jinja_token_t *name;
    TRY(parser_need_name(parser, &name));
    node_t node = {.kind = NODE_TEST, .line = name->line, .text = name->text,
                   .text_size = name->size, .integer = negated, .a = left};
    if (parser_take_operator(parser, "("))
        return collect_into(parser, collect_arguments, node, out);
    if (is_bare_argument(parser))
        return collect_into(parser, collect_bare, node, out);
    return parser_node(parser, node, out);
}

static status_t parse_filters_and_tests(parser_t *parser, const node_t **left)
{
    for (;;) {
        if (parser_take_operator(parser, "|"))
            TRY(parse_filter(parser, *left, left));
        else if (parser_take_name(parser, "is"))
            TRY(parse_test(parser, *left, left));
        else if (parser_take_operator(parser, "("))
            TRY(parse_call(parser, *left, left));
        else
            return STATUS_OK;
    }
}

static status_t parse_signed(parser_t *parser, node_kind_t kind, const node_t **out)
{
    TRY(parser_enter(parser));
    status_t status = parse_unary(parser, false, out);
    parser_leave(parser);
    TRY(status);
    return make(parser, kind, *out, NULL, out);
}

status_t parse_unary(parser_t *parser, bool with_filter, const node_t **out)
{
    if (parser_take_operator(parser, "-"))
        TRY(parse_signed(parser, NODE_NEGATE, out));
    else if (parser_take_operator(parser, "+"))
        TRY(parse_signed(parser, NODE_PLUS, out));
    else
        TRY(parse_primary(parser, out));
    TRY(parse_postfix(parser, out));
    return with_filter ? parse_filters_and_tests(parser, out) : STATUS_OK;
}

