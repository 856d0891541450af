/* Writes a safetensors file whose tensors are known beforehand and filled row by row, in any order.
 * The format: eight bytes with the header's length, a JSON header, then the tensors' bytes.
 * Single-threaded. */
#ifndef SHOAL_WORKER_ENGINE_SAFETENSORS_WRITE_H
#define SHOAL_WORKER_ENGINE_SAFETENSORS_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

typedef enum { SAFETENSORS_F32, SAFETENSORS_I32 } safetensors_type_t; /* 4 bytes each */

typedef struct safetensors safetensors_t;

safetensors_t *safetensors_new(void);
/* Before safetensors_create. n_dims is 1 or 2; the name is plain (letters, digits, '.', '_') and
 * copied. Returns the tensor's number. */
uint32_t safetensors_add(safetensors_t *file, const char *name, safetensors_type_t type,
                         uint32_t n_dims, const uint64_t *dims);
/* Makes `path` anew, with its header; the tensors are zero. */
status_t safetensors_create(safetensors_t *file, const char *path) MUST_USE;
/* Values [first, first + n) of a tensor. */
status_t safetensors_put(safetensors_t *file, uint32_t tensor, uint64_t first, const void *values,
                         size_t n) MUST_USE;
/* Closes the file; IO when it could not be written whole. */
status_t safetensors_finish(safetensors_t *take_file) MUST_USE;
/* Closes without asking; NULL is fine. */
void safetensors_drop(safetensors_t *take_file);

#endif
