/* One safetensors file as an immutable list of tensors: a length, a JSON header, and the data.
 *
 * The file is untrusted. safetensors_open checks everything before it hands anything out: the
 * header's length against the format's limit and the file, the JSON against json.h's limits, each
 * tensor's length against its shape and type through checked arithmetic, and that the tensors cover
 * the data exactly, without a hole, an overlap or bytes behind the last. Memory is O(header).
 *
 * The file is mapped read-only; what gguf.h says about files that are shortened later holds here
 * too. Read-only after open: any thread. Every error is STATUS_INVALID with the path, the tensor
 * and what would be right, except STATUS_NOT_FOUND (no such file) and STATUS_IO. */
#ifndef SHOAL_COMMON_MODEL_SAFETENSORS_H
#define SHOAL_COMMON_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    SAFETENSORS_HEADER_BYTES_MAX = 100 * 1000 * 1000, /* as the format's own library has it */
    SAFETENSORS_TENSORS_MAX = 262144,
    SAFETENSORS_DIMS_MAX = 8,
    SAFETENSORS_NAME_BYTES_MAX = 1024,
};

typedef enum {
    SAFETENSORS_F64,
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_F8_E8M0,
    SAFETENSORS_I64,
    SAFETENSORS_I32,
    SAFETENSORS_I16,
    SAFETENSORS_I8,
    SAFETENSORS_U64,
    SAFETENSORS_U32,
    SAFETENSORS_U16,
    SAFETENSORS_U8,
    SAFETENSORS_BOOL,
    SAFETENSORS_N_DTYPES,
} safetensors_dtype_t;

typedef struct {
    const char *name; /* no control characters */
    safetensors_dtype_t dtype;
    uint32_t n_dims;                      /* 0 for a scalar */
    uint64_t shape[SAFETENSORS_DIMS_MAX]; /* the last one runs fastest; unused ones are 1 */
    uint64_t n_values;
    uint64_t bytes;
    uint64_t offset;     /* of the data, from the start of the file */
    const uint8_t *data; /* no alignment is promised by the format */
} safetensors_tensor_t;

typedef struct safetensors safetensors_t;

status_t safetensors_open(const char *path, safetensors_t **own_out) MUST_USE;
/* The same checks over bytes in memory, which must stay until safetensors_close; `path` names them
 * in errors. */
status_t safetensors_open_bytes(const char *path, const void *bytes, size_t n,
                                safetensors_t **own_out) MUST_USE;
void safetensors_close(safetensors_t *take_file); /* NULL is fine */

const char *safetensors_path(const safetensors_t *file);
uint64_t safetensors_file_bytes(const safetensors_t *file);
/* The whole file as it lies in memory. */
const uint8_t *safetensors_bytes(const safetensors_t *file);

size_t safetensors_n_tensors(const safetensors_t *file);
/* In the order of the data; i < safetensors_n_tensors. */
const safetensors_tensor_t *safetensors_at(const safetensors_t *file, size_t i);
/* NULL when absent. O(log tensors). */
const safetensors_tensor_t *safetensors_find(const safetensors_t *file, const char *name);

/* "BF16", as headers write it. */
const char *safetensors_dtype_name(safetensors_dtype_t dtype);
uint32_t safetensors_dtype_bytes(safetensors_dtype_t dtype);

#endif
