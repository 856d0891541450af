/* The weights of a model as one list of named tensors, whatever they are stored in: a GGUF file, or
 * a Hugging Face directory (config.json and model.safetensors, or shards with their index).
 *
 * What is listed are *logical* tensors. In a directory a quantized matrix (AWQ, GPTQ,
 * compressed-tensors, FP8 with block scales, MXFP4) stands there once, as "<module>.weight"
 * (gpt-oss: "….experts.gate_up_proj" and "….experts.down_proj"), as rows of output by columns of
 * input, in a row type of qtype.h; the parts that it is made of (qweight, scales, zeros, g_idx,
 * blocks …) do not appear. A part that belongs to no matrix is listed under its own name, so that
 * the architecture, which refuses names that it does not know, says so.
 *
 * Rows that can be used as they are stored lie at `data`, mapped read-only. The others are made by
 * source_read_rows, which serves every tensor alike. Values are exact: a converted row dequantizes
 * (qtype_dequantize_row) to the very bits that the stored format defines.
 *
 * The files are untrusted and checked whole before anything is handed out (gguf.h, safetensors.h).
 * A handle is read-only after open: any number of threads may share it. Everything handed out is
 * borrowed until source_close. STATUS_INVALID and STATUS_UNSUPPORTED name file, tensor, and what
 * would be right. */
#ifndef SHOAL_COMMON_MODEL_SOURCE_H
#define SHOAL_COMMON_MODEL_SOURCE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/qtype.h"
#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/manifest.h"

enum {
    SOURCE_SHARDS_MAX = 4096,
    SOURCE_TENSORS_MAX = 1 << 20,
};

typedef struct source source_t;
typedef struct source_parts source_parts_t;

typedef struct source_tensor {
    const char *name; /* "model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight" */
    qtype_t type;     /* of the rows; not every one is a weight (token tables are I64) */
    uint32_t n_dims;  /* 1 to 4 */
    uint64_t dims[GGUF_DIMS_MAX]; /* dims[0] = columns (K), dims[1] = rows (N), dims[2] = experts;
                                     unused ones are 1. A scalar is a vector of one value. */
    uint64_t rows;                /* dims[1] * dims[2] * dims[3]: expert e starts at e * dims[1] */
    uint64_t columns;             /* dims[0] */
    uint64_t row_bytes;
    uint64_t bytes;               /* rows * row_bytes */
    uint64_t stored_bytes;        /* that its parts take in the files */
    const char *stored;           /* how it is stored, for people: "BF16", "AWQ 4 bit" */
    const uint8_t *data;          /* row r at data + r * row_bytes; NULL: source_read_rows only */
    const source_parts_t *parts;  /* private: what the rows are made of … */
    const struct source_tensor *base; /* … or, of a view, quantized from */
} source_tensor_t;

/* `path` is a GGUF file or a directory. STATUS_NOT_FOUND when there is nothing. */
status_t source_open(const char *path, source_t **own_out) MUST_USE;
/* The same over a GGUF in memory (gguf_open_bytes). */
status_t source_open_gguf_bytes(const char *path, const void *bytes, size_t n,
                                source_t **own_out) MUST_USE;
/* The same over a directory's config.json and model.safetensors in memory, which must stay until
 * source_close. Tests and the fuzzer use it. */
status_t source_open_directory_bytes(const char *path, const void *config, size_t config_bytes,
                                     const void *weights, size_t weights_bytes,
                                     source_t **own_out) MUST_USE;
void source_close(source_t *take_source); /* NULL is fine */

const char *source_path(const source_t *source);
bool source_is_directory(const source_t *source);
/* NULL for a directory. */
const gguf_t *source_gguf(const source_t *source);
/* The parsed config.json, an object; NULL for a GGUF. */
const json_t *source_config(const source_t *source);
/* The parsed generation_config.json; NULL for a GGUF and when the directory has none. */
const json_t *source_generation_config(const source_t *source);
/* Bytes of all weight files. */
uint64_t source_bytes(const source_t *source);

size_t source_n_tensors(const source_t *source);
/* In ascending order of names (by bytes); i < source_n_tensors. */
const source_tensor_t *source_tensor_at(const source_t *source, size_t i);
/* NULL when absent. O(log tensors). */
const source_tensor_t *source_tensor(const source_t *source, const char *name);

/* Writes rows [row_first, row_first + n_rows) of tensor->row_bytes each to `out`, in tensor->type.
 * The rows must be inside the tensor (CHECKed). Many rows a call cost less a row than few where the
 * file holds the matrix turned (AWQ, GPTQ, gpt-oss). Fails only where stored values have no meaning
 * (a scale that is not finite, a zero point out of range): STATUS_INVALID with tensor and row. Any
 * thread. */
status_t source_read_rows(const source_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                          uint8_t *out) MUST_USE;

/* Whether the system fetches the neighbourhood of what is touched as well: on some disks megabytes,
 * which are other ranks' rows. It does not, unless this is called. */
void source_fetch_around(const source_t *source, bool around);
/* Nothing of the files is in this process's account any more, until it is touched again: the system
 * maps whole neighbourhoods of what is read. */
void source_forget_all(const source_t *source);
/* Rows will soon be read, so their pages may be fetched; or they will not be needed soon, and their
 * pages need not stay in this process (they come back when they are touched: nobody who still reads
 * them can notice but by the time). Nothing happens to bytes in a caller's memory. Any thread. */
void source_want_rows(const source_t *source, const source_tensor_t *tensor, uint64_t row_first,
                      uint64_t n_rows);
void source_forget_rows(const source_t *source, const source_tensor_t *tensor, uint64_t row_first,
                        uint64_t n_rows);

/* --- the seal --- */

/* Before a rank serves, it checks what it maps against the model's seal (manifest_open of
 * source_path): once what everybody reads (the configuration, the tokenizer's files, the headers of
 * all weight files), and the rows that it takes of each tensor, before or after reading them. The
 * seal remembers what was right, so neighbouring rows cost nothing more. STATUS_INVALID names the
 * file and the bytes. Any thread. */
status_t source_verify_files(const source_t *source, const manifest_t *manifest) MUST_USE;
status_t source_verify_rows(const source_t *source, const manifest_t *manifest,
                            const source_tensor_t *tensor, uint64_t row_first,
                            uint64_t n_rows) MUST_USE;

/* --- reading as another type --- */

/* Online quantization: a view of an F32, F16 or BF16 tensor whose rows are quantized as they are
 * read (qtype_quantize_row). `type` is QTYPE_Q8_0, QTYPE_Q4_0, QTYPE_Q4_1 or QTYPE_F8S. False, with
 * *view_out left alone, when the tensor is of another type or its columns are no whole blocks. The
 * view borrows `tensor`, which must stay where it is (one of source_tensor's does). */
bool source_tensor_quantized(const source_tensor_t *tensor, qtype_t type,
                             source_tensor_t *view_out) MUST_USE;

#endif
