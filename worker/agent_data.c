/* The agent's data directory: see agent_data.h. */
#include "worker/agent_data.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/memory.h"

static status_t make_directory(const char *path)
{
    char part[1024];
    int n = snprintf(part, sizeof part, "%s", path);
    if (n < 0 || (size_t)n >= sizeof part)
        return fail(STATUS_INVALID, "--data: a path of %d bytes", n);
    for (char *slash = strchr(part + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash)
            *slash = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return fail(STATUS_IO, "--data: cannot make %s: %m", part);
        if (!slash)
            return STATUS_OK;
        *slash = '/';
    }
}

/* One agent a host id: a second one on the same data directory would answer for the same key. */
status_t agent_data_lock(const char *data, int *own_lock_out)
{
    TRY(make_directory(data));
    char *path = mem_format("%s/agent.lock", data);
    char words[32];
    status_t status = STATUS_OK;
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock < 0) {
        status = fail(STATUS_IO, "cannot open %s: %m", path);
    } else if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
        ssize_t n = pread(lock, words, sizeof words - 1, 0);
        words[n > 0 ? n : 0] = 0;
        words[strcspn(words, "\n")] = 0;
        status = fail(STATUS_REFUSED, "another agent (pid %s) runs on --data %s", words,
                      data);
    } else {
        int n = snprintf(words, sizeof words, "%d\n", (int)getpid());
        if (ftruncate(lock, 0) != 0 || pwrite(lock, words, (size_t)n, 0) != n)
            status = fail(STATUS_IO, "cannot write %s: %m", path);
    }
    free(path);
    if (status == STATUS_OK)
        *own_lock_out = lock;
    else if (lock >= 0)
        close(lock);
    return status;
}

void agent_data_epoch(const char *data, uint64_t *incarnation_out, uint64_t *epoch_out)
{
    char *path = mem_format("%s/epoch", data);
    unsigned long long incarnation = 0, epoch = 0;
    FILE *file = fopen(path, "re");
    if (file && fscanf(file, "%llu %llu", &incarnation, &epoch) != 2)
        incarnation = epoch = 0;
    if (file)
        fclose(file);
    free(path);
    *incarnation_out = incarnation;
    *epoch_out = epoch;
}

void agent_data_set_epoch(const char *data, uint64_t incarnation, uint64_t epoch)
{
    char *path = mem_format("%s/epoch", data);
    char *fresh = mem_format("%s/epoch.new", data);
    FILE *file = fopen(fresh, "we");
    bool good = file && fprintf(file, "%llu %llu\n", (unsigned long long)incarnation,
                                (unsigned long long)epoch) > 0;
    good = file && fclose(file) == 0 && good;
    if (!good || rename(fresh, path) != 0)
        log_warn("cannot write %s: %m", path);
    free(fresh);
    free(path);
}
