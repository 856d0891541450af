/* What the parts of the coordinator's shell share: the struct, the mailbox, and who does what.
 *
 *   shell.c          threads, mailbox, timers, actions of the core to their doers
 *   links.c          streams to leaders
 *   models.c         models: tokenizer, chat template, sizes
 *   stores_etcd.c    watches, transactions, registration, election
 *   stores_redis.c   job and pointer operations of the core
 *   stores_meta.c    which cluster: the two stores must agree
 *   front*.c         the public gRPC services */
#ifndef SHOAL_COORDINATOR_SHELL_STATE_H
#define SHOAL_COORDINATOR_SHELL_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/net/etcd.h"
#include "common/net/jobs_store.h"
#include "common/net/rpc.h"
#include "common/net/rpc_message.h"
#include "coordinator/core/core.h"
#include "coordinator/core/table.h"
#include "coordinator/request.h"
#include "coordinator/shell.h"

typedef struct shell shell_t;

/* A task owns its data. */
typedef void (*task_fn)(shell_t *shell, void *take_data);

typedef struct task {
    struct task *next;
    uint64_t at_ms; /* of timers */
    task_fn fn;
    void *data;
} task_t;

typedef struct {
    task_t *head, **tail;
} task_list_t;

/* Where plans and jobs stand with a store. */
typedef struct {
    bool ok;        /* connected, of this cluster */
    bool foreign;   /* refused until it is adopted */
    char text[256]; /* "ok" or what is wrong; read by Admin.Status */
} store_view_t;

typedef struct models models_t;
typedef struct stores stores_t;
typedef struct front front_t;

struct shell {
    shell_options_t options;
    char id[CORE_NAME_SIZE];
    char endpoint[CORE_NAME_SIZE];
    rpc_io_t *io;

    pthread_mutex_t lock; /* guards mailbox and work */
    pthread_cond_t told, work_told;
    task_list_t mailbox, work;
    bool stopping_work;
    pthread_t *workers;
    size_t n_workers;

    /* The core thread's. */
    core_t *core;
    core_actions_t actions;
    task_t *timers; /* ascending by time */
    bool stop;      /* leave the loop */
    bool draining;
    status_t result;
    bool dispatching;

    atomic_bool running; /* the loop takes tasks */
    _Atomic(const char *) waits_for; /* "etcd" or "redis" while one is awaited at the start */

    table_t links; /* links.c: by number */
    models_t *models;
    stores_t *stores;
    front_t *front;
    etcd_t *etcd;
    jobs_store_t *jobs; /* thread-safe */
};

/* ---- shell.c ---- */

/* Any thread: runs fn on the core thread, in the order of posting. */
void shell_post(shell_t *shell, task_fn fn, void *take_data);
/* The core thread: the same, not before at_ms. */
void shell_post_at(shell_t *shell, uint64_t at_ms, task_fn fn, void *take_data);
/* Any thread: runs fn on the work team. */
void shell_work(shell_t *shell, task_fn fn, void *take_data);
/* The core thread: steps the core and carries out what it wants. Not from within an action. */
void shell_event(shell_t *shell, const core_event_t *event);
/* The core thread, after the loop: runs tasks until the table is empty. */
void shell_flush(shell_t *shell, const table_t *until_empty);
/* 32 random hex digits and a NUL; a random number that is not 0. Any thread. */
void shell_random_id(char id_out[CORE_ID_SIZE]);
uint64_t shell_random(void);
/* A seed that was not asked for: below 2^53, so that every JSON reader keeps it and it can be given
 * again. */
uint64_t shell_random_seed(void);

/* ---- links.c ---- */
void links_open(shell_t *shell, const core_action_t *action);
void links_send(shell_t *shell, const core_action_t *action);
void links_close(shell_t *shell, const core_action_t *action);
/* Closes all; blocks. After the loop has ended. */
void links_end(shell_t *shell);

/* ---- models.c ---- */

/* A model that was opened; immutable and never released while the program runs. */
typedef struct {
    char *digest, *quantize;
    tokenizer_t *tokenizer;
    struct chat_template *chat; /* NULL: the model carries none */
    plan_sizes_t sizes;
    uint32_t context_train;
} model_entry_t;

models_t *models_open(shell_t *shell);
void models_close(models_t *take_models);
void models_load(shell_t *shell, const core_action_t *action);
/* The entry of the tokenizer that a core_deployment_view_t names; NULL for NULL. */
const model_entry_t *models_of(const shell_t *shell, const tokenizer_t *tokenizer);
/* Work team: the prompt's ids. STATUS_INVALID says why there are none. */
status_t models_encode(const model_entry_t *entry, const request_t *request,
                       token_ids_t *out) MUST_USE;
/* Work team: the file or directory that a deployment means by path or name, inside --models if that is given;
 * STATUS_NOT_FOUND says where it was looked for. */
status_t models_find_file(const shell_t *shell, const char *path, const char *name,
                          char **own_path_out) MUST_USE;
/* Work team: opens (or finds) the model at a path, quantized as model_open_quantized says; its digest
 * must be `digest` unless that is "". */
status_t models_entry(shell_t *shell, const char *path, const char *digest, const char *quantize,
                      const model_entry_t **out) MUST_USE;

/* ---- stores_*.c ---- */

/* Opens both clients and waits for them as long as --store-wait says. */
status_t stores_open(shell_t *shell) MUST_USE;
/* On the core thread, once the core exists: registration, election, supervision. */
void stores_begin(shell_t *shell);
/* Leaves: the registration is revoked, so that others need not wait for its lease. */
void stores_leave(shell_t *shell);
void stores_close(shell_t *shell);
/* After everything else, when no task is left. */
void stores_release(shell_t *shell);

void stores_watch(shell_t *shell, const core_action_t *action);
void stores_unwatch(shell_t *shell, const core_action_t *action);
void stores_txn(shell_t *shell, const core_action_t *action);
void stores_range(shell_t *shell, const core_action_t *action);
void stores_redis(shell_t *shell, const core_action_t *action);

/* "/shoal/<cluster>/" + key, for free(). Any thread. */
char *stores_key(const shell_t *shell, const char *key);
/* Any thread: the cluster as it is known now; false until it is. */
bool stores_cluster(shell_t *shell, char uuid_out[33], uint64_t *incarnation_out);
/* Any thread: what Admin.Status says. */
void stores_view(shell_t *shell, store_view_t *etcd_out, store_view_t *redis_out);
/* Any thread: STATUS_UNREACHABLE with what is wrong when plans may not be written now. */
status_t stores_may_plan(shell_t *shell) MUST_USE;
/* The same for jobs. A store that is away does not refuse them here (Redis itself will be asked),
 * one that is not this cluster's does, whichever of the two it is. */
status_t stores_may_take_jobs(shell_t *shell) MUST_USE;
/* The core thread: starts a comparison of the two stores now. */
void stores_verify(shell_t *shell);
/* The core thread: accepts a foreign store, "etcd" or "redis"; fn comes once, on the core thread,
 * perhaps within the call. */
typedef void (*stores_adopted_fn)(void *user, status_t status, const char *text,
                                  uint64_t incarnation);
void stores_adopt(shell_t *shell, const char *store, stores_adopted_fn fn, void *user);
/* Any thread: the redis thread says that the job store's health changed. */
void stores_redis_health(void *shell, const jobs_health_t *health);

/* ---- front*.c ---- */
status_t front_open(shell_t *shell) MUST_USE;
/* After the loop. Ends every call, and what was asked of other coordinators for them. */
void front_close(shell_t *shell, unsigned grace_ms);
void front_started(shell_t *shell, const core_action_t *action);
void front_output(shell_t *shell, const core_action_t *action);
void front_end(shell_t *shell, const core_action_t *action);
/* After everything else, when no task is left. */
void front_release(shell_t *shell);
void front_set_serving(shell_t *shell, bool serving);
/* This coordinator has changed the job: who reads it need not wait for the next look. */
void front_job_changed(shell_t *shell, const char *id);

#endif
