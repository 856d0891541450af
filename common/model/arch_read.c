/* What most architectures read alike: sizes, heads, windows, experts. See arch.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/arch.h"

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

status_t arch_read_basics(arch_reader_t *r, const arch_basics_t *what)
{
    model_config_t *config = r->out;
    TRY(arch_u32(r, "block_count", "num_hidden_layers", 1, MODEL_LAYERS_MAX, &config->n_layers));
    TRY(arch_u32(r, "embedding_length", "hidden_size", 1, MODEL_HIDDEN_MAX, &config->hidden));
    if (what->no_ffn)
        TRY(arch_u32_or(r, "feed_forward_length", "intermediate_size", 1, MODEL_FFN_MAX,
                        &config->ffn));
    else
        TRY(arch_u32(r, "feed_forward_length", "intermediate_size", 1, MODEL_FFN_MAX,
                     &config->ffn));
    TRY(arch_u32(r, "context_length", "max_position_embeddings", 1, MODEL_CONTEXT_MAX,
                 &config->context_train));
    TRY(arch_f32(r, "attention.layer_norm_rms_epsilon", "rms_norm_eps", 1e-12f, 1e-1f,
                 &config->norm_eps));
    TRY(arch_u32(r, "attention.head_count", "num_attention_heads", 1, MODEL_HEADS_MAX,
                 &config->n_heads));
    if (r->gguf == NULL) {
        config->tied_embeddings = what->tied_default;
        TRY(arch_bool_or(r, NULL, "tie_word_embeddings", &config->tied_embeddings));
    }
    return STATUS_OK;
}

status_t arch_read_heads(arch_reader_t *r, const arch_basics_t *what)
{
    model_config_t *config = r->out;
    config->n_kv_heads = config->n_heads;
    TRY(arch_u32_or(r, "attention.head_count_kv", "num_key_value_heads", 1, config->n_heads,
                    &config->n_kv_heads));
    if (config->n_heads % config->n_kv_heads != 0)
        return fail(STATUS_INVALID, "%s: %u query heads cannot share %u key/value heads evenly",
                    r->where, config->n_heads, config->n_kv_heads);
    config->head_dim = 0;
    TRY(arch_u32_or(r, "attention.key_length", "head_dim", 2, MODEL_HEAD_DIM_MAX,
                    &config->head_dim));
    config->head_dim = or_default(config->head_dim, what->head_dim_default);
    if (config->head_dim == 0) {
        if (config->hidden % config->n_heads != 0)
            return fail(STATUS_INVALID, "%s: a hidden size of %u is no multiple of %u heads and the "
                        "size of a head is not given", r->where, config->hidden, config->n_heads);
        config->head_dim = config->hidden / config->n_heads;
    }
    if (config->head_dim % 2 != 0 || config->head_dim > MODEL_HEAD_DIM_MAX)
        return fail(STATUS_INVALID, "%s: heads of %u values; an even number up to %d would be "
                    "right", r->where, config->head_dim, MODEL_HEAD_DIM_MAX);
    uint32_t value_length = config->head_dim;
    TRY(arch_u32_or(r, "attention.value_length", "v_head_dim", 1, UINT32_MAX, &value_length));
    if (value_length != config->head_dim)
        return fail(STATUS_UNSUPPORTED, "%s: value heads of %u beside key heads of %u; only equal "
                    "ones are supported", r->where, value_length, config->head_dim);
    config->attention_scale = 1.0f / sqrtf((float)config->head_dim);
    return STATUS_OK;
}

/* "layer_types": one text a layer. */
static status_t read_layer_types(arch_reader_t *r, const json_t *types, uint32_t window)
{
    model_config_t *config = r->out;
    if (json_array_size(types) != config->n_layers)
        return fail(STATUS_INVALID, "%s: \"layer_types\" has %zu elements for %u layers", r->where,
                    json_array_size(types), config->n_layers);
    for (uint32_t i = 0; i < config->n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (type != NULL && strcmp(type, "sliding_attention") == 0) {
            if (window == 0)
                return fail(STATUS_INVALID, "%s: layer %u slides, and there is no "
                            "\"sliding_window\"", r->where, i);
            config->layers[i].window = window;
        } else if (type == NULL || strcmp(type, "full_attention") != 0) {
            return fail(STATUS_UNSUPPORTED, "%s: \"layer_types\": layer %u is \"%s\"; "
                        "sliding_attention and full_attention are supported", r->where, i,
                        type != NULL ? type : json_kind_name(json_array_get(types, i)));
        }
    }
    return STATUS_OK;
}

status_t arch_read_windows(arch_reader_t *r, uint32_t window,
                           bool (*slides)(const model_config_t *config, uint32_t layer))
{
    const json_t *types = NULL;
    if (r->gguf == NULL)
        TRY(json_may_array(r->config, r->where, "layer_types", &types));
    if (types != NULL)
        return read_layer_types(r, types, window);
    for (uint32_t i = 0; i < r->out->n_layers; i++)
        if (slides(r->out, i))
            r->out->layers[i].window = window;
    return STATUS_OK;
}

bool arch_is_draft(const char *digits, uint32_t n_layers, uint32_t n_draft)
{
    unsigned long layer = strtoul(digits, NULL, 10);
    return layer >= n_layers && layer - n_layers < n_draft;
}

status_t arch_read_experts(arch_reader_t *r)
{
    model_experts_t *experts = &r->out->experts;
    const char *hf = "num_local_experts";
    if (r->gguf == NULL && json_object_get(r->config, "num_experts") != NULL)
        hf = "num_experts";
    if (r->gguf == NULL && json_object_get(r->config, "n_routed_experts") != NULL)
        hf = "n_routed_experts";
    TRY(arch_u32(r, "expert_count", hf, 1, MODEL_EXPERTS_MAX, &experts->n));
    uint32_t used_max = experts->n < MODEL_EXPERTS_USED_MAX ? experts->n : MODEL_EXPERTS_USED_MAX;
    TRY(arch_u32(r, "expert_used_count", "num_experts_per_tok", 1, used_max, &experts->n_used));
    experts->ffn = r->out->ffn;
    TRY(arch_u32_or(r, "expert_feed_forward_length", "moe_intermediate_size", 1, MODEL_FFN_MAX,
                    &experts->ffn));
    if (experts->ffn == 0)
        return fail(STATUS_INVALID, "%s: the width of an expert is not given", r->where);
    experts->factor = 1;
    return STATUS_OK;
}
