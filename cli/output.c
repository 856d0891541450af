/* See output.h. */
#include "cli/output.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

status_t output_format(const char *format, bool *json_out)
{
    if (strcmp(format, "json") == 0)
        *json_out = true;
    else if (strcmp(format, "table") == 0)
        *json_out = false;
    else
        return fail(STATUS_INVALID, "-o: \"%s\" is neither table nor json", format);
    return STATUS_OK;
}

/* The number of columns that a UTF-8 text takes, counting each character as one. */
static size_t width(const char *text)
{
    size_t n = 0;
    for (; *text != 0; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static char *cell(const json_t *value)
{
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_STRING: return mem_strdup(*json_string_value(value) ? json_string_value(value) : "-");
    case JSON_INTEGER: return mem_format("%lld", (long long)json_integer_value(value));
    case JSON_REAL: return mem_format("%.1f", json_real_value(value));
    case JSON_TRUE: return mem_strdup("yes");
    case JSON_FALSE: return mem_strdup("no");
    case JSON_NULL: return mem_strdup("-");
    default: break;
    }
    char *text = json_dumps(value, JSON_COMPACT);
    return text ? text : mem_strdup("-");
}

void output_table(const char *const *columns, size_t n_columns, const json_t *rows)
{
    size_t n_rows = json_array_size(rows);
    char **cells = MEM_NEW_ARRAY(char *, (n_rows + 1) * n_columns);
    size_t *widths = MEM_NEW_ARRAY(size_t, n_columns);
    for (size_t c = 0; c < n_columns; c++) {
        cells[c] = mem_strdup(columns[c]);
        for (char *at = cells[c]; *at != 0; at++)
            *at = *at == '_' ? ' ' : (char)toupper((unsigned char)*at);
        for (size_t r = 0; r < n_rows; r++)
            cells[(r + 1) * n_columns + c] = cell(json_object_get(json_array_get(rows, r), columns[c]));
        for (size_t r = 0; r <= n_rows; r++)
            if (width(cells[r * n_columns + c]) > widths[c])
                widths[c] = width(cells[r * n_columns + c]);
    }
    for (size_t r = 0; r <= n_rows; r++) {
        for (size_t c = 0; c < n_columns; c++) {
            char *text = cells[r * n_columns + c];
            int pad = c + 1 == n_columns ? 0 : (int)(widths[c] - width(text) + 2);
            printf("%s%*s", text, pad, "");
            free(text);
        }
        putchar('\n');
    }
    free(cells);
    free(widths);
}

json_t *output_seed(uint64_t seed)
{
    if (seed <= INT64_MAX)
        return json_integer((json_int_t)seed);
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)seed);
    return json_string(digits);
}

status_t output_written(void)
{
    /* Of the first loss that was seen here; 0 where a write in between failed, whose reason is gone. */
    static int cause;
    errno = 0;
    bool lost = fflush(stdout) != 0;
    if (lost && cause == 0)
        cause = errno;
    if (!lost && ferror(stdout) == 0)
        return STATUS_OK;
    return fail(STATUS_IO, "output was lost: %s", cause ? strerror(cause) : "writing failed");
}

void output_json(const json_t *value, bool compact)
{
    json_dumpf(value, stdout, compact ? JSON_COMPACT : JSON_INDENT(2));
    putchar('\n');
}
