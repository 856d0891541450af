/* Counting. See footprint.h. */
#include "common/model/footprint.h"

#include <stdlib.h>
#include <string.h>

#include "common/model/kv_type.h"
#include "common/model/plan.h"

/* Types beyond the table's end go into its last row: a file of more kinds than there are is told in
 * short rather than not at all. */
static void add_type(footprint_t *out, const char *name, uint64_t n, uint64_t values,
                     uint64_t bytes)
{
    uint32_t i = 0;
    while (i < out->n_types && strcmp(out->types[i].name, name) != 0)
        i++;
    if (i == FOOTPRINT_TYPES_MAX)
        i--;
    if (i == out->n_types)
        out->types[out->n_types++] = (footprint_type_t){.name = name};
    out->types[i].n_tensors += n;
    out->types[i].values += values;
    out->types[i].bytes += bytes;
}

static int by_bytes(const void *a, const void *b)
{
    const footprint_type_t *left = a, *right = b;
    if (left->bytes != right->bytes)
        return left->bytes < right->bytes ? 1 : -1;
    return strcmp(left->name, right->name);
}

static void sort_types(footprint_t *out)
{
    if (out->n_types > 0)
        qsort(out->types, out->n_types, sizeof *out->types, by_bytes);
}

static void add_source(const source_t *source, footprint_t *out)
{
    for (size_t i = 0; i < source_n_tensors(source); i++) {
        const source_tensor_t *tensor = source_tensor_at(source, i);
        add_type(out, tensor->stored, 1, tensor->rows * tensor->columns, tensor->stored_bytes);
    }
    sort_types(out);
}

void footprint_of_source(const source_t *source, footprint_t *out)
{
    *out = (footprint_t){0};
    add_source(source, out);
    for (uint32_t i = 0; i < out->n_types; i++) {
        out->parameters += out->types[i].values;
        out->bytes += out->types[i].bytes;
    }
}

/* --- weights --- */

static void add_view(const model_t *model, model_role_t role, uint32_t layer, bool outline,
                     footprint_t *out)
{
    const model_config_t *config = model_config(model);
    const model_tensor_t *view = model_tensor(model, role, layer);
    if (view == NULL || role == MODEL_ROUTER_TABLE || role == MODEL_ROPE_FACTORS)
        return;
    bool expert = role >= MODEL_EXPERT_GATE;
    uint64_t times = expert ? config->experts.n : 1, values = view->rows * view->columns;
    bool tied = role == MODEL_OUTPUT && config->tied_embeddings;
    if (!tied) {
        out->parameters += values * times;
        out->bytes += view->bytes * times;
    }
    if (role != MODEL_TOKEN_EMBD)
        out->active_parameters += values * (expert ? config->experts.n_used : 1);
    if (outline && !tied)
        add_type(out, qtype_name((uint32_t)view->type), times, values * times,
                 view->bytes * times);
}

/* --- caches --- */

static const char *cache_kind(uint8_t attention)
{
    switch ((model_attention_kind_t)attention) {
    case MODEL_ATTENTION_GROUPED: return "grouped";
    case MODEL_ATTENTION_LATENT: return "latent";
    case MODEL_ATTENTION_COMPRESSED: return "compressed";
    }
    return "unknown";
}

/* As plan.h counts it for a rank that holds all heads; a test holds the two equal. */
static uint64_t cache_bytes(const model_config_t *config, const model_layer_t *layer)
{
    uint64_t dim = config->head_dim, index = layer->indexed ? config->index.head_dim : 0;
    switch ((model_attention_kind_t)layer->attention) {
    case MODEL_ATTENTION_GROUPED: return config->n_kv_heads * plan_head_values(dim) * 2;
    case MODEL_ATTENTION_LATENT:
        return ((uint64_t)config->latent.kv_rank + config->latent.rope_dim + index) * 2;
    case MODEL_ATTENTION_COMPRESSED: break;
    }
    if (layer->rate == 0)
        return dim * 2;
    /* The position's own key, what its entry will be made from in F32 (twice as wide where entries
     * overlap; values and gates), and its part of the entry. */
    uint64_t width = layer->indexed ? 2 : 1, positions = plan_entry_positions(layer->rate);
    return dim * 2 + 2 * width * (dim + index) * sizeof(float) +
           ((dim + index) * 2 + positions - 1) / positions;
}

static void add_cache(const model_config_t *config, const model_layer_t *layer, footprint_t *out)
{
    footprint_cache_t cache = {
        .kind = cache_kind(layer->attention),
        .window = layer->window,
        .rate = layer->rate,
        .indexed = layer->indexed,
        .bytes_per_token = cache_bytes(config, layer),
    };
    uint32_t i = 0;
    for (; i < out->n_caches; i++)
        if (strcmp(out->caches[i].kind, cache.kind) == 0 && out->caches[i].window == cache.window &&
            out->caches[i].rate == cache.rate && out->caches[i].indexed == cache.indexed)
            break;
    if (i == FOOTPRINT_CACHES_MAX)
        i--; /* more kinds than any model has: told in short */
    else if (i == out->n_caches)
        out->caches[out->n_caches++] = cache;
    out->caches[i].n_layers++;
    out->kv_bytes_per_token += cache.bytes_per_token;
}

/* Of caches of codes, with their scales. */
static uint64_t code_bytes(const model_config_t *config)
{
    if (!kv_type_may_be_codes(config))
        return 0;
    return (uint64_t)config->n_layers * config->n_kv_heads *
           (plan_head_values(config->head_dim) + 2 * KV_TYPE_SCALE_BYTES);
}

void footprint_of_model(const model_t *model, footprint_t *out)
{
    const model_config_t *config = model_config(model);
    const source_t *source = model_source(model);
    bool outline = source_n_tensors(source) == 0;
    *out = (footprint_t){0};
    for (int role = 0; role < MODEL_ATTN_NORM; role++)
        add_view(model, (model_role_t)role, 0, outline, out);
    for (uint32_t layer = 0; layer < config->n_layers; layer++) {
        for (int role = MODEL_ATTN_NORM; role < MODEL_N_ROLES; role++)
            add_view(model, (model_role_t)role, layer, outline, out);
        add_cache(config, &config->layers[layer], out);
    }
    out->kv_window = plan_kv_window(config);
    out->kv_code_bytes_per_token = code_bytes(config);
    if (outline)
        sort_types(out);
    else
        add_source(source, out);
}
