/* What the front*.c files share: a call that has arrived, and its way to the core thread. */
#ifndef SHOAL_COORDINATOR_FRONT_STATE_H
#define SHOAL_COORDINATOR_FRONT_STATE_H

#include "coordinator/shell_state.h"
#include "shoal/cluster/v1/state.pb-c.h"
#include "shoal/v1/admin.pb-c.h"
#include "shoal/v1/inference.pb-c.h"
#include "shoal/v1/jobs.pb-c.h"

typedef struct ask ask_t;

/* A method whose client sends one message. All functions run on the core thread. */
typedef struct {
    const char *name;
    rpc_kind_t kind;
    const ProtobufCMessageDescriptor *request;
    void (*start)(ask_t *take_ask);
    void (*writable)(ask_t *ask); /* may be NULL */
    void (*ended)(ask_t *ask);    /* the client is gone or the answer went out; may be NULL */
} front_method_t;

/* One call. Two owners: the transport, until the call has ended, and whoever works on it. */
struct ask {
    atomic_uint refs;
    atomic_bool ended;
    const front_method_t *method;
    shell_t *shell;
    rpc_call_t *call;
    ProtobufCMessage *message; /* of method->request */
    uint64_t client;           /* front_generate.c: its number at the core; 0 is none */
    /* front_cancel.c: */
    bool asked_elsewhere;
    char *silent; /* words about a coordinator that did not answer; owned; NULL: all did */
    void *state;
};

void ask_ref(ask_t *ask);
void ask_unref(ask_t *take_ask);
/* Ends the call and lets go of it. */
void ask_reply(ask_t *take_ask, const void *message);
void ask_end(ask_t *take_ask);
/* With this thread's status_text(); EXHAUSTED carries a retry time. */
void ask_fail(ask_t *take_ask, status_t status);
/* Ends the call with what the job store said. */
void ask_fail_jobs(ask_t *take_ask, const jobs_reply_t *reply);
/* The words and code for an answer of the job store; never STATUS_OK. */
status_t front_jobs_status(const jobs_reply_t *reply);

typedef struct front_watches front_watches_t;

struct front {
    rpc_server_t *server;
    front_watches_t *watches; /* front_watch.c */
    table_t clients; /* ask_t by client */
    uint64_t last_client;
    table_t asking; /* front_cancel.c: cancels that are asked of other coordinators */
    uint64_t last_asking;
};

/* ---- front_generate.c: calls as clients of the core ---- */
void front_add_client(ask_t *ask);
void front_remove_client(ask_t *ask);

/* ---- front_watch.c: Jobs.Watch and Jobs.StreamResults ---- */
void front_start_watch(ask_t *take_ask);
void front_start_results(ask_t *take_ask);
void front_watch_writable(ask_t *ask);
void front_watch_ended(ask_t *ask);
void front_watches_release(front_watches_t *take_watches);

/* ---- front_cancel.c ---- */
void front_start_cancel(ask_t *take_ask);
/* The core has no such request, or it has ended. */
void front_cancel_failed(shell_t *shell, ask_t *take_ask, status_t status, const char *text);
/* After the loop: waits until no other coordinator is asked any more. */
void front_cancel_end(shell_t *shell);

/* ---- what front.c serves ---- */
extern const front_method_t front_inference_methods[], front_jobs_methods[], front_admin_methods[];
extern const size_t front_n_inference, front_n_jobs, front_n_admin;
/* Jobs.Submit, the one client stream, and Jobs.Create (front_intake.c). */
rpc_method_t front_submit_method(shell_t *shell);
void front_create(ask_t *take_ask);
/* front_view.c and front_hosts.c, of Admin. */
void front_list_deployments(ask_t *take_ask);
void front_list_replicas(ask_t *take_ask);
void front_status(ask_t *take_ask);
void front_adopt(ask_t *take_ask);
void front_list_hosts(ask_t *take_ask);
void front_drain(ask_t *take_ask);

/* The deployment that a request names, or the only one; STATUS_NOT_FOUND, or STATUS_UNREACHABLE
 * while its model is not open yet. On the core thread. */
status_t front_find(shell_t *shell, const char *name, core_deployment_view_t *view_out,
                    const model_entry_t **entry_out) MUST_USE;
/* 32 lower-case hex digits. */
status_t front_check_id(const char *what, const char *id) MUST_USE;
status_t front_check_header(const Shoal__V1__JobHeader *header) MUST_USE;
/* A deployment as the public message; everything lives in the arena. */
Shoal__V1__Deployment *front_deployment(arena_t *arena,
                                        const Shoal__Cluster__V1__DeploymentRecord *record,
                                        uint64_t version, const char *message);
/* A snapshot as the public message; everything lives in the arena. */
Shoal__V1__Job *front_job(arena_t *arena, const jobs_job_t *job);

#endif
