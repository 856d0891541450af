/* The client's side of the shell's tests: one coordinator with a deployed model, and calls. */
#ifndef SHOAL_TESTS_UNIT_SHELL_CLIENT_H
#define SHOAL_TESTS_UNIT_SHELL_CLIENT_H

#include "common/net/rpc_message.h"
#include "shoal/v1/admin.pb-c.h"
#include "shoal/v1/jobs.pb-c.h"
#include "tests/unit/shell/stage.h"

extern stage_t client_stage;
extern rpc_channel_t *client_channel;
extern pid_t client_coordinator;
extern const char *const client_lines[3]; /* good ones; custom ids "a", "b" and none */

/* Setup and teardown of the group. */
int client_begin(void **state);
int client_end(void **state);

void client_nap(void);
status_t client_call(const char *method, const void *request,
                     const ProtobufCMessageDescriptor *reply, ProtobufCMessage **own_out);
/* Waits until a coordinator answers. */
Shoal__V1__StatusResponse *client_status(void);
/* Waits until the named store's state contains `words`. */
void client_await_store(bool redis, const char *words);
/* Creates a job of n lines; on failure status_text() has the words. */
status_t client_create(const char *const *lines, size_t n, const char *key, char id_out[33]);
/* Get or Cancel; `own_out` may be NULL. */
status_t client_job_call(const char *method, const char *id, Shoal__V1__Job **own_out);

#endif
