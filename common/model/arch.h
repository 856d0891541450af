/* An architecture as a table row: how its configuration is read, which tensors it has, what shape
 * each must have and how each is cut among ranks. A further architecture is a row in arch.c, one
 * file with its reading function and its tensor list, and nothing in model.c. */
#ifndef SHOAL_COMMON_MODEL_ARCH_H
#define SHOAL_COMMON_MODEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/model.h"

/* What a side of a tensor is as long as. */
typedef enum {
    ARCH_ONE, /* a vector has one row */
    ARCH_HIDDEN,
    ARCH_VOCAB,
    ARCH_HEADS,    /* n_heads * head_dim */
    ARCH_KV_HEADS, /* n_kv_heads * head_dim */
    ARCH_FFN,
    ARCH_ROPE_PAIRS, /* rope_dim / 2 */
} arch_side_t;

typedef struct {
    model_role_t role;
    const char *name; /* of a layer's tensor, with one %u for the layer */
    arch_side_t columns, rows;
    model_cut_t cut;
    bool per_layer;
    bool optional;
    bool f32_only; /* norms and factors, which the kernels read as F32 */
} arch_tensor_t;

typedef struct {
    const char *name; /* general.architecture */
    /* Fills all of the config but architecture, vocab, tied_embeddings and rope_factors. */
    status_t (*read_config)(const gguf_t *gguf, model_config_t *config_out);
    const arch_tensor_t *tensors;
    size_t n_tensors;
} arch_t;

/* NULL when Shoal has no such architecture. */
const arch_t *arch_find(gguf_text_t name);
/* "llama, …", for the error that names what would be right. */
const char *arch_names(void);

uint64_t arch_side(const model_config_t *config, arch_side_t side);

/* Reads key "<arch>.<name>". The _or forms leave *out as it is when the key is absent. */
status_t arch_read_u32(const gguf_t *gguf, const char *arch, const char *name, uint32_t min,
                       uint32_t max, uint32_t *out) MUST_USE;
status_t arch_read_u32_or(const gguf_t *gguf, const char *arch, const char *name, uint32_t min,
                          uint32_t max, uint32_t *out) MUST_USE;
status_t arch_read_f32(const gguf_t *gguf, const char *arch, const char *name, float min, float max,
                       float *out) MUST_USE;
status_t arch_read_f32_or(const gguf_t *gguf, const char *arch, const char *name, float min,
                          float max, float *out) MUST_USE;

extern const arch_t arch_llama;

#endif
