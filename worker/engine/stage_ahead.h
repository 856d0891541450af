/* The first start of a sealed model: threads of their own check its tensors against the seal, in
 * the order of loading and not far ahead, while the loader packs. Who packs still asks whether its
 * rows are as sealed, and waits where that is not known yet, so nothing is made of bytes that were
 * not checked; and what is wrong is worded by who asks. SHA-256 is slower than packing on all
 * threads, and one thread would do it alone.
 *
 * Knows the model and the seal, not the stage. */
#ifndef SHOAL_WORKER_ENGINE_STAGE_AHEAD_H
#define SHOAL_WORKER_ENGINE_STAGE_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/manifest.h"
#include "common/model/model.h"

typedef struct {
    const model_t *model;       /* both borrowed until stage_ahead_end */
    const manifest_t *manifest;
    uint32_t layer_first, layer_count;
    bool has_table, has_head; /* embeddings and the head, behind the layers */
    uint32_t threads;         /* of the rank: half as many check, and none of a single one */
} stage_ahead_config_t;

typedef struct stage_ahead stage_ahead_t;

/* NULL when no thread could be started: the loader checks by itself. */
stage_ahead_t *stage_ahead_start(const stage_ahead_config_t *config);
/* The loader has so many layers; NULL is fine. What lies some layers behind them may be checked. */
void stage_ahead_reached(stage_ahead_t *ahead, uint32_t layers_done);
/* What was not begun is left unchecked. NULL is fine. */
void stage_ahead_end(stage_ahead_t *take_ahead);

#endif
