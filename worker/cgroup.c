/* Reading /proc/self/cgroup and the files it leads to. */
#include "worker/cgroup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The path of a file of our memory cgroup, in `out`; false when there is none. Version 1 has a line
 * "4:memory:/path", version 2 only "0::/path". */
static int find_file(const char *v1_name, const char *v2_name, char *out, size_t n)
{
    FILE *list = fopen("/proc/self/cgroup", "re");
    char line[1024], path[768] = "";
    int version = 0;
    while (list && fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *where = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!where)
            continue;
        *where++ = 0;
        controllers++;
        if (strcmp(controllers, "memory") == 0 || (controllers[0] == 0 && version == 0)) {
            version = controllers[0] ? 1 : 2;
            snprintf(path, sizeof path, "%s", where);
        }
    }
    if (list)
        fclose(list);
    if (version == 1)
        snprintf(out, n, "/sys/fs/cgroup/memory%s/%s", path, v1_name);
    else if (version == 2)
        snprintf(out, n, "/sys/fs/cgroup%s/%s", path, v2_name);
    return version;
}

uint64_t cgroup_oom_kills(void)
{
    char path[1024], line[256];
    uint64_t kills = 0;
    if (!find_file("memory.oom_control", "memory.events", path, sizeof path))
        return 0;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "oom_kill ", 9) == 0)
            kills = strtoull(line + 9, NULL, 10);
    }
    if (file)
        fclose(file);
    return kills;
}

uint64_t cgroup_memory_max(void)
{
    char path[1024], line[64];
    uint64_t limit = UINT64_MAX;
    if (!find_file("memory.limit_in_bytes", "memory.max", path, sizeof path))
        return limit;
    FILE *file = fopen(path, "re");
    if (file && fgets(line, sizeof line, file) && strncmp(line, "max", 3) != 0) {
        errno = 0;
        uint64_t value = strtoull(line, NULL, 10);
        if (errno == 0 && value > 0)
            limit = value;
    }
    if (file)
        fclose(file);
    return limit;
}
