/* A source of which only the configuration is there: enough to say what a model is and what it
 * would take, before anybody has downloaded its weights. It has no tensors (a real source always
 * has some), so nothing can be read from it. */
#ifndef SHOAL_COMMON_MODEL_SOURCE_OUTLINE_H
#define SHOAL_COMMON_MODEL_SOURCE_OUTLINE_H

#include "common/model/source.h"

/* `path` is a config.json, or the directory that holds one. STATUS_NOT_FOUND when there is none.
 * source_path() is the file's. */
status_t source_outline_open(const char *path, source_t **own_out) MUST_USE;
/* Over a config.json in memory. */
status_t source_outline_open_bytes(const char *path, const void *config, size_t n,
                                   source_t **own_out) MUST_USE;

/* The row types that weights of such a model have once they are read (source.h), as far as the
 * configuration says: "torch_dtype" and "quantization_config". Which modules a quantizer left out
 * stands there in many dialects; the usual ones (embedding, head, router, norms) are assumed. */
typedef struct {
    qtype_t plain;   /* of what is not quantized */
    qtype_t matrix;  /* of the matrices of layers */
    qtype_t experts; /* of the experts' matrices */
    /* Instead of the last two where a matrix has no more columns than a group has values, which may
     * make another type of it; 0 where that does not matter. */
    uint64_t one_group_max;
    qtype_t one_group;
} source_outline_types_t;
status_t source_outline_types(const source_t *source, source_outline_types_t *out) MUST_USE;
/* The type of a layer's matrix of so many columns. */
qtype_t source_outline_matrix(const source_outline_types_t *types, bool expert, uint64_t columns);

#endif
