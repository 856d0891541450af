/* `shoal eval`, `shoal bench` and `shoal profile`: the worker's offline commands under the names that
 * people type. The worker beside this program takes over the process, so signals, output and exit
 * code are its own and neither program links the other's rooms. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cli/command.h"
#include "common/base/memory.h"

static status_t become_worker(const char *command, int argc, char **argv)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0)
        return fail(STATUS_IO, "cannot tell where this program lies: %s", strerror(errno));
    path[n] = 0;
    char *slash = strrchr(path, '/');
    static const char worker[] = "/shoal-worker";
    if (slash == NULL || (size_t)(slash - path) + sizeof worker > sizeof path)
        return fail(STATUS_IO, "this program lies in a path that is too long: %s", path);
    memcpy(slash, worker, sizeof worker);
    /* shoal-worker offline COMMAND, then what was typed. */
    const char **words = MEM_NEW_ARRAY(const char *, (size_t)argc + 3);
    words[0] = path;
    words[1] = "offline";
    words[2] = command;
    for (int i = 1; i < argc; i++)
        words[i + 2] = argv[i];
    signal(SIGPIPE, SIG_DFL); /* ignoring a signal would outlive the exec */
    execv(path, (char *const *)(uintptr_t)words);
    return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO,
                "cannot start %s: %s; it is built and installed beside shoal", path,
                strerror(errno));
}

status_t command_eval(int argc, char **argv)
{
    return become_worker("eval", argc, argv);
}

status_t command_bench(int argc, char **argv)
{
    return become_worker("bench", argc, argv);
}

status_t command_profile(int argc, char **argv)
{
    return become_worker("profile", argc, argv);
}
