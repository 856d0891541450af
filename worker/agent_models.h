/* Which models a host offers: the GGUF files and the directories with a config.json that lie under
 * --models, looked at again and again, so that one that is put there is offered without a restart. */
#ifndef SHOAL_WORKER_AGENT_MODELS_H
#define SHOAL_WORKER_AGENT_MODELS_H

#include <stdbool.h>

#include "common/base/status.h"
#include "worker/agent_host.h"

#define AGENT_MODELS_LOOK_MS 1000u

typedef struct agent_models agent_models_t;

/* Reads the comma-separated files and directories into `host` and looks at them every
 * AGENT_MODELS_LOOK_MS from then on, in a thread of its own: a digest of a large file takes
 * minutes. Digests are cached in `data_dir`. What is no readable model is named and left out. A
 * folder of models may be empty; STATUS_INVALID when a path is not there, or when only models are
 * named and none of them can be read. */
status_t agent_models_open(const char *list, const char *data_dir, agent_host_t *host,
                           agent_models_t **own_out) MUST_USE;
/* Readable when there is something to take. */
int agent_models_fd(const agent_models_t *models);
/* Puts what was found into `host` if it is new, and says whether it was. */
bool agent_models_take(agent_models_t *models, agent_host_t *host);
/* NULL is fine. Waits for a digest that is being made. */
void agent_models_close(agent_models_t *take_models);

#endif
