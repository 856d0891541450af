/* One table of options feeds the command line, the environment and the help text of every program.
 * `--name value` and `--name=value` win over the environment's SHOAL_NAME (dashes become underscores,
 * and a row can name another variable), which wins over the default. Numbers accept 1k = 1000,
 * 1K = 1024, and m/M, g/G alike; durations accept ms, s, m, h. */
#ifndef SHOAL_COMMON_BASE_OPTIONS_H
#define SHOAL_COMMON_BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

typedef enum {
    OPTION_FLAG,        /* bool; no value */
    OPTION_TEXT,        /* const char *; NULL when absent and without default */
    OPTION_INTEGER,     /* int64_t */
    OPTION_REAL,        /* double */
    OPTION_DURATION_MS, /* int64_t milliseconds */
} option_kind_t;

typedef struct {
    const char *name; /* without dashes; NULL ends a table */
    option_kind_t kind;
    void *value;            /* where it goes, of the kind's type */
    const char *by_default; /* as typed; NULL leaves *value as it is */
    const char *value_name; /* for the help text: "FILE", "N"; NULL for flags */
    const char *help;
    double min, max; /* of numbers, both inclusive; both 0 means no bound */
    bool *given;     /* set to true when the option was typed or in the environment; may be NULL */
    /* The variable that gives it, where SHOAL_NAME is another command's option of another meaning;
     * NULL is SHOAL_NAME. The help text names it. */
    const char *environment;
} option_t;

typedef struct {
    const char *usage;   /* "shoal submit FILE.jsonl [options]" */
    const char *about;   /* one paragraph */
    const char *example; /* shown under "Example:"; may hold several lines */
    const option_t *options;
} options_help_t;

/* Reads argv[1..argc). Words that are no options go to positional[], at most positional_max of them;
 * after "--" everything does. STATUS_INVALID names the option, what was given and what would be
 * right. Text values point into argv, the environment or the table. `--help` sets *help_out. */
status_t options_read(const option_t *options, int argc, char **argv, const char **positional,
                      size_t positional_max, size_t *n_positional_out, bool *help_out) MUST_USE;

/* Prints the help text on standard output. */
void options_print_help(const options_help_t *help);

/* Parses a number or duration as the options do; `what` names it in the error. */
status_t options_parse_integer(const char *what, const char *text, int64_t *out) MUST_USE;
status_t options_parse_duration_ms(const char *what, const char *text, int64_t *out) MUST_USE;

#endif
