/* See stage.h. */
#include "tests/unit/shell/stage.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"

#include <cmocka.h>

#define PATIENCE_MS 20000

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

int stage_port(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    assert_int_equal(bind(fd, (struct sockaddr *)&address, n), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &n), 0);
    close(fd);
    return ntohs(address.sin_port);
}

/* gRPC does not survive fork(), so the child is spawned; setpriv makes it die with this process. */
static pid_t spawn(const char *log, const char *const *command)
{
    union { /* posix_spawn takes mutable pointers and writes nothing */
        const char *from[40];
        char *to[40];
    } argv = {{"setpriv", "--pdeathsig", "KILL", "--"}};
    for (size_t n = 4; *command; n++) {
        assert_true(n < 39);
        argv.from[n] = *command++;
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t pid;
    assert_int_equal(posix_spawnp(&pid, "setpriv", &actions, NULL, argv.to, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
}

static void start_redis(stage_t *stage)
{
    char dir[96], socket[96], log[96];
    snprintf(dir, sizeof dir, "%s/redis", stage->dir);
    snprintf(socket, sizeof socket, "%s/s", stage->dir);
    snprintf(log, sizeof log, "%s/redis.log", stage->dir);
    mkdir(dir, 0700);
    unlink(socket);
    const char *argv[] = {"redis-server", "--port", "0", "--unixsocket", socket, "--dir", dir,
                          "--appendonly", "yes", "--appendfsync", "always", "--save", "", NULL};
    stage->redis_pid = spawn(log, argv);
}

void stage_begin(stage_t *stage)
{
    strcpy(stage->dir, "/tmp/shoal-shell-XXXXXX");
    assert_non_null(mkdtemp(stage->dir));
    char dir[96], log[96], clients[64], peers[64], cluster[96];
    snprintf(dir, sizeof dir, "%s/etcd", stage->dir);
    snprintf(log, sizeof log, "%s/etcd.log", stage->dir);
    snprintf(stage->etcd, sizeof stage->etcd, "127.0.0.1:%d", stage_port());
    snprintf(clients, sizeof clients, "http://%.30s", stage->etcd);
    snprintf(peers, sizeof peers, "http://127.0.0.1:%d", stage_port());
    snprintf(cluster, sizeof cluster, "default=%s", peers);
    snprintf(stage->redis, sizeof stage->redis, "unix:%s/s", stage->dir);
    const char *argv[] = {"etcd", "--data-dir", dir, "--listen-client-urls", clients,
                    "--advertise-client-urls", clients, "--listen-peer-urls", peers,
                    "--initial-advertise-peer-urls", peers, "--initial-cluster", cluster, NULL};
    stage->etcd_pid = spawn(log, argv);
    start_redis(stage);
}

static void end_process(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void run(const char *command)
{
    assert_int_equal(system(command), 0);
}

void stage_end(stage_t *stage)
{
    end_process(stage->etcd_pid);
    end_process(stage->redis_pid);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", stage->dir);
    run(command);
}

void stage_restart_redis(stage_t *stage, bool empty)
{
    end_process(stage->redis_pid);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s/redis'", stage->dir);
    if (empty)
        run(command);
    start_redis(stage);
}

void stage_redis(const stage_t *stage, const char *command)
{
    char line[256];
    snprintf(line, sizeof line, "redis-cli -s '%s' %s > /dev/null", stage->redis + 5, command);
    run(line);
}

pid_t stage_coordinator(stage_t *stage, const char *id, int port, const char *const *options)
{
    char log[128], listen[48];
    snprintf(log, sizeof log, "%s/%s.log", stage->dir, id);
    snprintf(listen, sizeof listen, "127.0.0.1:%d", port);
    const char *argv[32] = {SHOAL_BIN_DIR "/shoal-coordinator", "--listen", listen, "--id", id,
                            "--etcd", stage->etcd, "--redis", stage->redis, "--cluster", "test",
                            "--data", stage->dir};
    for (size_t n = 13; options && *options; options++)
        argv[n++] = *options;
    return spawn(log, argv);
}

int stage_wait_exit(pid_t pid, unsigned timeout_ms)
{
    uint64_t until = clock_ms() + timeout_ms;
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (clock_ms() > until)
            fail_msg("process %d still runs after %u ms", (int)pid, timeout_ms);
        nap();
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

const char *stage_model(void)
{
    const char *path = getenv("SHOAL_MODEL");
    if (!path)
        path = SHOAL_TEST_DATA "/../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (access(path, R_OK) != 0)
        fail_msg("%s is missing; set SHOAL_MODEL, or run tests/run", path);
    return path;
}
