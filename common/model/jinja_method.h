/* The tables of methods that templates may call: jinja_method.c has those of lists, mappings and
 * `loop`, jinja_method_text.c and jinja_method_split.c those of strings. Internal to the chat
 * templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_METHOD_H
#define SHOAL_COMMON_MODEL_JINJA_METHOD_H

#include "common/model/jinja_eval.h"

/* A string's method by its name, or NULL. */
method_fn text_method_of(const text_t *name);

/* Methods between strings and lists of them. */
status_t text_method_split(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                           value_t *out) MUST_USE;
status_t text_method_rsplit(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                            value_t *out) MUST_USE;
status_t text_method_splitlines(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out) MUST_USE;
status_t text_method_partition(jinja_run_t *run, const value_t *value,
                               const arguments_t *arguments, value_t *out) MUST_USE;
status_t text_method_rpartition(jinja_run_t *run, const value_t *value,
                                const arguments_t *arguments, value_t *out) MUST_USE;
status_t text_method_join(jinja_run_t *run, const value_t *value, const arguments_t *arguments,
                          value_t *out) MUST_USE;

#endif
