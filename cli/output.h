/* What commands print: a table for people or JSON for programs, as `-o table|json` says. */
#ifndef SHOAL_CLI_OUTPUT_H
#define SHOAL_CLI_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/base/options.h"

/* The row for an option table: {"o", …}; `format` points to a const char * that starts as "table". */
#define OUTPUT_OPTION(format) {"o", OPTION_TEXT, (format), "table", "table|json", "how to print"}

/* Checks the option's value and sets *json_out. */
status_t output_format(const char *format, bool *json_out) MUST_USE;

/* Prints rows of objects as a table: one column for each of `columns` (names of keys), headed by the
 * name in capitals; missing keys print as "-". */
void output_table(const char *const *columns, size_t n_columns, const json_t *rows);

/* A seed as JSON: a number, or its digits as a string where a number would come out negative. A
 * job's line takes both. */
json_t *output_seed(uint64_t seed);

/* STATUS_IO when something that was printed so far did not arrive: a full disk, a closed pipe. */
status_t output_written(void) MUST_USE;

/* Prints a value as JSON and a newline, in one line when `compact`. */
void output_json(const json_t *value, bool compact);

#endif
