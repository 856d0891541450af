/* The values that a chat template computes with, and one rendering's memory and budgets.
 *
 * A text carries marks: 1 for bytes that the template wrote, 0 for bytes of the request. Every
 * operation keeps them, so the output knows where each byte came from. All memory is the
 * rendering's arena; nothing is freed before its end. Internal to the chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_VALUE_H
#define SHOAL_COMMON_MODEL_JINJA_VALUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/jinja_ast.h"

enum { MARK_DATA = 0, MARK_TEMPLATE = 1 };

typedef struct {
    const char *data; /* valid UTF-8, may hold NUL */
    size_t n;
    const uint8_t *marks; /* one a byte; NULL: all are `mark` */
    uint8_t mark;
} text_t;

typedef enum {
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INTEGER,
    VALUE_REAL,
    VALUE_TEXT,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_DICT,
    VALUE_NAMESPACE, /* a dictionary that set may change */
    VALUE_MACRO,
    VALUE_FUNCTION,
} value_kind_t;

typedef struct value value_t;
typedef struct jinja_run jinja_run_t;
typedef struct scope scope_t;

typedef struct {
    value_t *items;
    size_t n, capacity;
} list_t;

typedef struct {
    text_t *keys;
    value_t *values;
    size_t n, capacity;
} dict_t;

typedef struct {
    const value_t *items;
    size_t n;
    const text_t *names; /* of the last n_named items */
    size_t n_named;
} arguments_t;

typedef status_t (*function_fn)(jinja_run_t *run, const arguments_t *arguments, value_t *out);

typedef struct {
    const node_t *node;
    scope_t *scope; /* where it was defined */
} macro_t;

struct value {
    value_kind_t kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        text_t text; /* of an undefined value: its name, for errors */
        list_t *list;
        dict_t *dict;
        macro_t *macro;
        function_fn function;
    };
};

typedef struct {
    text_t name;
    value_t value;
} binding_t;

struct scope {
    scope_t *parent;
    binding_t *bindings;
    size_t n, capacity;
};

/* Where output goes: the end of a rendering, of a macro or of a set block. */
typedef struct {
    char *data;
    uint8_t *marks;
    size_t n, capacity;
} sink_t;

typedef enum { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } flow_t;

/* One rendering. */
struct jinja_run {
    arena_t arena;
    size_t memory_left; /* bytes of CHAT_MEMORY_BYTES_MAX */
    size_t steps_max, steps_left;
    unsigned depth;
    uint32_t line; /* of what is being evaluated, for errors */
    bool strict;
    int64_t now_unix_s;
    scope_t *scope;
    sink_t *sink;
    flow_t flow;
};

/* Words an error with the line before it. */
#define jinja_fail(run, ...) jinja_fail_at((run)->line, fail(STATUS_INVALID, __VA_ARGS__))
status_t jinja_fail_at(uint32_t line, status_t status);

/* Takes n units from the step budget; about 64 bytes of text work are one step. */
status_t run_charge(jinja_run_t *run, size_t n) MUST_USE;
/* Zeroed memory for n objects. */
status_t run_alloc(jinja_run_t *run, size_t n, size_t size, void *pointer_out) MUST_USE;

const char *value_kind_name(const value_t *value);
value_t value_none(void);
value_t value_bool(bool truth);
value_t value_integer(int64_t integer);
value_t value_real(double real);
value_t value_text(text_t text);
value_t value_undefined(text_t name);
/* A text that the program itself holds; not copied. */
text_t text_of(const char *text, uint8_t mark);
bool text_is(const text_t *text, const char *other);
bool text_equal(const text_t *a, const text_t *b);
text_t text_slice(const text_t *text, size_t start, size_t n);
/* Number of characters. */
size_t text_length(const text_t *text);
/* The byte offset of character i, or n when there are not so many. */
size_t text_offset(const text_t *text, size_t i);
status_t text_join(jinja_run_t *run, const text_t *parts, size_t n_parts, text_t *out) MUST_USE;

status_t sink_append(jinja_run_t *run, sink_t *sink, const text_t *text) MUST_USE;
text_t sink_text(const sink_t *sink);

status_t list_new(jinja_run_t *run, value_kind_t kind, size_t capacity, value_t *out) MUST_USE;
status_t list_append(jinja_run_t *run, list_t *list, const value_t *item) MUST_USE;
status_t dict_new(jinja_run_t *run, value_kind_t kind, value_t *out) MUST_USE;
status_t dict_set(jinja_run_t *run, dict_t *dict, const text_t *key, const value_t *value) MUST_USE;
/* NULL in *out when the key is absent. */
status_t dict_get(jinja_run_t *run, const dict_t *dict, const text_t *key,
                  const value_t **out) MUST_USE;

/* A JSON value as data of the request; texts are borrowed from it. */
status_t value_from_json(jinja_run_t *run, const json_t *json, unsigned depth,
                         value_t *out) MUST_USE;

bool value_is_list(const value_t *value); /* list or tuple */
bool value_is_dict(const value_t *value); /* dictionary or namespace */
bool value_is_number(const value_t *value, double *out); /* booleans count, as in Python */
bool value_truth(const value_t *value);
status_t value_equal(jinja_run_t *run, const value_t *a, const value_t *b, unsigned depth,
                     bool *out) MUST_USE;
/* -1, 0 or 1 in *out for numbers and texts; other pairs are an error. */
status_t value_compare(jinja_run_t *run, const value_t *a, const value_t *b, int *out) MUST_USE;
/* `needle in haystack` */
status_t value_contains(jinja_run_t *run, const value_t *haystack, const value_t *needle,
                        bool *out) MUST_USE;
/* The elements that iterating gives: items, keys or characters. */
status_t value_elements(jinja_run_t *run, const value_t *value, list_t **out) MUST_USE;

/* As {{ }} prints it. */
status_t value_string(jinja_run_t *run, const value_t *value, text_t *out) MUST_USE;
/* Python's json.dumps without ASCII escapes; indent < 0: on one line. */
status_t value_json(jinja_run_t *run, const value_t *value, int64_t indent, bool sort_keys,
                    text_t *out) MUST_USE;

#endif
