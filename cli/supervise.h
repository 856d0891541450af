/* Keeps the processes of a local cluster running: starts them, starts each again when it dies, stops
 * them in reverse order. The children die with this process (parent-death signal), so a killed
 * supervisor leaves nothing behind. Single-threaded; knows nothing of what the programs do. */
#ifndef SHOAL_CLI_SUPERVISE_H
#define SHOAL_CLI_SUPERVISE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/status.h"

enum { CHILDREN_MAX = 16, CHILD_ARGS_MAX = 40 };

typedef struct {
    const char *name;
    char *args[CHILD_ARGS_MAX + 1]; /* args[0] is the program; owned */
    int n_args;
    bool once;          /* is not started again; `exit_code` tells how it ended */
    pid_t pid;          /* 0 when not running */
    int exit_code;      /* of a `once` child that ended; -1 before */
    uint64_t start_at_ms; /* when to start it (again) */
    uint64_t started_ms;
    unsigned deaths;    /* in a row, each within 5 s of its start */
} child_t;

typedef struct {
    const char *log_dir; /* one NAME.log a child */
    child_t children[CHILDREN_MAX];
    int n_children;
    bool changed;        /* a child was started or died since the owner last cleared it */
} supervisor_t;

/* Adds a child that supervise_step will start; returns it for child_arg. */
child_t *supervise_add(supervisor_t *supervisor, const char *name, bool once);
/* Appends an argument, printf-like. */
void child_arg(child_t *child, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Starts what is due, reaps what died, waits at most wait_ms for something to happen. */
void supervise_step(supervisor_t *supervisor, int wait_ms);

/* Asks the children to end (SIGTERM), last added first, each with `grace_ms` before SIGKILL. */
void supervise_stop(supervisor_t *supervisor, int grace_ms);

#endif
