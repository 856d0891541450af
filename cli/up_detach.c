/* See up_detach.h. */
#include "cli/up_detach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"

typedef struct {
    int status;
    char words[STATUS_TEXT_MAX];
} verdict_t;

static status_t lose_terminal(const char *data_dir)
{
    char *path = mem_format("%s/up.log", data_dir);
    int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    free(path);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log < 0 || null < 0)
        return fail(STATUS_IO, "cannot open the log in %s: %s", data_dir, strerror(errno));
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    close(log);
    close(null);
    return STATUS_OK;
}

status_t up_detach_start(up_detach_t *detach, const char *data_dir, bool *parent_out)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return fail(STATUS_IO, "cannot make a pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid < 0)
        return fail(STATUS_IO, "cannot fork: %s", strerror(errno));
    *parent_out = pid > 0;
    detach->fd = pid > 0 ? ends[0] : ends[1];
    close(pid > 0 ? ends[1] : ends[0]);
    if (pid > 0)
        return STATUS_OK;
    setsid();
    return lose_terminal(data_dir);
}

status_t up_detach_wait(up_detach_t *detach, char words_out[STATUS_TEXT_MAX])
{
    verdict_t verdict = {0};
    size_t got = 0;
    while (got < sizeof verdict) {
        ssize_t n = read(detach->fd, (char *)&verdict + got, sizeof verdict - got);
        if (n < 0 && errno == EINTR)
            return fail(STATUS_CANCELLED, "interrupted; the cluster goes on starting, `shoal down` stops it");
        if (n <= 0)
            return fail(STATUS_INTERNAL, "the cluster's supervisor died while it started; see up.log in --data");
        got += (size_t)n;
    }
    close(detach->fd);
    verdict.words[sizeof verdict.words - 1] = 0;
    if (verdict.status != STATUS_OK)
        return fail((status_t)verdict.status, "%s", verdict.words);
    memcpy(words_out, verdict.words, sizeof verdict.words);
    return STATUS_OK;
}

void up_detach_ready(up_detach_t *detach, status_t status, const char *words)
{
    if (detach->fd == 0)
        return;
    verdict_t verdict = {.status = (int)status};
    memcpy(verdict.words, words, strnlen(words, sizeof verdict.words - 1));
    /* Nobody is left to tell when the typed command was ended meanwhile. */
    if (write(detach->fd, &verdict, sizeof verdict) < 0)
        verdict.status = 0;
    close(detach->fd);
    detach->fd = 0;
}
