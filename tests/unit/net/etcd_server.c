/* Starting, killing and stopping a real etcd. See etcd_server.h. */
#include "etcd_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/memory.h"

static unsigned free_port(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in any = {.sin_family = AF_INET};
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof any;
    assert_int_equal(bind(fd, (struct sockaddr *)(void *)&any, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)(void *)&any, &size), 0);
    close(fd);
    return ntohs(any.sin_port);
}

static pid_t spawn(char **argv, const char *log)
{
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    pid_t pid;
    assert_int_equal(posix_spawnp(&pid, argv[0], &files, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

void etcd_server_restart(etcd_server_t *server)
{
    char *client = mem_strdup(server->endpoint);
    char *peer = mem_format("http://127.0.0.1:%u", server->peer_port);
    char *cluster = mem_format("default=%s", peer);
    char *data = mem_format("%s/data", server->dir);
    char *log = mem_format("%s/log", server->dir);
    /* setpriv makes it die with this process, however this ends. */
    const char *argv[] = {"setpriv", "--pdeathsig", "KILL", "etcd", "--data-dir", data,
                          "--listen-client-urls", client, "--advertise-client-urls", client,
                          "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                          "--initial-cluster", cluster,
                          "--heartbeat-interval", "50", "--election-timeout", "500", NULL};
    server->pid = spawn((char **)(uintptr_t)argv, log);
    free(client);
    free(peer);
    free(cluster);
    free(data);
    free(log);
}

void etcd_server_start(etcd_server_t *server)
{
    memset(server, 0, sizeof *server);
    strcpy(server->dir, "/tmp/shoal_etcd_XXXXXX");
    assert_non_null(mkdtemp(server->dir));
    server->client_port = free_port();
    server->peer_port = free_port();
    snprintf(server->endpoint, sizeof server->endpoint, "http://127.0.0.1:%u", server->client_port);
    etcd_server_restart(server);
}

void etcd_server_kill(etcd_server_t *server)
{
    if (!server->pid)
        return;
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    server->pid = 0;
}

static void remove_tree(const char *path)
{
    char *argv[] = {(char[]){"rm"}, (char[]){"-rf"}, (char *)(uintptr_t)path, NULL};
    pid_t pid;
    assert_int_equal(posix_spawnp(&pid, "rm", NULL, NULL, argv, environ), 0);
    waitpid(pid, NULL, 0);
}

void etcd_server_wipe(etcd_server_t *server)
{
    assert_int_equal(server->pid, 0);
    char *data = mem_format("%s/data", server->dir);
    remove_tree(data);
    free(data);
}

void etcd_server_stop(etcd_server_t *server)
{
    assert_int_equal(kill(server->pid, SIGSTOP), 0);
}

void etcd_server_continue(etcd_server_t *server)
{
    assert_int_equal(kill(server->pid, SIGCONT), 0);
}

void etcd_server_end(etcd_server_t *server)
{
    etcd_server_kill(server);
    remove_tree(server->dir);
}

etcd_t *etcd_server_client(const etcd_server_t *server, rpc_io_t *io, const etcd_options_t *options)
{
    etcd_options_t all = options ? *options : (etcd_options_t){0};
    etcd_t *etcd;
    if (!all.endpoints)
        all.endpoints = server->endpoint;
    assert_int_equal(etcd_open(io, &all, &etcd), STATUS_OK);
    assert_int_equal(etcd_wait_ready(etcd, 20000), STATUS_OK);
    return etcd;
}

int64_t must_put(etcd_t *etcd, const char *key, const char *value, int64_t lease)
{
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_put(etcd, key, value, strlen(value), lease, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    int64_t revision = result->revision;
    etcd_result_free(result);
    return revision;
}

int64_t must_delete(etcd_t *etcd, const char *key)
{
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_delete(etcd, key, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    int64_t revision = result->revision;
    etcd_result_free(result);
    return revision;
}

char *must_get(etcd_t *etcd, const char *key)
{
    etcd_waiter_t *waiter = etcd_waiter_new();
    etcd_result_t *result;
    etcd_get(etcd, key, etcd_wait_done, waiter);
    assert_int_equal(etcd_wait(waiter, &result), STATUS_OK);
    char *value = NULL;
    if (result->n_kvs)
        value = mem_strndup((const char *)result->kvs[0].value, result->kvs[0].value_size);
    etcd_result_free(result);
    return value;
}
