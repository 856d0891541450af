/* What the commands about jobs share: how a job and a result look, and waiting for a job's end. */
#ifndef SHOAL_CLI_JOB_VIEW_H
#define SHOAL_CLI_JOB_VIEW_H

#include <jansson.h>

#include "cli/client.h"
#include "shoal/v1/jobs.pb-c.h"

json_t *job_json(const Shoal__V1__Job *job);
/* {index, custom_id, status, text, ids, finish_reason, usage, seed, text_identity | error}. */
json_t *result_json(const Shoal__V1__ItemResult *result);

/* How many of its items have ended, in whatever way. */
uint64_t job_n_done(const Shoal__V1__Job *job);

/* Prints a job as a table or as JSON. */
void job_print(const Shoal__V1__Job *job, bool json);

/* Follows a job until it ends, with a progress bar on standard error; goes on at another coordinator
 * when this one is gone. The job's last state is released with rpc_message_free. */
status_t job_watch(client_t *client, const char *id, Shoal__V1__Job **own_out) MUST_USE;

/* Calls `fn` for each result, in the order of completion; with `follow` until the job ends. Each
 * result comes exactly once, also over reconnects. `fn` takes the result over. */
typedef status_t (*job_result_fn)(void *arg, Shoal__V1__ItemResult *take_result);
status_t job_results(client_t *client, const char *id, bool follow, job_result_fn fn, void *arg) MUST_USE;

/* STATUS_OK for SUCCEEDED, else a failure that names the state. */
status_t job_verdict(const Shoal__V1__Job *job) MUST_USE;

#endif
