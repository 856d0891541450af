/* What the files of the model share: its inside. Only model*.c includes it. */
#ifndef SHOAL_COMMON_MODEL_MODEL_INTERNAL_H
#define SHOAL_COMMON_MODEL_MODEL_INTERNAL_H

#include "common/model/arch.h"
#include "common/model/model.h"

enum { MODEL_N_EXPERT_ROLES = MODEL_N_ROLES - MODEL_EXPERT_GATE };

struct model {
    source_t *source;
    const arch_t *arch;
    char *name;
    model_config_t config;
    model_special_ids_t special;
    gguf_text_t chat_template;
    float *rope_factors[MODEL_ROPES_MAX];
    /* tensors[role] for those that exist once, tensors[role + layer * MODEL_N_ROLES] for the
     * others; one that is absent has no name. Of an expert role it is expert 0's view. */
    model_tensor_t *tensors;
    /* Where a directory has a tensor for each expert: (layer * MODEL_N_EXPERT_ROLES + role) *
     * n experts. NULL in models without such. */
    const source_tensor_t **experts;
    source_tensor_t *views; /* of tensors that are quantized as they are read */
    size_t n_views;
};

/* The architecture by its name in the files; its configuration, errors naming `where`. */
status_t model_find_arch(model_t *model) MUST_USE;
status_t model_read_config(model_t *model, const char *where) MUST_USE;
/* Finds every tensor of the architecture, checks shapes and refuses what nothing asks for. */
status_t model_find_tensors(model_t *model) MUST_USE;
/* What the view's bytes are, from its type, rows, columns and row_bytes. */
static inline uint64_t model_held_bytes(const model_tensor_t *view)
{
    return view->rows * qtype_held_bytes((uint32_t)view->type, view->columns, view->row_bytes);
}
/* The type that online quantization `name` gives matrices of this role; false when they keep theirs.
 * Loading and planning both ask here. */
bool model_quantize_type(const char *name, model_role_t role, qtype_t *out);
/* Takes quantized views in place of stored matrices; "" leaves all as it is. */
status_t model_quantize(model_t *model, const char *name) MUST_USE;
/* vocab and special ids. */
status_t model_read_vocab(model_t *model) MUST_USE;
status_t model_read_special(model_t *model) MUST_USE;

#endif
