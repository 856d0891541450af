/* Evaluation of a parsed template. jinja_eval.c runs statements, jinja_expr.c expressions,
 * jinja_filter*.c, jinja_test.c and jinja_method.c hold the tables of known names. Internal to the
 * chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_EVAL_H
#define SHOAL_COMMON_MODEL_JINJA_EVAL_H

#include "common/model/jinja_value.h"

enum { JINJA_RUN_DEPTH_MAX = 400 }; /* nodes and macro calls on top of each other */

status_t eval_statement(jinja_run_t *run, const node_t *node) MUST_USE;
status_t eval_expression(jinja_run_t *run, const node_t *node, value_t *out) MUST_USE;
/* Evaluates call arguments. */
status_t eval_arguments(jinja_run_t *run, const node_t *const *items, size_t n,
                        arguments_t *out) MUST_USE;
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

/* The attribute x.name of a value; undefined when it has none. Names with two leading underscores
 * are refused: no template needs them and other engines fence them off. */
status_t value_attribute(jinja_run_t *run, const value_t *value, const text_t *name,
                         value_t *out) MUST_USE;
status_t value_index(jinja_run_t *run, const value_t *value, const value_t *index,
                     value_t *out) MUST_USE;

/* a op b for the arithmetic operators. */
status_t value_binary(jinja_run_t *run, jinja_op_t op, const value_t *a, const value_t *b,
                      value_t *out) MUST_USE;

/* Arguments. count: STATUS_INVALID unless n_min to n_max are given; `what` names the callee. */
status_t arguments_count(jinja_run_t *run, const arguments_t *arguments, const char *what,
                         size_t n_min, size_t n_max) MUST_USE;
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
/* Filters over lists; NULL when the name is none of them. */
filter_fn filter_list_find(const text_t *name);
status_t test_apply(jinja_run_t *run, const text_t *name, const value_t *value,
                    const arguments_t *arguments, bool *out) MUST_USE;
/* Calls value.name(…); *found_out is false when the value has no such method. */
status_t method_call(jinja_run_t *run, const value_t *value, const text_t *name,
                     const arguments_t *arguments, value_t *out, bool *found_out) MUST_USE;

/* String work that filters and methods share. `sides` is 1 left, 2 right, 3 both; chars NULL strips
 * white space. */
text_t text_strip(const text_t *text, const text_t *chars, unsigned sides);
status_t text_replace(jinja_run_t *run, const text_t *text, const text_t *old, const text_t *by,
                      int64_t n_max, text_t *out) MUST_USE;
typedef enum { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE } text_case_t;
/* Changes ASCII letters; other characters stay as they are. */
status_t text_change_case(jinja_run_t *run, const text_t *text, text_case_t to,
                          text_t *out) MUST_USE;
/* [key, value] tuples of a mapping. */
status_t dict_items(jinja_run_t *run, const value_t *value, value_t *out) MUST_USE;

#endif
