/* Lines are built in one buffer and written with one call, so that lines of several processes that
 * share a terminal or a file do not mix. See log.h. */
#include "common/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

static char name[48] = "shoal";
static log_level_t level_max = LOG_INFO;
static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_start(const char *program)
{
    snprintf(name, sizeof name, "%s", program);
    const char *wanted = getenv("SHOAL_LOG");
    for (int i = 0; wanted != NULL && i < 4; i++)
        if (strcasecmp(wanted, level_names[i]) == 0)
            level_max = (log_level_t)i;
}

void log_at(log_level_t level, const char *format, ...)
{
    if (level > level_max)
        return;
    char line[1024];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    int n = snprintf(line, sizeof line, "%02d:%02d:%02d.%03ld %-5s %s[%d] ", utc.tm_hour, utc.tm_min,
                     utc.tm_sec, now.tv_nsec / 1000000, level_names[level], name, (int)getpid());
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    size_t length = m < 0 ? (size_t)n : (size_t)n + (size_t)m;
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    /* A log line that cannot be written has nobody to tell. */
    if (write(STDERR_FILENO, line, length) < 0)
        return;
}
