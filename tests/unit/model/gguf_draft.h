/* Writes GGUF files for tests: right ones, and ones that are wrong in exactly one place. A draft is
 * a list of keys and tensors that a test changes before it is turned into bytes. */
#ifndef SHOAL_TESTS_UNIT_MODEL_GGUF_DRAFT_H
#define SHOAL_TESTS_UNIT_MODEL_GGUF_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/model/gguf.h"

enum { DRAFT_KEYS_MAX = 64, DRAFT_TENSORS_MAX = 64, DRAFT_DIMS_MAX = 8 };
#define DRAFT_AUTO UINT64_MAX

typedef struct {
    char name[96];
    uint64_t name_size; /* as written before the name; the name's own length unless changed */
    uint32_t kind;
    buffer_t payload;
} draft_key_t;

typedef struct {
    char name[96];
    uint64_t name_size;
    uint32_t n_dims;
    uint64_t dims[DRAFT_DIMS_MAX];
    uint32_t type;
    uint64_t offset; /* DRAFT_AUTO: after the tensor before it */
    uint64_t bytes;  /* of data written; DRAFT_AUTO: as many as shape and type say */
} draft_tensor_t;

typedef struct {
    char magic[4];
    uint32_t version;
    uint32_t alignment; /* that the data is laid out with */
    uint64_t n_keys_claimed, n_tensors_claimed; /* DRAFT_AUTO: the real counts */
    draft_key_t keys[DRAFT_KEYS_MAX];
    uint32_t n_keys;
    draft_tensor_t tensors[DRAFT_TENSORS_MAX];
    uint32_t n_tensors;
} draft_t;

/* An empty, right file. Heap: release with draft_free. */
draft_t *draft_new(void);
/* A whole llama: one layer, hidden 32, 2 heads of 16 on 1 key/value head, ffn 32, 8 tokens. */
draft_t *draft_llama(void);
void draft_free(draft_t *take_draft);

/* Adds a key, also when one of that name is there. */
draft_key_t *draft_add_key(draft_t *draft, const char *name, uint32_t kind);
/* The key of that name; it must exist. */
draft_key_t *draft_key(draft_t *draft, const char *name);
void draft_remove_key(draft_t *draft, const char *name);
/* Replace the key of that name or add it. */
void draft_set_u32(draft_t *draft, const char *name, uint32_t value);
void draft_set_i32(draft_t *draft, const char *name, int32_t value);
void draft_set_f32(draft_t *draft, const char *name, float value);
void draft_set_bool(draft_t *draft, const char *name, bool value);
void draft_set_text(draft_t *draft, const char *name, const char *value);
/* n texts "t0", "t1", … */
void draft_set_texts(draft_t *draft, const char *name, uint64_t n);
void draft_set_i32s(draft_t *draft, const char *name, uint64_t n, int32_t value);
/* An array's head alone. */
void draft_set_array_head(draft_t *draft, const char *name, uint32_t element, uint64_t n);

draft_tensor_t *draft_add_tensor(draft_t *draft, const char *name, uint32_t type, uint64_t columns,
                                 uint64_t rows);
draft_tensor_t *draft_tensor(draft_t *draft, const char *name);
void draft_remove_tensor(draft_t *draft, const char *name);

/* The file. No padding follows the last tensor, so that every cut loses something. */
void draft_write(const draft_t *draft, buffer_t *out);

void draft_put_u32(buffer_t *out, uint32_t value);
void draft_put_u64(buffer_t *out, uint64_t value);

#endif
