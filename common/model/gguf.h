/* A GGUF file (versions 2 and 3, little-endian) as an immutable handle.
 *
 * A model may be split into several files, "<stem>-00001-of-00003.gguf" and so on, whose keys
 * split.no, split.count and split.tensors.count say what each is. Opening any of them opens all: the
 * keys are the first one's, the tensors those of all in order. Each file is checked by itself, and
 * that together they are one model: no part missing, none of another model, no tensor twice, as many
 * tensors as they say.
 *
 * The file is untrusted. gguf_open checks the whole structure before anything is handed out: each
 * count against what the rest of the file could hold, each size through checked arithmetic, names
 * unique, tensors aligned, inside the file and not overlapping. Memory used is O(file size), so a
 * small file cannot claim a large allocation. What the keys mean is the business of model.h.
 *
 * The file is mapped read-only and pages come in as they are touched. The checks hold for the
 * length at open: if somebody shortens the file later, touching the lost pages raises SIGBUS, which
 * is the fault of that rank (the process dies and its replica forms anew); the reader cannot turn
 * it into an error. Models are therefore placed by renaming and never changed in place.
 *
 * A handle is read-only after open, so any number of threads may share it. All pointers handed out
 * are borrowed from it until gguf_close. Every error is STATUS_INVALID with the path, the object
 * and what would be right, except STATUS_NOT_FOUND (no such file) and STATUS_IO. */
#ifndef SHOAL_COMMON_MODEL_GGUF_H
#define SHOAL_COMMON_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/qtype.h"
#include "common/base/status.h"

enum {
    GGUF_KEYS_MAX = 65536,
    GGUF_TENSORS_MAX = 262144,
    GGUF_KEY_BYTES_MAX = 65535, /* the format's own limit */
    GGUF_TENSOR_NAME_BYTES_MAX = 63,
    GGUF_DIMS_MAX = 4,
    GGUF_ALIGNMENT_DEFAULT = 32,
    GGUF_ALIGNMENT_MAX = 65536,
    GGUF_FILES_MAX = 4096, /* of one model */
};

typedef struct gguf gguf_t;

/* Bytes inside the mapping; not followed by a NUL. */
typedef struct {
    const char *data;
    size_t size;
} gguf_text_t;

typedef enum {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_TEXT = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
} gguf_kind_t;

/* One key and its value. Read it through the functions below; `data` has no alignment. */
typedef struct {
    gguf_text_t key; /* valid UTF-8 without NUL */
    gguf_kind_t kind;
    gguf_kind_t element;          /* of arrays; never GGUF_ARRAY (nested arrays are refused) */
    uint64_t count;               /* of arrays; 1 otherwise */
    const uint8_t *data;          /* the first element; of a text, its bytes */
    uint64_t bytes;               /* of a text */
    const uint64_t *text_offsets; /* of text arrays: where in the file element i's length is */
    const uint8_t *file;
} gguf_value_t;

typedef struct {
    const char *name; /* NUL-terminated; at most GGUF_TENSOR_NAME_BYTES_MAX bytes */
    qtype_t type;
    uint32_t n_dims;              /* 1 to 4 */
    uint64_t dims[GGUF_DIMS_MAX]; /* dims[0] runs fastest: the K of a matmul; unused ones are 1 */
    uint64_t row_bytes;           /* of dims[0] values */
    uint64_t bytes;               /* row_bytes * dims[1] * dims[2] * dims[3] */
    uint64_t offset;              /* of the data, from the start of its file */
    const uint8_t *data;          /* aligned to gguf_alignment() */
} gguf_tensor_t;

status_t gguf_open(const char *path, gguf_t **own_out) MUST_USE;
/* The same checks over bytes in memory, which must stay until gguf_close; `path` names them in
 * errors. Tests and the fuzzer use it. `bytes` must be aligned to 8. One part of a split model is
 * refused: the others are files. */
status_t gguf_open_bytes(const char *path, const void *bytes, size_t n, gguf_t **own_out) MUST_USE;
void gguf_close(gguf_t *take_gguf);

/* Of the first file, which has the keys. */
const char *gguf_path(const gguf_t *gguf);
/* Of all files. */
uint64_t gguf_file_bytes(const gguf_t *gguf);
/* A file as it lies in memory; there is more than one of a split model. i < gguf_n_files. */
typedef struct {
    const char *path;
    const uint8_t *bytes;
    uint64_t n;
} gguf_file_t;
size_t gguf_n_files(const gguf_t *gguf);
gguf_file_t gguf_file_at(const gguf_t *gguf, size_t i);
uint32_t gguf_version(const gguf_t *gguf);
uint32_t gguf_alignment(const gguf_t *gguf);

/* --- keys --- */

/* NULL when the file has no such key. O(log keys). */
const gguf_value_t *gguf_find(const gguf_t *gguf, const char *key);

/* Typed reads. An absent key is STATUS_NOT_FOUND naming it; a value of another kind or outside
 * [min, max] is STATUS_INVALID with key, value and range. Integers of any width and sign are
 * accepted where they fit; F64 is accepted as F32 when it stays finite. NaN and Inf are refused. */
status_t gguf_read_u32(const gguf_t *gguf, const char *key, uint32_t min, uint32_t max,
                       uint32_t *out) MUST_USE;
status_t gguf_read_f32(const gguf_t *gguf, const char *key, float min, float max,
                       float *out) MUST_USE;
status_t gguf_read_bool(const gguf_t *gguf, const char *key, bool *out) MUST_USE;
status_t gguf_read_text(const gguf_t *gguf, const char *key, gguf_text_t *out) MUST_USE;
/* An array whose elements are of `element` (GGUF_TEXT, GGUF_F32, …; exact). For integer lists ask
 * with GGUF_I64: any integer element kind is then accepted. */
status_t gguf_read_array(const gguf_t *gguf, const char *key, gguf_kind_t element,
                         const gguf_value_t **out) MUST_USE;

/* Element i < value->count of an array, of matching kind (both CHECKed). O(1). */
gguf_text_t gguf_array_text(const gguf_value_t *value, uint64_t i);
int64_t gguf_array_integer(const gguf_value_t *value, uint64_t i); /* at most INT64_MAX */
float gguf_array_f32(const gguf_value_t *value, uint64_t i);

bool gguf_text_is(gguf_text_t text, const char *other);

/* --- tensors --- */

size_t gguf_n_tensors(const gguf_t *gguf);
/* In the order of the files; i < gguf_n_tensors. */
const gguf_tensor_t *gguf_tensor_at(const gguf_t *gguf, size_t i);
/* NULL when absent. O(log tensors). */
const gguf_tensor_t *gguf_tensor(const gguf_t *gguf, const char *name);

/* --- names of split models (gguf_split.c) --- */

typedef struct {
    size_t stem; /* bytes of the path before "-00002-of-00003.gguf" */
    uint32_t part, count; /* from 1 */
} gguf_part_name_t;

/* Whether the path's last part is the name of a part. *out may be NULL. */
bool gguf_part_name(const char *path, gguf_part_name_t *out);
/* Of how many files the model at `path` is by these names; 1 for every other path. With more than
 * one *own_home_out is the path of a part under the name that has the others beside it: `path`, or,
 * when they are not there and it is a link, what it leads to; otherwise NULL. The folder is looked at
 * here and nowhere else, so what follows speaks of one state of it. */
uint32_t gguf_parts(const char *path, char **own_home_out);
/* Where part 1, 2, … of that model is, or would be: by the name alone. To be freed. */
char *gguf_part_beside(const char *home, uint32_t part);

#endif
