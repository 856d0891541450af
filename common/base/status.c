/* Failure texts, one buffer a thread. See status.h. */
#include "common/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char text[STATUS_TEXT_MAX];

status_t (fail)(status_t code, const char *format, ...)
{
    CHECK(code != STATUS_OK);
    /* The arguments may point into the old text, so the new one is made beside it. */
    char fresh[STATUS_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(fresh, sizeof fresh, format, args);
    va_end(args);
    memcpy(text, fresh, sizeof text);
    return code;
}

status_t (fail_in)(status_t code, const char *format, ...)
{
    CHECK(code != STATUS_OK);
    char fresh[STATUS_TEXT_MAX];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(fresh, sizeof fresh, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof fresh)
        snprintf(fresh + n, sizeof fresh - (size_t)n, ": %s", text);
    memcpy(text, fresh, sizeof text);
    return code;
}

const char *status_text(void)
{
    return text;
}

const char *status_name(status_t code)
{
    switch (code) {
    case STATUS_OK: return "OK";
    case STATUS_INVALID: return "INVALID";
    case STATUS_NOT_FOUND: return "NOT_FOUND";
    case STATUS_REFUSED: return "REFUSED";
    case STATUS_CONFLICT: return "CONFLICT";
    case STATUS_EXHAUSTED: return "EXHAUSTED";
    case STATUS_CANCELLED: return "CANCELLED";
    case STATUS_DEADLINE: return "DEADLINE";
    case STATUS_STALE: return "STALE";
    case STATUS_POISONED: return "POISONED";
    case STATUS_UNSUPPORTED: return "UNSUPPORTED";
    case STATUS_UNREACHABLE: return "UNREACHABLE";
    case STATUS_PEER_LOST: return "PEER_LOST";
    case STATUS_TIMEOUT: return "TIMEOUT";
    case STATUS_ABORTED: return "ABORTED";
    case STATUS_REPLICA_LOST: return "REPLICA_LOST";
    case STATUS_NUMERIC: return "NUMERIC";
    case STATUS_NO_MEMORY: return "NO_MEMORY";
    case STATUS_IO: return "IO";
    case STATUS_INTERNAL: return "INTERNAL";
    }
    return "UNKNOWN";
}

int status_exit_code(status_t code)
{
    switch (code) {
    case STATUS_OK: return 0;
    case STATUS_INVALID: return 2;
    case STATUS_NOT_FOUND: return 3;
    case STATUS_REFUSED:
    case STATUS_EXHAUSTED:
    case STATUS_UNSUPPORTED: return 4;
    case STATUS_CONFLICT:
    case STATUS_STALE: return 5;
    case STATUS_UNREACHABLE:
    case STATUS_PEER_LOST: return 6;
    case STATUS_DEADLINE:
    case STATUS_TIMEOUT: return 7;
    default: return 1;
    }
}

void check_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, condition);
    abort();
}
