/* A real etcd for one test: private directory, free ports, killed with the test. */
#ifndef SHOAL_TESTS_ETCD_SERVER_H
#define SHOAL_TESTS_ETCD_SERVER_H

#include <sys/types.h>

#include "common/net/etcd.h"
#include "net_test.h"

typedef struct {
    char dir[64];
    unsigned client_port, peer_port;
    char endpoint[64]; /* "http://127.0.0.1:PORT" */
    pid_t pid;         /* 0 while it does not run */
} etcd_server_t;

/* Starts it; the client waits until it answers. */
void etcd_server_start(etcd_server_t *server);
void etcd_server_kill(etcd_server_t *server);    /* SIGKILL, and reaped */
void etcd_server_restart(etcd_server_t *server); /* on the same ports and data */
void etcd_server_wipe(etcd_server_t *server);    /* empties the data of one that does not run */
void etcd_server_stop(etcd_server_t *server);    /* SIGSTOP */
void etcd_server_continue(etcd_server_t *server);
/* Kills it and removes its directory. */
void etcd_server_end(etcd_server_t *server);

/* A client of it that answers. */
etcd_t *etcd_server_client(const etcd_server_t *server, rpc_io_t *io,
                           const etcd_options_t *options);

/* Blocking shorthands that fail the test when the operation fails; they return its revision. */
int64_t must_put(etcd_t *etcd, const char *key, const char *value, int64_t lease);
int64_t must_delete(etcd_t *etcd, const char *key);
/* The value, or NULL; to be freed. */
char *must_get(etcd_t *etcd, const char *key);

#endif
