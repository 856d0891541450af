/* A whole file in memory, read-only, shared with the page cache. What the weight files have in
 * common: pages come in as they are touched, and a file that somebody shortens later raises SIGBUS
 * (gguf.h says why that is left so). */
#ifndef SHOAL_COMMON_MODEL_MAPPING_H
#define SHOAL_COMMON_MODEL_MAPPING_H

#include <stdint.h>

#include "common/base/status.h"

/* STATUS_NOT_FOUND, STATUS_IO, or STATUS_INVALID for what is no regular file (a FIFO is never
 * waited for) or is empty; `wanted` ends the words: "a model is one GGUF file". */
status_t mapping_open(const char *path, const char *wanted, void **own_out,
                      uint64_t *bytes_out) MUST_USE;
void mapping_close(void *take_mapping, uint64_t bytes); /* NULL is fine */

#endif
