/* The coordinator around its pure core: one thread that owns the core and steps it, and everything
 * that blocks, waits or talks around that thread.
 *
 * Threads. Foreign threads (gRPC, etcd, Redis, the work team) never touch the core: they post a
 * task to the core thread's mailbox. Work that takes longer than a moment (parsing lines,
 * templates, tokenizing, hashing files) runs on the work team and posts its result back. So every
 * struct of this folder belongs to the core thread unless its comment says otherwise. */
#ifndef SHOAL_COORDINATOR_SHELL_H
#define SHOAL_COORDINATOR_SHELL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

typedef struct {
    const char *listen;    /* host:port of the public services; port 0 takes a free one */
    const char *advertise; /* host that clients may use; NULL takes that of `listen` */
    const char *etcd, *redis, *cluster;
    const char *id;        /* of this coordinator; NULL is made of host name and port */
    const char *models;    /* folder or file; NULL: no model can be opened */
    const char *data;      /* folder for caches; NULL: none */
    int64_t store_wait_ms, jobs_bytes_max, detach_ms, queue_wait_ms, drain_ms, items_max;
    int64_t waiting_tokens_max, lease_s, work_threads;
} shell_options_t;

/* Runs until SIGTERM or SIGINT has drained it, or until it cannot go on. STATUS_UNREACHABLE when a
 * store did not answer within store_wait_ms. SIGTERM and SIGINT must be blocked in all threads. */
status_t shell_run(const shell_options_t *options) MUST_USE;

#endif
