/* What the files of the GGUF reader share: the handle's inside and the words for names that come
 * from an untrusted file. Only gguf*.c include it. */
#ifndef SHOAL_COMMON_MODEL_GGUF_INTERNAL_H
#define SHOAL_COMMON_MODEL_GGUF_INTERNAL_H

#include "common/base/memory.h"
#include "common/model/gguf.h"

struct gguf {
    const uint8_t *bytes;
    uint64_t size;
    void *mapping; /* NULL when the bytes are the caller's */
    char *path;
    char *label; /* the path as errors show it: its end, when it is long */
    uint32_t version;
    uint32_t alignment;
    arena_t arena;
    size_t n_values;
    gguf_value_t *values;       /* in the order of the file */
    gguf_value_t **by_key;      /* sorted by key */
    size_t n_tensors;
    gguf_tensor_t *tensors;     /* in the order of the file */
    gguf_tensor_t **by_name;    /* sorted by name */
    size_t n_more;
    gguf_t **more;              /* own; of a split model's first file, the others in order */
};

/* A name made fit to print: cut, and without control characters, which could forge log lines. */
typedef struct {
    char text[72];
} gguf_shown_t;
gguf_shown_t gguf_show(const char *data, uint64_t size);

const char *gguf_kind_name(gguf_kind_t kind);
/* Bytes of one element; 0 for texts, arrays and unknown kinds. */
uint32_t gguf_kind_bytes(uint32_t kind);

/* Fills the handle from its bytes: everything that gguf.h promises to check. */
status_t gguf_parse(gguf_t *gguf) MUST_USE;

/* One file by itself. */
status_t gguf_open_file(const char *path, gguf_t **own_out) MUST_USE;
/* Whether the file says that it is one of several. */
bool gguf_is_part(const gguf_t *gguf);
/* Opens the others and gives the first one's handle with all tensors. */
status_t gguf_open_parts(gguf_t *take_part, gguf_t **own_out) MUST_USE;

#endif
