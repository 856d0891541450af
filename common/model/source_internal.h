/* What the files of the source share: its inside, and how rows are made from parts. Only source*.c
 * and hf_quant*.c include it. */
#ifndef SHOAL_COMMON_MODEL_SOURCE_INTERNAL_H
#define SHOAL_COMMON_MODEL_SOURCE_INTERNAL_H

#include "common/base/memory.h"
#include "common/model/safetensors.h"
#include "common/model/source.h"

/* A tensor as a shard has it. */
typedef struct {
    const safetensors_tensor_t *tensor;
    uint32_t shard;
    bool used; /* it is a part of a logical tensor */
} source_raw_t;

struct source {
    char *path;
    bool is_directory;
    bool is_mapped; /* from files, not from a caller's memory */
    bool is_nested; /* the text part of a model that has others (hf_config.h) */
    uint64_t bytes;
    gguf_t *gguf;
    json_t *config, *generation_config;
    size_t n_shards;
    safetensors_t **shards;
    char **shard_names; /* "model-00001-of-00003.safetensors" */
    size_t n_raws;
    source_raw_t *raws; /* sorted by name */
    size_t n_tensors, tensors_capacity;
    source_tensor_t *tensors; /* sorted by name once open */
    arena_t arena;
};

/* Makes rows. The range is inside the tensor. */
typedef status_t (*source_read_fn)(const source_tensor_t *tensor, uint64_t row_first,
                                   uint64_t n_rows, uint8_t *out);

struct source_parts {
    source_read_fn read;
    const safetensors_tensor_t *weight, *scale, *zero, *group_of; /* NULL where there is none */
    uint64_t group;              /* columns that share a scale */
    uint64_t block_rows;         /* rows that share a scale */
    bool in_order;               /* row r lies in the r-th part of weight's bytes */
    uint32_t bits;               /* of a packed value */
    int32_t zero_offset;         /* added to a stored zero point; all of it without one */
};

/* Adds a logical tensor with its type, dims and name; the caller fills stored, data and parts. NULL
 * with *status_out set when a size overflows or is 0. */
source_tensor_t *source_add(source_t *source, const char *name, qtype_t type, uint32_t n_dims,
                            const uint64_t *dims, status_t *status_out);

/* NULL when absent. */
source_raw_t *source_raw(const source_t *source, const char *name);

/* Everything of a directory: files, raws, tensors. `source` is new and is closed by the caller. */
status_t source_open_directory(source_t *source) MUST_USE;

/* The same from memory. */
status_t source_use_bytes(source_t *source, const void *config, size_t config_bytes,
                          const void *weights, size_t weights_bytes) MUST_USE;

/* Makes the logical tensors of all quantized matrices and marks what they used. */
status_t hf_quant_take(source_t *source) MUST_USE;

#endif
