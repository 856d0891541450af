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
    bool safe; /* Python's Markup, which the filter safe makes: + escapes what is added to it */
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
    VALUE_RANGE,     /* a list to read, with the three numbers that it was made of */
    VALUE_VIEW,      /* what a dictionary's items(), keys() and values() give: no index */
    VALUE_GENERATOR, /* what map, select and others give: can be gone through once */
    VALUE_DICT,
    VALUE_NAMESPACE, /* a dictionary that set may change */
    VALUE_LOOP,      /* `loop` inside a for */
    VALUE_MACRO,
    VALUE_FUNCTION,
    VALUE_METHOD, /* an attribute that can be called, bound to its value */
} value_kind_t;

typedef struct value value_t;
typedef struct jinja_run jinja_run_t;
typedef struct scope scope_t;

/* Only a list that is being made is appended to: slices share the items of the list they are of. */
typedef struct {
    value_t *items;
    size_t n, capacity;
    const char *type;          /* of a view or a groupby pair: Python's name for it */
    int64_t start, stop, step; /* of a range */
    size_t n_taken;            /* of a generator: how many items are gone */
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

/* Also the body of a call block, which its macro knows as `caller`. */
typedef struct {
    const node_t *node; /* NODE_MACRO or NODE_CALL_BLOCK */
    scope_t *scope;     /* where it was defined */
} macro_t;

/* One run of a for over its items. */
typedef struct {
    const list_t *items;
    size_t index0, depth0;
    const node_t *node;     /* the for, to call it again when it is recursive */
    scope_t *scope;         /* around the for */
    const list_t *changed; /* the last arguments of loop.changed; NULL before the first */
} loop_t;

typedef struct method method_t;

struct value {
    value_kind_t kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        text_t text; /* of an undefined value: its name, for errors */
        list_t *list;
        dict_t *dict;
        loop_t *loop;
        macro_t *macro;
        function_fn function;
        const method_t *method;
    };
};

typedef status_t (*method_fn)(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out);

struct method {
    value_t value; /* what it belongs to */
    method_fn fn;
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
    bool refused;   /* raise_exception has spoken: its words stand as they are */
    json_t *parsed; /* array of what from_json read; values borrow their texts from it */
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
/* What has a length and elements by number: list, tuple, range. */
bool value_is_sequence(const value_t *value);
bool value_is_dict(const value_t *value); /* dictionary or namespace */
bool value_is_number(const value_t *value, double *out); /* booleans count, as in Python */
bool value_truth(const value_t *value);
status_t value_equal(jinja_run_t *run, const value_t *a, const value_t *b, unsigned depth,
                     bool *out) MUST_USE;
/* -1, 0 or 1 in *out for numbers, texts and lists; other pairs are an error. */
status_t value_compare(jinja_run_t *run, const value_t *a, const value_t *b, int *out) MUST_USE;
/* `needle in haystack` */
status_t value_contains(jinja_run_t *run, const value_t *haystack, const value_t *needle,
                        bool *out) MUST_USE;
/* The elements that iterating gives: items, keys or characters. A generator is empty after. */
status_t value_elements(jinja_run_t *run, const value_t *value, list_t **out) MUST_USE;

/* As {{ }} prints it. */
status_t value_string(jinja_run_t *run, const value_t *value, text_t *out) MUST_USE;
/* Python's repr: a text in quotes, everything else as it prints. */
status_t value_repr(jinja_run_t *run, const value_t *value, text_t *out) MUST_USE;

/* How json.dumps writes. */
typedef struct {
    bool indented, sort_keys, ascii;
    text_t indent;          /* one level of it */
    text_t comma, colon;    /* between items, between key and value */
} json_style_t;

status_t value_json(jinja_run_t *run, const value_t *value, const json_style_t *style,
                    text_t *out) MUST_USE;
/* The shortest digits that read back as the same number, as Python lays them out. */
enum { NUMBER_TEXT_BYTES = 400 };
void real_text(double real, bool json, char out[NUMBER_TEXT_BYTES]);

#endif
