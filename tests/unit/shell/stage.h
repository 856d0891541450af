/* Real processes for the shell's tests: an etcd, a Redis, coordinators, each in a private folder
 * and on ports picked by the kernel; all die with the test. */
#ifndef SHOAL_TESTS_UNIT_SHELL_STAGE_H
#define SHOAL_TESTS_UNIT_SHELL_STAGE_H

#include <sys/types.h>

#include "common/net/rpc.h"

typedef struct {
    char dir[64];
    char etcd[64], redis[96];
    pid_t etcd_pid, redis_pid;
} stage_t;

void stage_begin(stage_t *stage);
void stage_end(stage_t *stage);
/* SIGKILLs it and starts it again, with its folder emptied when asked. */
void stage_restart_redis(stage_t *stage, bool empty);
/* One command for redis-cli, such as "config set appendfsync everysec". */
void stage_redis(const stage_t *stage, const char *command);

/* Starts a coordinator with further options (NULL ends them); its log is in the stage's folder. */
pid_t stage_coordinator(stage_t *stage, const char *id, int port, const char *const *options);
/* Waits for the end; returns the exit code, or -signal. */
int stage_wait_exit(pid_t pid, unsigned timeout_ms);
int stage_port(void);
/* The model file of the quickstart; fails the test when it is not there. */
const char *stage_model(void);

#endif
