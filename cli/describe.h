/* What a model is, as a JSON object for programs and as lines for people: shared by `shoal inspect`
 * and `shoal plan`. */
#ifndef SHOAL_CLI_DESCRIBE_H
#define SHOAL_CLI_DESCRIBE_H

#include <jansson.h>

#include "common/model/footprint.h"

/* "7.62 B", "915 M"; "14.3 GiB". `text` has DESCRIBE_TEXT_SIZE bytes. */
enum { DESCRIBE_TEXT_SIZE = 32 };
const char *describe_count(uint64_t n, char text[DESCRIBE_TEXT_SIZE]);
const char *describe_bytes(uint64_t n, char text[DESCRIBE_TEXT_SIZE]);

/* Architecture, sizes, heads, experts, context; what a token leaves in the caches. */
void describe_config(json_t *report, const model_config_t *config);
/* Parameters, bytes by type, caches. Those that are not known (0) are left out. */
void describe_footprint(json_t *report, const footprint_t *footprint);

/* A line with a name of fixed width before it. */
void describe_line(const char *name, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The lines of what the two above put into a report. */
void describe_print(const json_t *report);

#endif
