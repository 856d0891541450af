/* What `shoal profile` makes of the ranks' traces: a table, and a file that chrome://tracing and
 * Perfetto open. */
#ifndef SHOAL_WORKER_OFFLINE_PROFILE_H
#define SHOAL_WORKER_OFFLINE_PROFILE_H

#include <stdbool.h>
#include <stdio.h>

#include "common/base/status.h"
#include "kernels/ops.h"
#include "worker/engine/trace_file.h"

enum { PROFILE_RANKS_MAX = 1024 };

typedef struct {
    uint32_t n_ranks;
    trace_event_t *events[PROFILE_RANKS_MAX];
    uint32_t n_events[PROFILE_RANKS_MAX];
    uint64_t prefill_step, decode_step; /* 0: there was none */
    kpeak_t peak; /* of the threads of one rank */
} profile_t;

/* Chooses the steps, by rank 0: of those with the most rows, and of those with `batch` rows, the
 * fastest of the later half. The first half warms the caches, and whatever else the machine does
 * can only make a step slower. */
void profile_choose(profile_t *profile, uint32_t batch);

/* The chosen steps, op by op and rank by rank; as JSON one object a row. */
void profile_print(const profile_t *profile, bool json, FILE *out);

/* Events of the chosen steps as JSON of the trace event format. */
status_t profile_write(const profile_t *profile, const char *path) MUST_USE;

#endif
