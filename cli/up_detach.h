/* `shoal up --detach`: the cluster's supervisor becomes a process of its own, and the command that
 * was typed waits on a pipe until the cluster is ready or has failed. */
#ifndef SHOAL_CLI_UP_DETACH_H
#define SHOAL_CLI_UP_DETACH_H

#include <stdbool.h>

#include "common/base/status.h"

typedef struct {
    int fd; /* the pipe's end; 0 when not detached */
} up_detach_t;

/* Forks. *parent_out is true in the process that was typed; the other has no terminal any more and
 * logs to <data_dir>/up.log. */
status_t up_detach_start(up_detach_t *detach, const char *data_dir, bool *parent_out) MUST_USE;
/* In the parent: waits for the other side's verdict and returns it; words_out has what was said. */
status_t up_detach_wait(up_detach_t *detach, char words_out[STATUS_TEXT_MAX]) MUST_USE;
/* In the other process, once: the verdict. Does nothing when not detached. */
void up_detach_ready(up_detach_t *detach, status_t status, const char *words);

#endif
