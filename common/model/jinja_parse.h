/* What the two halves of the parser share: jinja_parse.c has the statements, jinja_parse_expr.c the
 * expressions. Internal to the chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_PARSE_H
#define SHOAL_COMMON_MODEL_JINJA_PARSE_H

#include <stdbool.h>

#include "common/model/jinja_ast.h"
#include "common/model/jinja_lex.h"

typedef struct {
    arena_t *arena;
    const jinja_token_t *tokens;
    size_t at;      /* never beyond the last token, which is TOKEN_END */
    unsigned depth; /* open blocks and brackets: bounds the parser's own recursion */
    unsigned loops; /* open for blocks: break and continue need one */
    unsigned specials; /* special_name_t seen so far in the macro being parsed */
    size_t n_nodes;
} parser_t;

/* Nodes that are being collected; the array is malloc'ed until nodes_keep. */
typedef struct {
    const node_t **items;
    size_t n, capacity;
} nodes_t;

static inline const jinja_token_t *parser_token(const parser_t *parser)
{
    return &parser->tokens[parser->at];
}

/* Whether the current token is this operator, or this name. */
bool parser_is_operator(const parser_t *parser, const char *text);
bool parser_is_name(const parser_t *parser, const char *text);
/* Moves on if it is. */
bool parser_take_operator(parser_t *parser, const char *text);
bool parser_take_name(parser_t *parser, const char *text);
/* STATUS_INVALID names the line, what stands there and what should. */
status_t parser_unexpected(const parser_t *parser, const char *wanted) MUST_USE;
status_t parser_need_operator(parser_t *parser, const char *text) MUST_USE;
/* Any name; its token. */
status_t parser_need_name(parser_t *parser, const jinja_token_t **out) MUST_USE;

/* One level deeper; parser_leave takes it back. */
status_t parser_enter(parser_t *parser) MUST_USE;
void parser_leave(parser_t *parser);

/* Copies the node into the arena and sets its depth from its children's. */
status_t parser_node(parser_t *parser, node_t node, const node_t **out) MUST_USE;

void nodes_add(nodes_t *nodes, const node_t *node);
/* Moves the collected nodes into the arena as node->items. */
void nodes_keep(nodes_t *take_nodes, parser_t *parser, node_t *node);
void nodes_drop(nodes_t *nodes);

/* Runs a collector one level deeper and makes a node of the items it found. */
typedef status_t (*collect_fn)(parser_t *parser, nodes_t *nodes);
status_t collect_into(parser_t *parser, collect_fn fn, node_t node, const node_t **out) MUST_USE;

/* Everything up to one of the closing words, whose tag is opened but whose word is not taken; with
 * no words (a list ends with NULL), up to the end of the template. */
status_t parse_body(parser_t *parser, const char *const *ends, const node_t **out) MUST_USE;
/* "%} body {% end %}" with the closing word taken. */
status_t parse_closed_body(parser_t *parser, const char *end, const node_t **out) MUST_USE;
/* A target of set, for or with: names, with commas a tuple. with_attribute: ns.x as well. */
status_t parse_target(parser_t *parser, bool with_attribute, const node_t **out) MUST_USE;

/* The statements of jinja_parse_block.c; each starts after its first word. */
typedef status_t (*statement_fn)(parser_t *parser, node_t node, const node_t **out);
statement_fn parse_block_statement(const jinja_token_t *word);

/* A signed or plain value with its postfixes and, unless it stands behind a sign, its filters. */
status_t parse_unary(parser_t *parser, bool with_filter, const node_t **out) MUST_USE;
status_t parse_expression(parser_t *parser, const node_t **out) MUST_USE;
/* An expression in which a following `if` is not a conditional: the head of if and for. */
status_t parse_no_conditional(parser_t *parser, const node_t **out) MUST_USE;
/* One expression or, with commas, a tuple. */
status_t parse_tuple(parser_t *parser, bool conditional, const node_t **out) MUST_USE;
/* Filters only: "| a | b(1)" without the bars' left side. At least one. */
status_t parse_filter_chain(parser_t *parser, const node_t **out) MUST_USE;

#endif
