/* See failpoint.h. Points are few and hits are rare, so a linear list under a mutex will do. */
#include "common/base/failpoint.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/log.h"

enum { ENTRIES_MAX = 256, LIST_BYTES_MAX = 4096 };

bool failpoint_armed;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *source;
static struct {
    char text[128]; /* the entry as it was written, which identifies it */
    unsigned long hits;
    bool acted;
} entries[ENTRIES_MAX];
static int n_entries;

void failpoint_start(void)
{
    source = getenv("SHOAL_FAILPOINTS");
    failpoint_armed = source != NULL && source[0] != 0;
}

/* The entry's state, made at its first passing; -1 when the table is full. */
static int entry_index(const char *text)
{
    for (int i = 0; i < n_entries; i++)
        if (strcmp(entries[i].text, text) == 0)
            return i;
    if (n_entries == ENTRIES_MAX || strlen(text) >= sizeof entries[0].text)
        return -1;
    snprintf(entries[n_entries].text, sizeof entries[0].text, "%s", text);
    return n_entries++;
}

static void read_list(char list[LIST_BYTES_MAX])
{
    list[0] = 0;
    if (strncmp(source, "file:", 5) != 0) {
        snprintf(list, LIST_BYTES_MAX, "%s", source);
        return;
    }
    FILE *file = fopen(source + 5, "re");
    if (file == NULL)
        return;
    size_t n = fread(list, 1, LIST_BYTES_MAX - 1, file);
    list[n] = 0;
    fclose(file);
}

/* The victim of a `kill:PID`. Nothing for what is no process id: 0, 1 and negative ones would mean
 * groups of processes or the whole machine. */
static void kill_other(const char *number)
{
    char *end;
    long pid = strtol(number, &end, 10);
    if (end == number || (*end != 0 && *end != '@') || pid <= 1 || pid > INT_MAX)
        log_error("fail point: kill:%s names no process", number);
    else if (kill((pid_t)pid, SIGKILL) != 0)
        log_warn("fail point: cannot kill process %ld: %s", pid, strerror(errno));
}

static bool act(const char *name, const char *action)
{
    log_warn("fail point %s acts: %s", name, action);
    if (strncmp(action, "kill:", 5) == 0)
        kill_other(action + 5);
    else if (strncmp(action, "kill", 4) == 0)
        kill(getpid(), SIGKILL);
    else if (strncmp(action, "abort", 5) == 0)
        abort();
    else if (strncmp(action, "stop", 4) == 0)
        kill(getpid(), SIGSTOP);
    else if (strncmp(action, "stall:", 6) == 0) {
        long ms = strtol(action + 6, NULL, 10);
        struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
        nanosleep(&pause, NULL);
    } else
        return strncmp(action, "error", 5) == 0;
    return false;
}

/* Whether `entry` ("name[%PID]=action[@hit]") names this point in this process; *action_out then is
 * what follows the equals sign. */
static bool entry_matches(char *entry, const char *name, char **action_out)
{
    char *equals = strchr(entry, '=');
    size_t n = strlen(name);
    if (equals == NULL || strncmp(entry, name, n) != 0)
        return false;
    if (entry[n] == '%' && strtol(entry + n + 1, NULL, 10) != (long)getpid())
        return false;
    if (entry[n] != '%' && entry + n != equals)
        return false;
    *action_out = equals + 1;
    return true;
}

/* Counts a passing of the entry and says whether it acts now. */
static bool entry_acts(const char *entry, const char *action)
{
    int i = entry_index(entry);
    if (i < 0)
        return false;
    const char *at = strchr(action, '@');
    if (at != NULL && at[1] == '*')
        return true;
    unsigned long hit = at != NULL ? strtoul(at + 1, NULL, 10) : 1;
    if (entries[i].acted || ++entries[i].hits < hit)
        return false;
    entries[i].acted = true;
    return true;
}

bool failpoint_pass(const char *name)
{
    char list[LIST_BYTES_MAX];
    bool fails = false;
    read_list(list);
    char *rest = list;
    for (char *entry; (entry = strsep(&rest, ";\n")) != NULL;) {
        char *action;
        if (!entry_matches(entry, name, &action))
            continue;
        pthread_mutex_lock(&lock);
        bool acts = entry_acts(entry, action);
        pthread_mutex_unlock(&lock);
        if (acts)
            fails |= act(name, action);
    }
    return fails;
}
