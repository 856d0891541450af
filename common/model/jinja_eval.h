/* Evaluation of a parsed template. jinja_eval.c runs statements, jinja_expr.c expressions,
 * jinja_filter*.c, jinja_test.c and jinja_method.c hold the tables of known names. Internal to the
 * chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_EVAL_H
#define SHOAL_COMMON_MODEL_JINJA_EVAL_H

#include "common/model/jinja_value.h"

/* Nodes and macro calls on top of each other: less than 1 MiB of stack (measured, gcc -O2). */
enum { JINJA_RUN_DEPTH_MAX = 1000 };

status_t eval_statement(jinja_run_t *run, const node_t *node) MUST_USE;
status_t eval_expression(jinja_run_t *run, const node_t *node, value_t *out) MUST_USE;
/* Evaluates call arguments. */
status_t eval_arguments(jinja_run_t *run, const node_t *const *items, size_t n,
                        arguments_t *out) MUST_USE;
/* A call; `caller` is NULL or the body of a call block. */
status_t eval_call(jinja_run_t *run, const node_t *node, const value_t *caller,
                   value_t *out) MUST_USE;
status_t call_value(jinja_run_t *run, const value_t *callee, const arguments_t *arguments,
                    value_t *out) MUST_USE;
/* Runs a body, in a scope of its own, with its output going to a text. */
status_t eval_capture(jinja_run_t *run, const node_t *body, text_t *out) MUST_USE;
/* Binds what a target names in the innermost scope. */
status_t eval_bind(jinja_run_t *run, const node_t *target, const value_t *value) MUST_USE;
/* Runs a for over `items` (perhaps again, for a recursive loop). */
status_t eval_loop(jinja_run_t *run, const node_t *node, const list_t *items,
                   size_t depth0) MUST_USE;
/* Calls a recursive loop: its text. */
status_t eval_loop_call(jinja_run_t *run, const loop_t *loop, const arguments_t *arguments,
                        value_t *out) MUST_USE;
/* A chain of filters whose head has no left side, over a text. */
status_t eval_filter_chain(jinja_run_t *run, const node_t *chain, value_t *inout) MUST_USE;
status_t eval_macro(jinja_run_t *run, const macro_t *macro, const arguments_t *arguments,
                    value_t *out) MUST_USE;

/* One level deeper, a step taken; leave with run->depth--. */
status_t run_enter(jinja_run_t *run, const node_t *node) MUST_USE;
status_t scope_push(jinja_run_t *run) MUST_USE;
/* Binds in the innermost scope. */
status_t scope_set(jinja_run_t *run, const text_t *name, const value_t *value) MUST_USE;
/* NULL in *out when no scope has the name. */
status_t scope_find(jinja_run_t *run, const text_t *name, const value_t **out) MUST_USE;
/* Names that need no binding: range, namespace, dict, raise_exception, strftime_now. */
bool global_find(const text_t *name, value_t *out);

/* What Python's getattr finds (methods, fields of `loop`), and nothing else; *found_out says
 * whether. Names with two leading underscores are refused: no template needs them, and other
 * engines fence them off. */
status_t value_own_attribute(jinja_run_t *run, const value_t *value, const text_t *name,
                             value_t *out, bool *found_out) MUST_USE;
/* x.name: an own attribute, else the element of a mapping, else undefined. */
status_t value_attribute(jinja_run_t *run, const value_t *value, const text_t *name,
                         value_t *out) MUST_USE;
/* x[index]: an element, else for a text the own attribute, else undefined. */
status_t value_index(jinja_run_t *run, const value_t *value, const value_t *index,
                     value_t *out) MUST_USE;

/* A NODE_SLICE. */
status_t eval_slice(jinja_run_t *run, const node_t *node, value_t *out) MUST_USE;

/* a op b for the arithmetic operators. */
status_t value_binary(jinja_run_t *run, jinja_op_t op, const value_t *a, const value_t *b,
                      value_t *out) MUST_USE;

/* Arguments. count: STATUS_INVALID unless n_min to n_max are given; `what` names the callee. */
status_t arguments_count(jinja_run_t *run, const arguments_t *arguments, const char *what,
                         size_t n_min, size_t n_max) MUST_USE;
/* Refuses what does not fit a list of parameters: "old new count=" takes two that must be given and
 * one that may; "*" at the end takes anything. */
status_t arguments_fit(jinja_run_t *run, const arguments_t *arguments, const char *what,
                       const text_t *name, const char *parameters) MUST_USE;
/* The argument at a position or by name; NULL when it is not given. */
const value_t *argument(const arguments_t *arguments, size_t at, const char *name);
status_t argument_integer(jinja_run_t *run, const arguments_t *arguments, size_t at,
                          const char *name, int64_t by_default, int64_t *out) MUST_USE;
/* *out is NULL when it is not given; any other kind than a string is an error. */
status_t argument_text(jinja_run_t *run, const arguments_t *arguments, size_t at, const char *name,
                       const text_t **out) MUST_USE;

typedef status_t (*filter_fn)(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                              value_t *out);
/* STATUS_INVALID for a name that is not known. */
status_t filter_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                      const arguments_t *arguments, value_t *out) MUST_USE;
typedef struct {
    const char *name;
    filter_fn fn;
    const char *parameters; /* for arguments_fit */
} filter_t;
/* NULL when no filter has the name. */
const filter_t *filter_find(const text_t *name);
/* Rows of the other files, each ending with a NULL name. */
extern const filter_t filters_of_texts[], filters_of_lists[], filters_of_groups[];
bool test_exists(const text_t *name);
status_t test_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                    const arguments_t *arguments, bool *out) MUST_USE;
/* The method of a value by its name, or NULL. */
method_fn method_find(const value_t *value, const text_t *name);

/* format % arguments, format.format(…) and the filters abs, round: see jinja_format.c. */
status_t text_percent(jinja_run_t *run, const text_t *format, const value_t *values,
                      value_t *out) MUST_USE;
status_t text_format(jinja_run_t *run, const text_t *format, const arguments_t *arguments,
                     text_t *out) MUST_USE;

/* String work that filters and methods share. `sides` is 1 left, 2 right, 3 both; chars NULL strips
 * white space. */
text_t text_strip(const text_t *text, const text_t *chars, unsigned sides);
status_t text_replace(jinja_run_t *run, const text_t *text, const text_t *old, const text_t *by,
                      int64_t n_max, text_t *out) MUST_USE;
typedef enum { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_SWAP } text_case_t;
/* As Python's methods of these names do. */
status_t text_change_case(jinja_run_t *run, const text_t *text, text_case_t to,
                          text_t *out) MUST_USE;
/* Text of spaces or of one character, n of them. */
status_t text_repeat(jinja_run_t *run, const text_t *unit, size_t n, text_t *out) MUST_USE;
/* At least `width` characters, filled at the left (1), right (2) or both sides (3). */
status_t text_pad(jinja_run_t *run, const text_t *text, int64_t width, const text_t *fill,
                  unsigned sides, text_t *out) MUST_USE;
/* The texts between line ends, these kept or not. */
status_t text_lines(jinja_run_t *run, const text_t *text, bool keep_ends, list_t *out) MUST_USE;
/* &, <, >, ' and " as HTML writes them, safe after that. */
status_t text_escape(jinja_run_t *run, const text_t *text, text_t *out) MUST_USE;
/* A view or generator over (key, value) tuples of a mapping. */
status_t dict_items(jinja_run_t *run, const value_t *value, value_kind_t kind,
                    value_t *out) MUST_USE;
/* The attribute of an item that sort, map, join and others look at: "a.b" goes down, a number
 * indexes. NULL path: the item. `by_default`, unless NULL or none, stands for what is missing. */
status_t item_attribute(jinja_run_t *run, const value_t *item, const value_t *path,
                        const value_t *by_default, value_t *out) MUST_USE;
/* Sorts items by the keys of their sides. */
status_t sort_values(jinja_run_t *run, value_t *items, value_t *keys, size_t n,
                     bool reverse) MUST_USE;
/* A text in lower case, any other value as it is. */
status_t ignore_case(jinja_run_t *run, value_t *inout) MUST_USE;
/* A JSON text as values (the filters from_json and fromjson). */
status_t value_from_text(jinja_run_t *run, const text_t *text, value_t *out) MUST_USE;

#endif
