/* One real agent with its ranks and a real etcd, and a coordinator's part played by the test: plans
 * are put, records read, sequences admitted over gRPC. */
#ifndef SHOAL_TESTS_UNIT_AGENT_AGENT_PROCESS_H
#define SHOAL_TESTS_UNIT_AGENT_AGENT_PROCESS_H

#include "etcd_server.h"
#include "shoal/cluster/v1/state.pb-c.h"
#include "shoal/worker/v1/engine.pb-c.h"

typedef struct {
    etcd_server_t server;
    rpc_io_t *io;
    etcd_t *etcd;
    char data[64], log[80];
    pid_t agent;
} cluster_t;

/* etcd, a client, and an agent "a" that is registered. `failpoints` may be NULL. */
void cluster_start(cluster_t *cluster, const char *failpoints);
/* Starts the agent anew on the same data; returns without waiting for it. */
void cluster_spawn_agent(cluster_t *cluster, const char *failpoints);
/* The exit code of the agent, or 128 + signal. */
int cluster_wait_agent(cluster_t *cluster);
void cluster_end(cluster_t *cluster);

/* An arbitrary program run to its end; its exit code. */
int run_agent_to_its_end(const char *const *arguments);

/* Puts the plan of smol/0 and its assignment to host a in one transaction; returns its epoch. */
uint64_t put_plan(cluster_t *cluster, const char *digest, uint32_t tp, uint32_t stages);
void remove_plan(cluster_t *cluster);
char *model_digest_of_host(cluster_t *cluster);

/* Waits until the agent shows that so much of an epoch's weights is loaded. */
void wait_loading(cluster_t *cluster, uint64_t epoch, uint32_t percent);
/* Waits for the record of this epoch; to be freed with its own function. */
Shoal__Cluster__V1__ActiveRecord *wait_active(cluster_t *cluster, uint64_t epoch);
Shoal__Cluster__V1__FailureRecord *wait_failed(cluster_t *cluster, uint64_t epoch);
int64_t pid_of_rank(cluster_t *cluster, uint64_t epoch, uint32_t rank);
bool is_alive(int64_t pid);
/* Whether a key exists. */
bool has_key(cluster_t *cluster, const char *key);

/* ---- a coordinator's stream to a leader ---- */

typedef struct {
    rpc_channel_t *channel;
    rpc_stream_t *stream;
    uint64_t credit;
    char identity[128];
} attached_t;

/* Connects and says hello; the stream's own status when it is refused. */
status_t attach(cluster_t *cluster, const char *leader, const char *identity, uint32_t version,
                attached_t *out);
void detach(attached_t *attached);
void admit(attached_t *attached, const char *session, uint32_t max_tokens, uint32_t from_n,
           bool attach_only);

typedef struct {
    uint32_t ids[4096];
    uint32_t n;
    bool ended, has_admitted;
    bool joining; /* outputs from before the attachment may still come in; they are passed over */
    int reason;
    char code[32];
    size_t n_admitted_prompt;
} text_t;
/* Reads until the session has `at_least` ids or has ended; positions must follow each other. */
void read_text(attached_t *attached, const char *session, uint32_t at_least, text_t *text);

#endif
