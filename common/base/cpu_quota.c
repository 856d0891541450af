/* See cpu_quota.h. */
#include "common/base/cpu_quota.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 1024 };

/* The first two numbers of a file; a word that is no number, like "max", ends them. Returns how
 * many there were. */
static int read_numbers(const char *path, long long out[2])
{
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    int n = fscanf(file, "%lld %lld", &out[0], &out[1]);
    fclose(file);
    return n < 0 ? 0 : n;
}

static void take(long long quota_us, long long period_us, uint32_t *least)
{
    if (quota_us <= 0 || period_us <= 0)
        return;
    long long cpus = (quota_us - 1) / period_us + 1;
    if (cpus < UINT32_MAX && (*least == 0 || cpus < *least))
        *least = (uint32_t)cpus;
}

static void read_group(const char *directory, bool v2, uint32_t *least)
{
    char path[PATH_BYTES + 32];
    long long quota[2] = {0, 0}, period[2] = {0, 0};
    if (v2) {
        snprintf(path, sizeof path, "%s/cpu.max", directory);
        if (read_numbers(path, quota) == 2)
            take(quota[0], quota[1], least);
        return;
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory);
    if (read_numbers(path, quota) < 1)
        return;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
    if (read_numbers(path, period) >= 1)
        take(quota[0], period[0], least);
}

/* The group and all above it. In a container the group's path may be the host's, which is not
 * there; the mounted root then is the container's group and is read last. */
static void walk_up(const char *mount, char *group, bool v2, uint32_t *least)
{
    char directory[PATH_BYTES];
    for (;;) {
        int n = snprintf(directory, sizeof directory, "%s%s", mount, group);
        if (n > 0 && (size_t)n < sizeof directory)
            read_group(directory, v2, least);
        char *slash = strrchr(group, '/');
        if (!slash)
            return;
        *slash = 0;
    }
}

static bool names_cpu(const char *controllers, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t length = strcspn(controllers + at, ",:");
        if (length == 3 && strncmp(controllers + at, "cpu", 3) == 0)
            return true;
        at += length + 1;
    }
    return false;
}

uint32_t cpu_quota(const char *root)
{
    char path[PATH_BYTES], line[PATH_BYTES];
    uint32_t least = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    /* Lines are number:controllers:path; version 2 has the number 0 and no controllers. */
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        bool v2 = group == controllers + 1;
        if (!v2 && !names_cpu(controllers + 1, (size_t)(group - controllers - 1)))
            continue;
        snprintf(path, sizeof path, "%s/sys/fs/cgroup%s", root, v2 ? "" : "/cpu");
        walk_up(path, group + 1, v2, &least);
    }
    fclose(file);
    return least;
}
