/* A rank's model, stage and memory: what outlives its epochs. See rank.h. */
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/model/kv_type.h"
#include "kernels/numerics.h"
#include "worker/engine/draft_model.h"
#include "worker/engine/kv.h"
#include "worker/engine/rank_internal.h"
#include "worker/engine/trace_file.h"

#define TRACE_EVENTS 65536u /* some 6 MB: a hundred steps of thirty layers */

static status_t make_identity(rank_t *rank)
{
    rank_config_t *c = &rank->config;
    if (!c->model_digest) {
        TRY(model_digest(c->model_path, c->cache_dir, rank->digest));
        c->model_digest = rank->digest;
    }
    model_identity_t identity = {
        .model_digest = c->model_digest,
        .activations = c->activations_f32 ? "f32" : "native",
        .kv_type = kv_type_name(c->kv, c->activations_f32),
        .numerics_version = NUMERICS_VERSION,
        .backend = "cpu",
        .adapter = "",
        .quantize = c->quantize,
    };
    model_text_identity(&identity, rank->identity);
    return STATUS_OK;
}

/* No text needs a draft model, so one that is gone or was replaced is no reason not to serve. */
static status_t open_draft(rank_t *rank)
{
    status_t status = draft_model_open(&rank->config, rank->stage->shape->vocab, &rank->draft);
    if (status == STATUS_OK || !rank->config.draft_may_fail)
        return status;
    log_warn("the rank works without its draft model: %s", status_text());
    return STATUS_OK;
}

status_t rank_open(const rank_config_t *config, rank_t **own_out)
{
    rank_t *rank = MEM_NEW(rank_t);
    rank->config = *config;
    status_t status = STATUS_OK;
    if (config->model == NULL)
        status = model_open_quantized(config->model_path, config->quantize ? config->quantize : "",
                                      &rank->own_model);
    rank->model = config->model ? config->model : rank->own_model;
    if (status == STATUS_OK) {
        rank_config_complete(&rank->config, model_config(rank->model));
        status = rank_config_check(&rank->config, model_config(rank->model));
    }
    if (status == STATUS_OK)
        status = make_identity(rank);
    if (status == STATUS_OK)
        status = stage_open(&rank->config, rank->model, &rank->stage);
    if (status == STATUS_OK && config->draft_path && config->rank == 0)
        status = open_draft(rank);
    if (status != STATUS_OK) {
        rank_close(rank);
        return status;
    }
    if (rank->stage->last)
        rank->head = head_new(rank->stage);
    rank->sampling_rank = (rank->config.stages - 1) * rank->config.tp;
    if (config->trace_path) {
        rank->stage->trace = rank->trace = trace_new(TRACE_EVENTS);
        rank->stage->ops->queue_trace(rank->stage->queue, rank->trace);
    }
    *own_out = rank;
    return STATUS_OK;
}

void rank_close(rank_t *rank)
{
    if (!rank)
        return;
    head_free(rank->head);
    draft_model_close(rank->draft);
    if (rank->trace)
        rank->stage->ops->queue_trace(rank->stage->queue, NULL);
    trace_finish(rank->trace, rank->config.trace_path);
    stage_close(rank->stage);
    model_close(rank->own_model);
    arena_release(&rank->arena);
    arena_release(&rank->result_arena);
    step_blocks_release(&rank->blocks);
    buffer_release(&rank->plan_bytes);
    buffer_release(&rank->result_bytes);
    buffer_release(&rank->row_bytes);
    free(rank);
}

const char *rank_text_identity(const rank_t *rank)
{
    return rank->identity;
}

uint64_t rank_kv_tokens(const rank_t *rank)
{
    return (uint64_t)rank->stage->n_blocks * KV_BLOCK_TOKENS * rank->stage->cut.attention_replicas;
}

uint64_t rank_weight_bytes(const rank_t *rank)
{
    return rank->stage->weight_bytes;
}

uint32_t rank_context_max(const rank_t *rank)
{
    return rank->config.context_max;
}

uint32_t rank_vocab(const rank_t *rank)
{
    return rank->stage->shape->vocab;
}

const char *rank_isa(const rank_t *rank)
{
    return rank->stage->ops->device_info(rank->stage->device).isa;
}
