/* See stage_ahead.h. The tensors of the layers, then those of the ends, are taken by a counter. */
#include "worker/engine/stage_ahead.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "common/base/memory.h"
#include "common/model/source.h"

enum {
    AHEAD_LAYERS = 2, /* what is checked lies in memory until it is packed */
    HELPERS_MAX = 32,
    ROLES = MODEL_N_ROLES - MODEL_ATTN_NORM, /* of a layer */
};

struct stage_ahead {
    stage_ahead_config_t config;
    pthread_mutex_t lock;
    pthread_cond_t reached;
    uint64_t next;        /* item of a layer, then the two ends */
    uint64_t layers_done;
    bool ending;
    pthread_t helpers[HELPERS_MAX];
    uint32_t n_helpers;
};

/* What is not as sealed is found again by the loader, which says it. */
static void check_tensor(const stage_ahead_t *ahead, const model_tensor_t *tensor)
{
    if (tensor != NULL &&
        source_verify_rows(model_source(ahead->config.model), ahead->config.manifest,
                           tensor->source, tensor->row_first, tensor->rows) != STATUS_OK)
        return;
}

static void check_item(const stage_ahead_t *ahead, uint64_t item)
{
    const stage_ahead_config_t *config = &ahead->config;
    if (item >= (uint64_t)config->layer_count * ROLES) {
        bool is_head = item == (uint64_t)config->layer_count * ROLES;
        if (is_head ? config->has_head : config->has_table)
            check_tensor(ahead, model_tensor(config->model,
                                             is_head ? MODEL_OUTPUT : MODEL_TOKEN_EMBD, 0));
        return;
    }
    uint32_t layer = config->layer_first + (uint32_t)(item / ROLES);
    model_role_t role = (model_role_t)(MODEL_ATTN_NORM + item % ROLES);
    if (role < MODEL_EXPERT_GATE) {
        check_tensor(ahead, model_tensor(config->model, role, layer));
        return;
    }
    model_tensor_t view;
    for (uint32_t e = 0; e < model_config(config->model)->experts.n; e++)
        if (model_expert(config->model, role, layer, e, &view))
            check_tensor(ahead, &view);
}

/* False when there is none any more. */
static bool take_item(stage_ahead_t *ahead, uint64_t *out)
{
    uint64_t end = (uint64_t)ahead->config.layer_count * ROLES + 2;
    pthread_mutex_lock(&ahead->lock);
    while (!ahead->ending && ahead->next < end &&
           ahead->next / ROLES > ahead->layers_done + AHEAD_LAYERS)
        pthread_cond_wait(&ahead->reached, &ahead->lock);
    bool taken = !ahead->ending && ahead->next < end;
    if (taken)
        *out = ahead->next++;
    pthread_mutex_unlock(&ahead->lock);
    return taken;
}

static void *help(void *argument)
{
    uint64_t item;
    while (take_item(argument, &item))
        check_item(argument, item);
    return NULL;
}

stage_ahead_t *stage_ahead_start(const stage_ahead_config_t *config)
{
    stage_ahead_t *ahead = MEM_NEW(stage_ahead_t);
    uint32_t wanted = config->threads / 2 < HELPERS_MAX ? config->threads / 2 : HELPERS_MAX;
    sigset_t all, before; /* signals are for the other threads */
    ahead->config = *config;
    pthread_mutex_init(&ahead->lock, NULL);
    pthread_cond_init(&ahead->reached, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (ahead->n_helpers < wanted &&
           pthread_create(&ahead->helpers[ahead->n_helpers], NULL, help, ahead) == 0)
        ahead->n_helpers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (ahead->n_helpers > 0)
        return ahead;
    stage_ahead_end(ahead);
    return NULL;
}

void stage_ahead_reached(stage_ahead_t *ahead, uint32_t layers_done)
{
    if (ahead == NULL)
        return;
    pthread_mutex_lock(&ahead->lock);
    ahead->layers_done = layers_done;
    pthread_cond_broadcast(&ahead->reached);
    pthread_mutex_unlock(&ahead->lock);
}

void stage_ahead_end(stage_ahead_t *take_ahead)
{
    if (take_ahead == NULL)
        return;
    pthread_mutex_lock(&take_ahead->lock);
    take_ahead->ending = true;
    pthread_cond_broadcast(&take_ahead->reached);
    pthread_mutex_unlock(&take_ahead->lock);
    for (uint32_t i = 0; i < take_ahead->n_helpers; i++)
        pthread_join(take_ahead->helpers[i], NULL);
    pthread_mutex_destroy(&take_ahead->lock);
    pthread_cond_destroy(&take_ahead->reached);
    free(take_ahead);
}
