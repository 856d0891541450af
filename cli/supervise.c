/* See supervise.h. */
#include "cli/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/memory.h"

enum { BACKOFF_MIN_MS = 50, BACKOFF_MAX_MS = 2000, SETTLED_MS = 5000 };

child_t *supervise_add(supervisor_t *supervisor, const char *name, bool once)
{
    CHECK(supervisor->n_children < CHILDREN_MAX);
    child_t *child = &supervisor->children[supervisor->n_children++];
    *child = (child_t){.name = name, .once = once, .exit_code = -1};
    return child;
}

void child_arg(child_t *child, const char *format, ...)
{
    CHECK(child->n_args < CHILD_ARGS_MAX);
    va_list args;
    va_start(args, format);
    char *text = NULL;
    CHECK(vasprintf(&text, format, args) >= 0);
    va_end(args);
    child->args[child->n_args++] = text;
}

/* Runs in the new process. Only async-signal-safe calls, although this program has one thread. */
static void become_child(const child_t *child, const char *log_path, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    /* A group of its own, so that Ctrl-C in a terminal reaches the supervisor alone. */
    setpgid(0, 0);
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    int null = open("/dev/null", O_RDONLY);
    if (log < 0 || null < 0)
        _exit(1);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    for (int fd = 3; fd < 256; fd++)
        close(fd);
    signal(SIGPIPE, SIG_DFL);
    execvp(child->args[0], child->args);
    _exit(127);
}

static void start(supervisor_t *supervisor, child_t *child)
{
    char *log_path = mem_format("%s/%s.log", supervisor->log_dir, child->name);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0)
        become_child(child, log_path, parent);
    free(log_path);
    child->started_ms = clock_ms();
    child->pid = pid > 0 ? pid : 0;
    if (pid < 0) {
        log_error("cannot start %s: %s", child->name, strerror(errno));
        child->start_at_ms = child->started_ms + BACKOFF_MAX_MS;
    }
    supervisor->changed = true;
}

static void ended(supervisor_t *supervisor, child_t *child, int wait_status)
{
    uint64_t now = clock_ms();
    child->pid = 0;
    supervisor->changed = true;
    if (child->once) {
        child->exit_code = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 1;
        return;
    }
    child->deaths = now - child->started_ms < SETTLED_MS ? child->deaths + 1 : 1;
    uint64_t backoff = BACKOFF_MIN_MS;
    for (unsigned i = 1; i < child->deaths && backoff < BACKOFF_MAX_MS; i++)
        backoff *= 2;
    child->start_at_ms = now + (backoff < BACKOFF_MAX_MS ? backoff : BACKOFF_MAX_MS);
    if (WIFSIGNALED(wait_status))
        log_warn("%s died of signal %d; starting it again", child->name, WTERMSIG(wait_status));
    else
        log_warn("%s ended with exit code %d; starting it again (log: %s/%s.log)", child->name,
                 WEXITSTATUS(wait_status), supervisor->log_dir, child->name);
}

static void reap(supervisor_t *supervisor)
{
    int wait_status;
    for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;)
        for (int i = 0; i < supervisor->n_children; i++)
            if (supervisor->children[i].pid == pid)
                ended(supervisor, &supervisor->children[i], wait_status);
}

void supervise_step(supervisor_t *supervisor, int wait_ms)
{
    uint64_t until = clock_ms() + (uint64_t)wait_ms;
    supervisor->changed = false;
    for (;;) {
        reap(supervisor);
        uint64_t now = clock_ms();
        for (int i = 0; i < supervisor->n_children; i++) {
            child_t *child = &supervisor->children[i];
            bool wanted = child->pid == 0 && !(child->once && child->exit_code >= 0);
            if (wanted && now >= child->start_at_ms)
                start(supervisor, child);
        }
        if (supervisor->changed || now >= until)
            return;
        /* A child's death interrupts the pause: SIGCHLD has a handler in the owner's process. */
        struct timespec pause = {.tv_nsec = 20000000};
        if (nanosleep(&pause, NULL) != 0)
            reap(supervisor);
        if (supervisor->changed)
            return;
    }
}

void supervise_stop(supervisor_t *supervisor, int grace_ms)
{
    for (int i = supervisor->n_children - 1; i >= 0; i--) {
        child_t *child = &supervisor->children[i];
        if (child->pid == 0)
            continue;
        child->once = true;
        kill(child->pid, SIGTERM);
        uint64_t until = clock_ms() + (uint64_t)grace_ms;
        while (child->pid != 0) {
            reap(supervisor);
            if (child->pid != 0 && clock_ms() >= until)
                kill(child->pid, SIGKILL);
            struct timespec pause = {.tv_nsec = 5000000};
            nanosleep(&pause, NULL);
        }
    }
    for (int i = 0; i < supervisor->n_children; i++)
        for (int a = 0; a < supervisor->children[i].n_args; a++)
            free(supervisor->children[i].args[a]);
}
