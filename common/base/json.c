/* See json.h. */
#include "common/base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"

static const json_limits_t defaults = {64u << 20, 64, 8u << 20};
enum { DEPTH_MAX = 512 }; /* jansson recurses once a level; it refuses 2048 itself */

static size_t limit_of(size_t wanted, size_t otherwise)
{
    return wanted == 0 ? otherwise : wanted;
}

/* Counts what the parser would build, before it builds it. Of text that is no JSON the counts mean
 * nothing, which does no harm: the parser refuses it. */
static status_t check_limits(const char *name, const uint8_t *data, size_t n,
                             const json_limits_t *limits)
{
    size_t bytes_max = limit_of(limits->bytes_max, defaults.bytes_max);
    size_t depth_max = limit_of(limits->depth_max, defaults.depth_max);
    size_t values_max = limit_of(limits->values_max, defaults.values_max);
    if (depth_max > DEPTH_MAX)
        depth_max = DEPTH_MAX;
    if (n > bytes_max)
        return fail(STATUS_INVALID, "%s has %zu bytes; such a document has at most %zu", name, n,
                    bytes_max);
    size_t depth = 0, n_values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = data[i];
        if (in_string) {
            if (byte == '\\')
                i++;
            else if (byte == '"')
                in_string = false;
        } else if (byte == '"') {
            in_string = true;
        } else if (byte == '[' || byte == '{') {
            n_values++;
            if (++depth > depth_max)
                return fail(STATUS_INVALID, "%s: byte %zu is nested deeper than %zu levels", name,
                            i, depth_max);
        } else if (byte == ']' || byte == '}') {
            depth -= depth > 0;
        } else if (byte == ',' || byte == ':') {
            n_values++;
        }
    }
    if (n_values > values_max)
        return fail(STATUS_INVALID, "%s has about %zu values; such a document has at most %zu",
                    name, n_values, values_max);
    return STATUS_OK;
}

status_t json_read(const char *name, const void *data, size_t n, const json_limits_t *limits,
                   json_t **own_out)
{
    TRY(check_limits(name, data, n, limits == NULL ? &defaults : limits));
    json_error_t error;
    json_t *value = json_loadb(data == NULL ? "" : data, n,
                               JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (value == NULL)
        return fail(STATUS_INVALID, "%s is not JSON: line %d, column %d: %s", name, error.line,
                    error.column, error.text);
    *own_out = value;
    return STATUS_OK;
}

status_t json_read_object(const char *name, const void *data, size_t n,
                          const json_limits_t *limits, json_t **own_out)
{
    json_t *value;
    TRY(json_read(name, data, n, limits, &value));
    if (!json_is_object(value)) {
        const char *kind = json_kind_name(value);
        json_decref(value);
        return fail(STATUS_INVALID, "%s holds %s; it must be an object", name, kind);
    }
    *own_out = value;
    return STATUS_OK;
}

/* Reads to the end or until one byte more than the size that was asked for. */
static status_t read_bytes(const char *path, int fd, size_t n, uint8_t *out)
{
    size_t at = 0;
    while (at < n) {
        ssize_t got = read(fd, out + at, n - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0)
            return fail(STATUS_IO, "%s became shorter while it was read", path);
        at += (size_t)got;
    }
    return STATUS_OK;
}

status_t json_read_file(const char *path, const json_limits_t *limits, json_t **own_out)
{
    /* A pipe or a terminal under this name must not make the caller wait. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s", path,
                    strerror(errno));
    struct stat info;
    size_t bytes_max = limit_of(limits == NULL ? 0 : limits->bytes_max, defaults.bytes_max);
    status_t status = STATUS_OK;
    if (fstat(fd, &info) != 0)
        status = fail(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = fail(STATUS_INVALID, "%s is no regular file", path);
    else if ((size_t)info.st_size > bytes_max)
        status = fail(STATUS_INVALID, "%s has %zu bytes; such a document has at most %zu", path,
                      (size_t)info.st_size, bytes_max);
    if (status == STATUS_OK) {
        size_t n = (size_t)info.st_size;
        uint8_t *bytes = MEM_NEW_ARRAY(uint8_t, n + 1);
        status = read_bytes(path, fd, n, bytes);
        if (status == STATUS_OK)
            status = json_read_object(path, bytes, n, limits, own_out);
        free(bytes);
    }
    close(fd);
    return status;
}

const char *json_kind_name(const json_t *value)
{
    if (value == NULL)
        return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "object";
    case JSON_ARRAY: return "array";
    case JSON_STRING: return "string";
    case JSON_INTEGER: return "integer";
    case JSON_REAL: return "number";
    case JSON_TRUE:
    case JSON_FALSE: return "boolean";
    default: return "null";
    }
}

static bool is_absent(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value == NULL || json_is_null(value);
}

static status_t wrong_kind(const json_t *object, const char *where, const char *key,
                           const char *wanted)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL)
        return fail(STATUS_INVALID, "%s has no \"%s\"; it must be there as %s", where, key, wanted);
    return fail(STATUS_INVALID, "%s: \"%s\" is of kind %s; it must be %s", where, key,
                json_kind_name(value), wanted);
}

status_t json_get_text(const json_t *object, const char *where, const char *key, const char **out,
                       size_t *n_out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value))
        return wrong_kind(object, where, key, "a string");
    size_t n = json_string_length(value);
    if (n_out == NULL && strlen(json_string_value(value)) != n)
        return fail(STATUS_INVALID, "%s: \"%s\" contains a NUL character", where, key);
    *out = json_string_value(value);
    if (n_out != NULL)
        *n_out = n;
    return STATUS_OK;
}

status_t json_get_bool(const json_t *object, const char *where, const char *key, bool *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_boolean(value))
        return wrong_kind(object, where, key, "true or false");
    *out = json_is_true(value);
    return STATUS_OK;
}

status_t json_get_u64(const json_t *object, const char *where, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_integer(value))
        return wrong_kind(object, where, key, "an integer");
    long long number = json_integer_value(value);
    if (number < 0 || (uint64_t)number < min || (uint64_t)number > max)
        return fail(STATUS_INVALID, "%s: \"%s\" is %lld; it must be %llu to %llu", where, key,
                    number, (unsigned long long)min, (unsigned long long)max);
    *out = (uint64_t)number;
    return STATUS_OK;
}

status_t json_get_number(const json_t *object, const char *where, const char *key, double *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value))
        return wrong_kind(object, where, key, "a number");
    *out = json_number_value(value);
    return STATUS_OK;
}

status_t json_get_array(const json_t *object, const char *where, const char *key,
                        const json_t **out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_array(value))
        return wrong_kind(object, where, key, "an array");
    *out = value;
    return STATUS_OK;
}

status_t json_get_object(const json_t *object, const char *where, const char *key,
                         const json_t **out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_object(value))
        return wrong_kind(object, where, key, "an object");
    *out = value;
    return STATUS_OK;
}

status_t json_may_text(const json_t *object, const char *where, const char *key, const char **out,
                       size_t *n_out)
{
    return is_absent(object, key) ? STATUS_OK : json_get_text(object, where, key, out, n_out);
}

status_t json_may_bool(const json_t *object, const char *where, const char *key, bool *out)
{
    return is_absent(object, key) ? STATUS_OK : json_get_bool(object, where, key, out);
}

status_t json_may_u64(const json_t *object, const char *where, const char *key, uint64_t min,
                      uint64_t max, uint64_t *out)
{
    return is_absent(object, key) ? STATUS_OK : json_get_u64(object, where, key, min, max, out);
}

status_t json_may_number(const json_t *object, const char *where, const char *key, double *out)
{
    return is_absent(object, key) ? STATUS_OK : json_get_number(object, where, key, out);
}

status_t json_may_array(const json_t *object, const char *where, const char *key,
                        const json_t **out)
{
    return is_absent(object, key) ? STATUS_OK : json_get_array(object, where, key, out);
}

status_t json_may_object(const json_t *object, const char *where, const char *key,
                         const json_t **out)
{
    return is_absent(object, key) ? STATUS_OK : json_get_object(object, where, key, out);
}
