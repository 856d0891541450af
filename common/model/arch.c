/* The table of architectures and what their readers share. See arch.h. */
#include "common/model/arch.h"

#include <stdio.h>

enum { KEY_MAX = 160 };

static const arch_t *const archs[] = {&arch_llama};

const arch_t *arch_find(gguf_text_t name)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (gguf_text_is(name, archs[i]->name))
            return archs[i];
    return NULL;
}

const char *arch_names(void)
{
    return "llama";
}

uint64_t arch_side(const model_config_t *config, arch_side_t side)
{
    switch (side) {
    case ARCH_ONE: return 1;
    case ARCH_HIDDEN: return config->hidden;
    case ARCH_VOCAB: return config->vocab;
    case ARCH_HEADS: return (uint64_t)config->n_heads * config->head_dim;
    case ARCH_KV_HEADS: return (uint64_t)config->n_kv_heads * config->head_dim;
    case ARCH_FFN: return config->ffn;
    case ARCH_ROPE_PAIRS: return config->rope_dim / 2;
    }
    CHECK(false && "a known side");
    return 0;
}

static const char *full_key(char buffer[KEY_MAX], const char *arch, const char *name)
{
    int n = snprintf(buffer, KEY_MAX, "%s.%s", arch, name);
    CHECK(n > 0 && n < KEY_MAX);
    return buffer;
}

status_t arch_read_u32(const gguf_t *gguf, const char *arch, const char *name, uint32_t min,
                       uint32_t max, uint32_t *out)
{
    char key[KEY_MAX];
    status_t status = gguf_read_u32(gguf, full_key(key, arch, name), min, max, out);
    /* To a caller of model_open, NOT_FOUND means that there is no file; a file without a key that
     * it needs is a bad file. */
    return status == STATUS_NOT_FOUND ? STATUS_INVALID : status;
}

status_t arch_read_u32_or(const gguf_t *gguf, const char *arch, const char *name, uint32_t min,
                          uint32_t max, uint32_t *out)
{
    char key[KEY_MAX];
    if (gguf_find(gguf, full_key(key, arch, name)) == NULL)
        return STATUS_OK;
    return gguf_read_u32(gguf, key, min, max, out);
}

status_t arch_read_f32(const gguf_t *gguf, const char *arch, const char *name, float min, float max,
                       float *out)
{
    char key[KEY_MAX];
    status_t status = gguf_read_f32(gguf, full_key(key, arch, name), min, max, out);
    return status == STATUS_NOT_FOUND ? STATUS_INVALID : status;
}

status_t arch_read_f32_or(const gguf_t *gguf, const char *arch, const char *name, float min,
                          float max, float *out)
{
    char key[KEY_MAX];
    if (gguf_find(gguf, full_key(key, arch, name)) == NULL)
        return STATUS_OK;
    return gguf_read_f32(gguf, key, min, max, out);
}
