/* The one reader of JSON that comes from outside: configuration, tokenizers, headers of weight
 * files. The parsing itself is jansson's (strict: UTF-8 only, no trailing bytes); this puts limits
 * before it, since a parsed value takes many times its bytes, and words what is wrong.
 *
 * A refused document is STATUS_INVALID with its name and the line, or the limit that it breaks.
 * Keys that stand twice in one object are refused: two readers could take different ones. Strings
 * may contain NUL, keys may not (jansson). The getters below leave *out alone when they fail and
 * word the failure with `where`, the place in the document ("config.json: rope_scaling").
 *
 * Values are released with json_decref; what a getter gives is borrowed from its object. A document
 * may be read by many threads at once as long as none takes or drops a reference. */
#ifndef SHOAL_COMMON_BASE_JSON_H
#define SHOAL_COMMON_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

/* What a document may have at most. 0 stands for the default of that member. */
typedef struct {
    size_t bytes_max;  /* default 64 MiB */
    size_t depth_max;  /* of arrays and objects inside each other; default 64, never above 512 */
    size_t values_max; /* values and keys together, about 64 bytes of memory each; default 8 Mi */
} json_limits_t;

/* `name` stands in errors. limits may be NULL: the defaults. Any kind of value may stand at the
 * top; json_read_object wants an object. */
status_t json_read(const char *name, const void *data, size_t n, const json_limits_t *limits,
                   json_t **own_out) MUST_USE;
status_t json_read_object(const char *name, const void *data, size_t n,
                          const json_limits_t *limits, json_t **own_out) MUST_USE;
/* A whole regular file, which must hold an object. STATUS_NOT_FOUND when there is none. */
status_t json_read_file(const char *path, const json_limits_t *limits, json_t **own_out) MUST_USE;

/* "string", "integer", "number", "boolean", "null", "array", "object"; "nothing" for NULL. */
const char *json_kind_name(const json_t *value);

/* The member `key` of an object, which must be of the kind. An absent or null member is
 * STATUS_INVALID for json_get_*; for json_may_* it is success and *out stays as it was, so that the
 * caller puts the default there first. */
status_t json_get_text(const json_t *object, const char *where, const char *key, const char **out,
                       size_t *n_out) MUST_USE; /* n_out may be NULL: then NUL in it is refused */
status_t json_get_bool(const json_t *object, const char *where, const char *key,
                       bool *out) MUST_USE;
status_t json_get_u64(const json_t *object, const char *where, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out) MUST_USE;
status_t json_get_number(const json_t *object, const char *where, const char *key,
                         double *out) MUST_USE; /* integers too */
status_t json_get_array(const json_t *object, const char *where, const char *key,
                        const json_t **out) MUST_USE;
status_t json_get_object(const json_t *object, const char *where, const char *key,
                         const json_t **out) MUST_USE;

status_t json_may_text(const json_t *object, const char *where, const char *key, const char **out,
                       size_t *n_out) MUST_USE;
status_t json_may_bool(const json_t *object, const char *where, const char *key,
                       bool *out) MUST_USE;
status_t json_may_u64(const json_t *object, const char *where, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out) MUST_USE;
status_t json_may_number(const json_t *object, const char *where, const char *key,
                         double *out) MUST_USE;
status_t json_may_array(const json_t *object, const char *where, const char *key,
                        const json_t **out) MUST_USE;
status_t json_may_object(const json_t *object, const char *where, const char *key,
                         const json_t **out) MUST_USE;

#endif
