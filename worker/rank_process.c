/* Spawning, supervising and burying rank processes: see rank_process.h. */
#include "worker/rank_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "worker/cgroup.h"
#include "worker/step_page.h"

extern char **environ;

struct rank_process {
    rank_start_t start;
    pid_t pid;
    int socket, pidfd;
    bool reaped, killed_by_us, hung_up;
    uint64_t oom_kills; /* of our cgroup when the rank was spawned */
    rank_death_t death;
    step_page_t *page; /* of a leader that serves */
    /* What the socket had no room for. */
    control_message_t *unsent_epoch; /* own, with its descriptor */
    uint64_t unsent_since_ms;
    bool unsent_drain, unsent_stop;
};

/* What a rank gets besides our own environment, unless that names it. */
static const char *const extra_environment[] = {
    /* UCX would catch a crash, print and exit; the parent has to see the signal. */
    "UCX_HANDLE_ERRORS=none",
    "UCX_LOG_LEVEL=error",
};
enum { N_EXTRA = sizeof extra_environment / sizeof *extra_environment };

static const char *program = "/proc/self/exe";

void rank_process_program(const char *path)
{
    program = path;
}

/* The array is to be freed; its strings are not. */
static char **make_environment(void)
{
    size_t n = 0;
    while (environ[n])
        n++;
    char **list = MEM_NEW_ARRAY(char *, n + N_EXTRA + 1);
    memcpy(list, environ, n * sizeof *list);
    for (size_t i = 0; i < N_EXTRA; i++) {
        size_t name = strcspn(extra_environment[i], "=") + 1;
        bool found = false;
        for (size_t k = 0; k < n; k++)
            found = found || strncmp(list[k], extra_environment[i], name) == 0;
        if (!found) {
            const void *text = extra_environment[i];
            memcpy(&list[n++], &text, sizeof text);
        }
    }
    return list;
}

/* Signals that the parent blocks or catches are the rank's to decide; it gets a process group of its
 * own, because a Ctrl-C in the terminal is for the parent, which then drains its ranks. */
static int spawn(int child_socket, char **argv, char **environment, pid_t *pid_out)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    sigemptyset(&none);
    sigemptyset(&defaults);
    const int reset[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD, SIGUSR1, SIGUSR2};
    for (size_t i = 0; i < sizeof reset / sizeof *reset; i++)
        sigaddset(&defaults, reset[i]);
    int error = posix_spawn_file_actions_adddup2(&actions, child_socket, CONTROL_FD);
    if (error == 0)
        error = posix_spawnattr_setsigmask(&attributes, &none);
    if (error == 0)
        error = posix_spawnattr_setsigdefault(&attributes, &defaults);
    if (error == 0)
        error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK |
                                                          POSIX_SPAWN_SETSIGDEF |
                                                          POSIX_SPAWN_SETPGROUP);
    if (error == 0)
        error = posix_spawn(pid_out, program, &actions, &attributes, argv, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

static status_t start_child(rank_process_t *rank)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return fail(STATUS_IO, "cannot make a control channel: %m");
    const int bytes = (int)CONTROL_MESSAGE_BYTES_MAX * 2;
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    char name[] = "shoal-worker", word[] = "rank", parent[24];
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    char *argv[] = {name, word, parent, NULL};
    char **environment = make_environment();
    rank->oom_kills = cgroup_oom_kills();
    int error = spawn(pair[1], argv, environment, &rank->pid);
    free(environment);
    close(pair[1]);
    rank->socket = pair[0];
    if (error != 0) {
        rank->pid = 0;
        rank->reaped = true;
        return fail(STATUS_IO, "cannot start a rank process (%s): %s", program, strerror(error));
    }
    rank->pidfd = (int)syscall(SYS_pidfd_open, rank->pid, 0);
    if (rank->pidfd < 0)
        return fail(STATUS_UNSUPPORTED, "cannot watch a rank process (Linux 5.3 or newer): %m");
    return STATUS_OK;
}

/* A new socket has room for the first message. */
static status_t send_start(rank_process_t *rank)
{
    control_message_t message = {.kind = CONTROL_START, .fd = -1, .start = rank->start};
    bool sent = false;
    if (rank->start.serve && rank->start.rank == 0)
        TRY(step_page_create(&rank->page, &message.fd));
    status_t status = control_try_send(rank->socket, &message, &sent);
    if (message.fd >= 0)
        close(message.fd);
    if (status == STATUS_OK && !sent)
        return fail(STATUS_EXHAUSTED, "its control channel has no room for the first word");
    return status;
}

status_t rank_process_spawn(const rank_start_t *start, rank_process_t **own_out)
{
    rank_process_t *rank = MEM_NEW(rank_process_t);
    rank->start = *start;
    rank->socket = rank->pidfd = -1;
    status_t status = start_child(rank);
    if (status == STATUS_OK)
        status = send_start(rank);
    if (status != STATUS_OK) {
        fail_in(status, "rank %u of %s", start->rank, start->replica);
        rank_process_release(rank);
        return status;
    }
    *own_out = rank;
    return STATUS_OK;
}

/* ---- sending ---- */

static void drop_unsent_epoch(rank_process_t *rank)
{
    if (rank->unsent_epoch && rank->unsent_epoch->fd >= 0)
        close(rank->unsent_epoch->fd);
    free(rank->unsent_epoch);
    rank->unsent_epoch = NULL;
}

bool rank_process_has_unsent(const rank_process_t *rank)
{
    return rank->unsent_epoch || rank->unsent_drain || rank->unsent_stop;
}

static status_t flush_epoch(rank_process_t *rank)
{
    bool sent = false;
    uint64_t now = clock_ms(), late = now - rank->unsent_since_ms;
    uint32_t *left_ms = &rank->unsent_epoch->epoch.formation_ms;
    *left_ms = late < *left_ms ? *left_ms - (uint32_t)late : 1;
    rank->unsent_since_ms = now;
    TRY(control_try_send(rank->socket, rank->unsent_epoch, &sent));
    if (sent)
        drop_unsent_epoch(rank);
    return STATUS_OK;
}

static status_t flush_word(rank_process_t *rank, control_kind_t kind, bool *unsent)
{
    control_message_t message = {.kind = kind, .fd = -1};
    bool sent = false;
    if (!*unsent)
        return STATUS_OK;
    TRY(control_try_send(rank->socket, &message, &sent));
    *unsent = !sent;
    return STATUS_OK;
}

status_t rank_process_flush(rank_process_t *rank)
{
    if (rank->unsent_epoch)
        TRY(flush_epoch(rank));
    TRY(flush_word(rank, CONTROL_DRAIN, &rank->unsent_drain));
    return flush_word(rank, CONTROL_STOP, &rank->unsent_stop);
}

status_t rank_process_send_epoch(rank_process_t *rank, const rank_epoch_t *epoch, int shm_fd)
{
    drop_unsent_epoch(rank);
    rank->unsent_epoch = MEM_NEW(control_message_t);
    rank->unsent_epoch->kind = CONTROL_EPOCH;
    rank->unsent_epoch->epoch = *epoch;
    /* The caller's memory may be gone before the rank takes the message. */
    rank->unsent_epoch->fd = shm_fd >= 0 ? fcntl(shm_fd, F_DUPFD_CLOEXEC, 0) : -1;
    rank->unsent_since_ms = clock_ms();
    if (shm_fd >= 0 && rank->unsent_epoch->fd < 0) {
        drop_unsent_epoch(rank);
        return fail(STATUS_EXHAUSTED, "rank %u of %s: no descriptor for the memory of an epoch: %m",
                    rank->start.rank, rank->start.replica);
    }
    return rank_process_flush(rank);
}

status_t rank_process_send_drain(rank_process_t *rank)
{
    rank->unsent_drain = true;
    return rank_process_flush(rank);
}

status_t rank_process_send_stop(rank_process_t *rank)
{
    rank->unsent_stop = true;
    return rank_process_flush(rank);
}

status_t rank_process_receive(rank_process_t *rank, control_message_t *out, bool *got_out)
{
    status_t status = control_receive(rank->socket, out, got_out);
    rank->hung_up = rank->hung_up || status == STATUS_PEER_LOST;
    return status;
}

bool rank_process_hung_up(const rank_process_t *rank)
{
    return rank->hung_up;
}

const rank_start_t *rank_process_start_of(const rank_process_t *rank)
{
    return &rank->start;
}

pid_t rank_process_pid(const rank_process_t *rank)
{
    return rank->pid;
}

int rank_process_socket(const rank_process_t *rank)
{
    return rank->socket;
}

int rank_process_pidfd(const rank_process_t *rank)
{
    return rank->pidfd;
}

void rank_process_kill(rank_process_t *rank)
{
    if (rank->reaped)
        return;
    rank->killed_by_us = true;
    kill(rank->pid, SIGKILL);
}

static void word_death(rank_process_t *rank, const siginfo_t *about)
{
    rank_death_t *death = &rank->death;
    if (about->si_code == CLD_EXITED) {
        death->exit_code = about->si_status;
        snprintf(death->text, sizeof death->text, "exited with code %d", about->si_status);
        return;
    }
    death->signal = about->si_status;
    bool own_doing = death->signal == SIGSEGV || death->signal == SIGBUS ||
                     death->signal == SIGABRT || death->signal == SIGFPE ||
                     death->signal == SIGILL;
    bool oom = death->signal == SIGKILL && !rank->killed_by_us &&
               cgroup_oom_kills() > rank->oom_kills;
    death->crashed = own_doing || oom;
    snprintf(death->text, sizeof death->text, "killed by signal %d (%s)%s%s", death->signal,
             strsignal(death->signal), oom ? ", out of memory in its cgroup" : "",
             rank->killed_by_us ? ", sent by its agent" : "");
}

bool rank_process_reap(rank_process_t *rank, uint32_t timeout_ms, rank_death_t *out)
{
    if (!rank->reaped && timeout_ms > 0) {
        struct pollfd fd = {.fd = rank->pidfd, .events = POLLIN};
        uint64_t end = clock_ms() + timeout_ms;
        while (poll(&fd, 1, (int)timeout_ms) < 0 && errno == EINTR) {
            uint64_t now = clock_ms();
            timeout_ms = now < end ? (uint32_t)(end - now) : 0;
        }
    }
    if (!rank->reaped) {
        siginfo_t about = {0};
        if (waitid(P_PID, (id_t)rank->pid, &about, WEXITED | WNOHANG) != 0 || about.si_pid == 0)
            return false;
        rank->reaped = true;
        word_death(rank, &about);
    }
    if (out)
        *out = rank->death;
    return true;
}

uint32_t rank_process_flying(const rank_process_t *rank,
                             char sessions_out[CONTROL_SESSIONS_MAX][CONTROL_SESSION_BYTES])
{
    return rank->page ? step_page_read(rank->page, sessions_out) : 0;
}

void rank_process_release(rank_process_t *take_rank)
{
    if (!take_rank)
        return;
    if (take_rank->pid > 0 && !take_rank->reaped) {
        rank_process_kill(take_rank);
        siginfo_t about;
        while (waitid(P_PID, (id_t)take_rank->pid, &about, WEXITED) != 0 && errno == EINTR)
            ;
    }
    if (take_rank->socket >= 0)
        close(take_rank->socket);
    if (take_rank->pidfd >= 0)
        close(take_rank->pidfd);
    drop_unsent_epoch(take_rank);
    step_page_unmap(take_rank->page);
    free(take_rank);
}
