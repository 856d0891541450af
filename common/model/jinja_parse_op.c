/* The loose half of a chat template's expressions, with Jinja's precedence from loose to tight:
 * if-else, or, and, not, comparisons, + -, ~, * / // %, **. */
#include <string.h>

#include "common/model/jinja_parse.h"

static status_t make(parser_t *parser, node_kind_t kind, const node_t *a, const node_t *b,
                     const node_t **out)
{
    return parser_node(parser, (node_t){.kind = kind, .line = parser_token(parser)->line, .a = a,
                                        .b = b}, out);
}

static status_t make_binary(parser_t *parser, jinja_op_t op, const node_t *a, const node_t *b,
                            const node_t **out)
{
    return parser_node(parser, (node_t){.kind = NODE_BINARY, .line = parser_token(parser)->line,
                                        .integer = op, .a = a, .b = b}, out);
}

/* The levels of left-associative operators, loosest first. */
typedef struct {
    const char *text;
    jinja_op_t op;
} operator_row_t;

static const operator_row_t levels[][5] = {
    {{"+", OP_ADD}, {"-", OP_SUBTRACT}},
    {{"~", OP_CONCAT}},
    {{"*", OP_MULTIPLY}, {"/", OP_DIVIDE}, {"//", OP_FLOOR_DIVIDE}, {"%", OP_MODULO}},
    {{"**", OP_POWER}},
};

enum { N_LEVELS = sizeof levels / sizeof *levels };

static status_t parse_level(parser_t *parser, size_t level, const node_t **out)
{
    if (level == N_LEVELS)
        return parse_unary(parser, true, out);
    TRY(parse_level(parser, level + 1, out));
    for (;;) {
        const operator_row_t *row = levels[level];
        while (row->text != NULL && !parser_is_operator(parser, row->text))
            row++;
        if (row->text == NULL)
            return STATUS_OK;
        parser->at++;
        const node_t *right;
        TRY(parse_level(parser, level + 1, &right));
        TRY(make_binary(parser, row->op, *out, right, out));
    }
}

static bool take_comparison(parser_t *parser, jinja_op_t *op_out)
{
    static const operator_row_t rows[] = {{"==", OP_EQUAL}, {"!=", OP_NOT_EQUAL},
                                          {"<", OP_LESS}, {"<=", OP_LESS_EQUAL},
                                          {">", OP_GREATER}, {">=", OP_GREATER_EQUAL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (parser_take_operator(parser, rows[i].text)) {
            *op_out = rows[i].op;
            return true;
        }
    *op_out = OP_IN;
    if (parser_take_name(parser, "in"))
        return true;
    const jinja_token_t *token = parser_token(parser);
    if (!parser_is_name(parser, "not") || token[1].kind != TOKEN_NAME || token[1].size != 2 ||
        memcmp(token[1].text, "in", 2) != 0)
        return false;
    parser->at += 2;
    *op_out = OP_NOT_IN;
    return true;
}

static status_t collect_comparisons(parser_t *parser, nodes_t *nodes)
{
    jinja_op_t op;
    while (take_comparison(parser, &op)) {
        const node_t *right;
        TRY(parse_level(parser, 0, &right));
        TRY(make_binary(parser, op, NULL, right, &right));
        nodes_add(nodes, right);
    }
    return STATUS_OK;
}

static status_t parse_compare(parser_t *parser, const node_t **out)
{
    TRY(parse_level(parser, 0, out));
    size_t before = parser->at;
    jinja_op_t op;
    if (!take_comparison(parser, &op))
        return STATUS_OK;
    parser->at = before;
    node_t node = {.kind = NODE_COMPARE, .line = parser_token(parser)->line, .a = *out};
    return collect_into(parser, collect_comparisons, node, out);
}

static status_t parse_not(parser_t *parser, const node_t **out)
{
    if (!parser_take_name(parser, "not"))
        return parse_compare(parser, out);
    TRY(parser_enter(parser));
    status_t status = parse_not(parser, out);
    parser_leave(parser);
    TRY(status);
    return make(parser, NODE_NOT, *out, NULL, out);
}

static status_t parse_and(parser_t *parser, const node_t **out)
{
    TRY(parse_not(parser, out));
    while (parser_take_name(parser, "and")) {
        const node_t *right;
        TRY(parse_not(parser, &right));
        TRY(make(parser, NODE_AND, *out, right, out));
    }
    return STATUS_OK;
}

static status_t parse_or(parser_t *parser, const node_t **out)
{
    TRY(parse_and(parser, out));
    while (parser_take_name(parser, "or")) {
        const node_t *right;
        TRY(parse_and(parser, &right));
        TRY(make(parser, NODE_OR, *out, right, out));
    }
    return STATUS_OK;
}

status_t parse_no_conditional(parser_t *parser, const node_t **out)
{
    return parse_or(parser, out);
}

status_t parse_expression(parser_t *parser, const node_t **out)
{
    TRY(parser_enter(parser));
    status_t status = parse_or(parser, out);
    while (status == STATUS_OK && parser_take_name(parser, "if")) {
        node_t node = {.kind = NODE_CONDITIONAL, .line = parser_token(parser)->line, .a = *out};
        status = parse_or(parser, &node.b);
        if (status == STATUS_OK && parser_take_name(parser, "else"))
            status = parse_expression(parser, &node.c);
        if (status == STATUS_OK)
            status = parser_node(parser, node, out);
    }
    parser_leave(parser);
    return status;
}

/* After the first item: the rest up to what closes the expression; a comma may stand before it. */
static status_t collect_rest(parser_t *parser, nodes_t *nodes)
{
    while (parser_take_operator(parser, ",")) {
        jinja_token_kind_t kind = parser_token(parser)->kind;
        if (kind == TOKEN_CLOSE_BLOCK || kind == TOKEN_CLOSE_OUTPUT ||
            parser_is_operator(parser, ")"))
            break;
        const node_t *item;
        TRY(parse_expression(parser, &item));
        nodes_add(nodes, item);
    }
    return STATUS_OK;
}

status_t parse_tuple(parser_t *parser, bool conditional, const node_t **out)
{
    TRY(conditional ? parse_expression(parser, out) : parse_no_conditional(parser, out));
    if (!parser_is_operator(parser, ","))
        return STATUS_OK;
    node_t node = {.kind = NODE_TUPLE, .line = parser_token(parser)->line};
    nodes_t nodes = {0};
    nodes_add(&nodes, *out);
    status_t status = collect_rest(parser, &nodes);
    if (status != STATUS_OK) {
        nodes_drop(&nodes);
        return status;
    }
    nodes_keep(&nodes, parser, &node);
    return parser_node(parser, node, out);
}
