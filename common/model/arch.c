/* The table of architectures, the sides of their tensors, and the values that both formats have
 * under different names. See arch.h. */
#include "common/model/arch.h"

#include <stdio.h>
#include <string.h>

enum { KEY_MAX = 160 };

static const arch_t *const archs[] = {
    &arch_llama,  &arch_mixtral, &arch_qwen2,   &arch_qwen2moe,  &arch_qwen3,       &arch_qwen3moe,
    &arch_gemma2, &arch_gemma3,  &arch_gpt_oss, &arch_deepseek2, &arch_deepseek_v3,
    &arch_deepseek_v32, &arch_deepseek_v4,
};
enum { N_ARCHS = sizeof archs / sizeof *archs };

const arch_t *arch_find_gguf(gguf_text_t name)
{
    for (size_t i = 0; i < N_ARCHS; i++)
        if (archs[i]->gguf != NULL && gguf_text_is(name, archs[i]->gguf))
            return archs[i];
    return NULL;
}

const arch_t *arch_find_hf(const char *model_type)
{
    for (size_t i = 0; i < N_ARCHS; i++)
        for (size_t k = 0; k < ARCH_HF_TYPES_MAX && archs[i]->hf[k] != NULL; k++)
            if (strcmp(archs[i]->hf[k], model_type) == 0)
                return archs[i];
    return NULL;
}

static void append(char *list, size_t size, const char *separator, const char *name)
{
    size_t n = strlen(list);
    snprintf(list + n, size - n, "%s%s", n > 0 ? separator : "", name);
}

const char *arch_names(bool hf)
{
    static _Thread_local char list[512];
    list[0] = 0;
    for (size_t i = 0; i < N_ARCHS; i++) {
        if (!hf && archs[i]->gguf != NULL)
            append(list, sizeof list, ", ", archs[i]->gguf);
        for (size_t k = 0; hf && k < ARCH_HF_TYPES_MAX && archs[i]->hf[k] != NULL; k++)
            append(list, sizeof list, ", ", archs[i]->hf[k]);
    }
    return list;
}

const char *model_architectures(void)
{
    static _Thread_local char list[1024];
    list[0] = 0;
    for (size_t i = 0; i < N_ARCHS; i++) {
        append(list, sizeof list, "\n", archs[i]->name);
        append(list, sizeof list, " ", archs[i]->gguf != NULL ? archs[i]->gguf : "-");
        for (size_t k = 0; k < ARCH_HF_TYPES_MAX && archs[i]->hf[k] != NULL; k++)
            append(list, sizeof list, k == 0 ? " " : ",", archs[i]->hf[k]);
    }
    return list;
}

static uint64_t compressed_side(const model_config_t *config, arch_side_t side)
{
    const model_compressed_t *compressed = &config->compressed;
    uint64_t streams = config->streams.n;
    switch (side) {
    case ARCH_GROUP_IN:
        return (uint64_t)config->n_heads / compressed->groups * config->head_dim;
    case ARCH_GROUPS_OUT: return (uint64_t)compressed->groups * compressed->group_rank;
    case ARCH_TWO_HEAD_DIM: return 2ull * config->head_dim;
    case ARCH_TWO_INDEX_DIM: return 2ull * config->index.head_dim;
    case ARCH_OVERLAP_RATE: return compressed->overlap_rate;
    case ARCH_STRIDE_RATE: return compressed->stride_rate;
    case ARCH_STREAMS: return streams;
    case ARCH_STREAMS_HIDDEN: return streams * config->hidden;
    case ARCH_MIX: return (2 + streams) * streams;
    case ARCH_THREE: return 3;
    default: CHECK(false && "a known side"); return 0;
    }
}

static uint64_t latent_side(const model_config_t *config, arch_side_t side)
{
    const model_latent_t *latent = &config->latent;
    uint64_t heads = config->n_heads;
    switch (side) {
    case ARCH_Q_RANK: return latent->q_rank + config->compressed.q_rank; /* one of them is 0 */
    case ARCH_KV_RANK: return latent->kv_rank;
    case ARCH_KV_A: return (uint64_t)latent->kv_rank + latent->rope_dim;
    case ARCH_Q_LATENT: return heads * (latent->nope_dim + latent->rope_dim);
    case ARCH_KV_B: return heads * (latent->nope_dim + latent->value_dim);
    case ARCH_V_LATENT: return heads * latent->value_dim;
    case ARCH_NOPE: return latent->nope_dim;
    case ARCH_VALUE: return latent->value_dim;
    default: return compressed_side(config, side);
    }
}

uint64_t arch_side(const model_config_t *config, arch_side_t side)
{
    switch (side) {
    case ARCH_ONE: return 1;
    case ARCH_HIDDEN: return config->hidden;
    case ARCH_VOCAB: return config->vocab;
    case ARCH_Q: return (uint64_t)config->n_heads * config->head_dim;
    case ARCH_KV: return (uint64_t)config->n_kv_heads * config->head_dim;
    case ARCH_N_HEADS: return config->n_heads;
    case ARCH_HEAD_DIM: return config->head_dim;
    case ARCH_FFN: return config->ffn;
    case ARCH_ROPE_PAIRS: return config->ropes[0].dim / 2;
    case ARCH_INDEX_Q: return (uint64_t)config->index.n_heads * config->index.head_dim;
    case ARCH_INDEX_HEADS: return config->index.n_heads;
    case ARCH_INDEX_DIM: return config->index.head_dim;
    case ARCH_EXPERTS: return config->experts.n;
    case ARCH_EXPERTS_USED: return config->experts.n_used;
    case ARCH_EXPERT_FFN: return config->experts.ffn;
    case ARCH_EXPERT_GATE_UP: return 2ull * config->experts.ffn;
    case ARCH_SHARED_FFN: return config->experts.shared_ffn;
    default: return latent_side(config, side);
    }
}

bool arch_layer_has(const model_config_t *config, uint32_t index, arch_when_t when)
{
    const model_layer_t *layer = &config->layers[index];
    bool latent = layer->attention == MODEL_ATTENTION_LATENT;
    bool routed = layer->ffn == MODEL_FFN_EXPERTS;
    bool compressed = layer->attention == MODEL_ATTENTION_COMPRESSED;
    switch (when) {
    case ARCH_ONCE: return index == 0;
    case ARCH_LAYER: return true;
    case ARCH_GROUPED: return layer->attention == MODEL_ATTENTION_GROUPED;
    case ARCH_LATENT: return latent;
    case ARCH_LATENT_PLAIN_Q: return latent && config->latent.q_rank == 0;
    case ARCH_LATENT_RANK_Q: return latent && config->latent.q_rank != 0;
    case ARCH_LATENT_WHOLE: return latent && !config->latent.split;
    case ARCH_LATENT_SPLIT: return latent && config->latent.split;
    case ARCH_COMPRESSED: return compressed;
    case ARCH_OVERLAP: return compressed && layer->rate > 0 && layer->indexed;
    case ARCH_STRIDE: return compressed && layer->rate > 0 && !layer->indexed;
    case ARCH_INDEXED: return layer->indexed;
    case ARCH_DENSE: return !routed;
    case ARCH_ROUTED: return routed;
    case ARCH_SHARED: return routed && config->experts.shared_ffn != 0;
    case ARCH_HASHED: return routed && layer->hashed;
    case ARCH_CHOSEN: return routed && !layer->hashed;
    }
    return false;
}

/* --- values --- */

static const char *full_key(char buffer[KEY_MAX], const arch_reader_t *r, const char *name)
{
    int n = snprintf(buffer, KEY_MAX, "%s.%s", r->prefix, name);
    CHECK(n > 0 && n < KEY_MAX);
    return buffer;
}

/* Whether a value is there, in whichever format; `key` gets the GGUF's key. */
static bool has(const arch_reader_t *r, const char *gguf, const char *hf, char key[KEY_MAX])
{
    if (r->gguf != NULL)
        return gguf != NULL && gguf_find(r->gguf, full_key(key, r, gguf)) != NULL;
    if (hf == NULL)
        return false;
    const json_t *value = json_object_get(r->config, hf);
    return value != NULL && !json_is_null(value);
}

static status_t missing(const arch_reader_t *r, const char *gguf, const char *hf)
{
    if (r->gguf != NULL)
        return fail(STATUS_INVALID, "%s: key %s.%s is missing", r->where, r->prefix, gguf);
    return fail(STATUS_INVALID, "%s: \"%s\" is missing", r->where, hf);
}

status_t arch_u32_or(const arch_reader_t *r, const char *gguf, const char *hf, uint32_t min,
                     uint32_t max, uint32_t *out)
{
    char key[KEY_MAX];
    uint64_t value;
    if (!has(r, gguf, hf, key))
        return STATUS_OK;
    if (r->gguf != NULL)
        return gguf_read_u32(r->gguf, key, min, max, out);
    TRY(json_get_u64(r->config, r->where, hf, min, max, &value));
    *out = (uint32_t)value;
    return STATUS_OK;
}

status_t arch_u32(const arch_reader_t *r, const char *gguf, const char *hf, uint32_t min,
                  uint32_t max, uint32_t *out)
{
    char key[KEY_MAX];
    return has(r, gguf, hf, key) ? arch_u32_or(r, gguf, hf, min, max, out) : missing(r, gguf, hf);
}

status_t arch_f32_or(const arch_reader_t *r, const char *gguf, const char *hf, float min, float max,
                     float *out)
{
    char key[KEY_MAX];
    double value;
    if (!has(r, gguf, hf, key))
        return STATUS_OK;
    if (r->gguf != NULL)
        return gguf_read_f32(r->gguf, key, min, max, out);
    TRY(json_get_number(r->config, r->where, hf, &value));
    if (!(value >= (double)min && value <= (double)max))
        return fail(STATUS_INVALID, "%s: \"%s\" is %g; %g to %g would be right", r->where, hf,
                    value, (double)min, (double)max);
    *out = (float)value;
    return STATUS_OK;
}

status_t arch_f32(const arch_reader_t *r, const char *gguf, const char *hf, float min, float max,
                  float *out)
{
    char key[KEY_MAX];
    return has(r, gguf, hf, key) ? arch_f32_or(r, gguf, hf, min, max, out) : missing(r, gguf, hf);
}

status_t arch_bool_or(const arch_reader_t *r, const char *gguf, const char *hf, bool *out)
{
    char key[KEY_MAX];
    if (!has(r, gguf, hf, key))
        return STATUS_OK;
    if (r->gguf != NULL)
        return gguf_read_bool(r->gguf, key, out);
    return json_get_bool(r->config, r->where, hf, out);
}

status_t arch_refuse(const arch_reader_t *r, const char *gguf, const char *hf)
{
    char key[KEY_MAX];
    float value = 0;
    if (!has(r, gguf, hf, key))
        return STATUS_OK;
    if (r->gguf == NULL && json_is_boolean(json_object_get(r->config, hf))) {
        value = json_is_true(json_object_get(r->config, hf)) ? 1 : 0;
    } else if (r->gguf != NULL && gguf_find(r->gguf, key)->kind != GGUF_F32) {
        uint32_t integer = 0;
        TRY(gguf_read_u32(r->gguf, key, 0, UINT32_MAX, &integer));
        value = (float)integer;
    } else {
        TRY(arch_f32_or(r, gguf, hf, -1e30f, 1e30f, &value));
    }
    if (value == 0)
        return STATUS_OK;
    if (r->gguf != NULL)
        return fail(STATUS_UNSUPPORTED, "%s: key %s is %g; only models without it are supported",
                    r->where, key, (double)value);
    return fail(STATUS_UNSUPPORTED, "%s: \"%s\" is %g; only models without it are supported",
                r->where, hf, (double)value);
}

status_t arch_text_is(const arch_reader_t *r, const char *hf, const char *const *allowed)
{
    const char *value = NULL;
    if (r->gguf != NULL)
        return STATUS_OK;
    TRY(json_may_text(r->config, r->where, hf, &value, NULL));
    if (value == NULL)
        return STATUS_OK;
    for (size_t i = 0; allowed[i] != NULL; i++)
        if (strcmp(value, allowed[i]) == 0)
            return STATUS_OK;
    return fail(STATUS_UNSUPPORTED, "%s: \"%s\" is \"%s\"; \"%s\" is supported", r->where, hf, value,
                allowed[0]);
}
