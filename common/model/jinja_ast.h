/* The tree that a chat template compiles to. Nodes live in the template's arena, are immutable once
 * parsed, and point into the template's own copy of its source. Internal to the chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_AST_H
#define SHOAL_COMMON_MODEL_JINJA_AST_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/memory.h"
#include "common/base/status.h"

enum {
    JINJA_AST_DEPTH_MAX = 200, /* levels of a tree; the evaluator recurses along them */
    JINJA_NODES_MAX = 1 << 20,
};

typedef enum {
    /* Expressions. In comments: what the fields hold. */
    NODE_TEXT_LITERAL, /* text */
    NODE_INTEGER,      /* integer */
    NODE_REAL,         /* real */
    NODE_BOOL,         /* integer */
    NODE_NONE,
    NODE_NAME,      /* text */
    NODE_LIST,      /* items */
    NODE_TUPLE,     /* items */
    NODE_DICT,      /* items: key, value, key, value… */
    NODE_ATTRIBUTE, /* a . text */
    NODE_INDEX,     /* a [ b ] */
    NODE_SLICE,     /* a [ b : c : d ], each of b, c, d may be NULL */
    NODE_CALL,      /* a ( items ), keyword arguments are NODE_KEYWORD at the end */
    NODE_KEYWORD,   /* text = a */
    NODE_STAR,      /* *a in a call, or **a when integer is 2 */
    NODE_FILTER,    /* a | text ( items ); a is NULL at the head of a filter block */
    NODE_TEST,      /* a is text items; integer 1 when negated */
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_BINARY,      /* a op b; integer is the jinja_op_t */
    NODE_COMPARE,     /* a, then items: NODE_BINARY with op and b only */
    NODE_AND,         /* a, b */
    NODE_OR,          /* a, b */
    NODE_CONDITIONAL, /* a if b else c; c may be NULL */
    /* Statements. */
    NODE_OUTPUT,    /* prints a; template text is an output of a literal */
    NODE_BLOCK,     /* items in order */
    NODE_IF,        /* items: condition, block, condition, block…; c: else block or NULL */
    /* A target is a NODE_NAME, a NODE_ATTRIBUTE of one (in set), or a NODE_TUPLE of targets. */
    NODE_FOR,       /* items: the target; a: what to iterate; b: its if; c: body; d: else;
                       integer 1 when recursive */
    NODE_SET,       /* items: the target; a: value */
    NODE_SET_BLOCK, /* items: the target; c: body; a: filter chain or NULL */
    NODE_FILTER_BLOCK, /* a: filter chain; c: body */
    NODE_WITH,      /* items: target, value, target, value…; c: body. Without items: a scope */
    NODE_NAMED_BLOCK, /* c: body, which sees the outermost scope only */
    NODE_MACRO,     /* text; items: NODE_KEYWORD per parameter, its a the default; c: body; integer:
                       the special_name_t that the body uses */
    NODE_CALL_BLOCK, /* a: the call; the rest as a macro, which the call gets as `caller` */
    NODE_BREAK,
    NODE_CONTINUE,
} node_kind_t;

typedef enum {
    OP_ADD, OP_SUBTRACT, OP_MULTIPLY, OP_DIVIDE, OP_FLOOR_DIVIDE, OP_MODULO, OP_POWER, OP_CONCAT,
    OP_EQUAL, OP_NOT_EQUAL, OP_LESS, OP_LESS_EQUAL, OP_GREATER, OP_GREATER_EQUAL, OP_IN, OP_NOT_IN,
} jinja_op_t;

/* Names that a macro has without declaring them, once its body uses them. */
typedef enum { SPECIAL_CALLER = 1, SPECIAL_KWARGS = 2, SPECIAL_VARARGS = 4 } special_name_t;

typedef struct node node_t;
struct node {
    node_kind_t kind;
    uint32_t line;
    uint32_t depth; /* 1 for a leaf */
    const char *text;
    size_t text_size;
    int64_t integer;
    double real;
    const node_t *a, *b, *c, *d;
    const node_t **items;
    size_t n_items;
};

/* Parses a template; the nodes and their texts are in the arena. STATUS_INVALID with the line. */
status_t jinja_parse(arena_t *arena, const char *source, size_t n, const node_t **out) MUST_USE;

/* What Jinja refuses when it compiles a tree: names of filters and tests that it does not know,
 * where no `if` could keep them from running, and `loop` as a target. */
status_t jinja_check(const node_t *root) MUST_USE;

#endif
