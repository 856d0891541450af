/* What a model is: an immutable handle made from one GGUF file.
 *
 * model_open checks the file's structure (gguf.h), finds the architecture in a table (arch.h),
 * reads its configuration, and finds every tensor that the architecture lists, with the shape that
 * the configuration implies. After that nothing about the file can surprise the loader: each view
 * has known shape, type and length. A tensor that the architecture does not know is refused by
 * name, because leaving it out would change the text silently.
 *
 * Read-only after open; any thread. Everything handed out is borrowed until model_close. */
#ifndef SHOAL_COMMON_MODEL_MODEL_H
#define SHOAL_COMMON_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/digest.h"
#include "common/base/qtype.h"
#include "common/base/status.h"
#include "common/model/gguf.h"

enum {
    MODEL_LAYERS_MAX = 512,
    MODEL_HEADS_MAX = 512,
    MODEL_HEAD_DIM_MAX = 512,
    MODEL_HIDDEN_MAX = 65536,
    MODEL_FFN_MAX = 262144,
    MODEL_VOCAB_MAX = 1048576,
    MODEL_CONTEXT_MAX = 1 << 24,
    MODEL_EOS_MAX = 8,
    MODEL_DIGEST_SIZE = sizeof "sha256:" - 1 + DIGEST_HEX_SIZE, /* "sha256:" + 64 digits + NUL */
};

/* Which elements of a head rotate together. GGUF files of `llama` hold the rows of attn_q and
 * attn_k permuted, so that with PAIRS_ADJACENT the result equals what the original checkpoint gives
 * with PAIRS_HALVES. Pair i of rope_dim/2 turns by position * scale * base^(-2i/rope_dim) /
 * factor[i]. */
typedef enum {
    MODEL_ROPE_PAIRS_ADJACENT, /* (2i, 2i+1) */
    MODEL_ROPE_PAIRS_HALVES,   /* (i, i + rope_dim/2) */
} model_rope_pairs_t;

typedef struct {
    const char *architecture; /* "llama" */
    uint32_t n_layers;
    uint32_t hidden;
    uint32_t n_heads;
    uint32_t n_kv_heads; /* divides n_heads; query head h reads key/value head h / (heads per kv) */
    uint32_t head_dim;
    uint32_t ffn;
    uint32_t vocab;
    uint32_t context_train; /* positions the model was trained for: the limit of context_max */
    uint32_t rope_dim;      /* even, at most head_dim; further elements of a head do not turn */
    model_rope_pairs_t rope_pairs;
    float rope_base;
    float rope_scale;  /* linear scaling: positions are multiplied by it; 1 without scaling */
    bool rope_factors; /* MODEL_ROPE_FACTORS is there: F32 [rope_dim/2], divides the frequencies */
    float norm_eps;
    float attention_scale; /* of q·k: 1/sqrt(head_dim) */
    bool tied_embeddings;  /* MODEL_OUTPUT is MODEL_TOKEN_EMBD */
} model_config_t;

/* What a tensor is for. Those up to MODEL_ROPE_FACTORS exist once, the others once a layer. */
typedef enum {
    MODEL_TOKEN_EMBD,   /* [vocab rows, hidden] */
    MODEL_OUTPUT_NORM,  /* F32 [hidden] */
    MODEL_OUTPUT,       /* [vocab rows, hidden] */
    MODEL_ROPE_FACTORS, /* F32 [rope_dim/2]; may be absent */
    MODEL_ATTN_NORM,    /* F32 [hidden] */
    MODEL_ATTN_Q,       /* [heads * head_dim rows, hidden] */
    MODEL_ATTN_K,       /* [kv_heads * head_dim rows, hidden] */
    MODEL_ATTN_V,       /* [kv_heads * head_dim rows, hidden] */
    MODEL_ATTN_OUTPUT,  /* [hidden rows, heads * head_dim] */
    MODEL_FFN_NORM,     /* F32 [hidden] */
    MODEL_FFN_GATE,     /* [ffn rows, hidden] */
    MODEL_FFN_UP,       /* [ffn rows, hidden] */
    MODEL_FFN_DOWN,     /* [hidden rows, ffn] */
    MODEL_N_ROLES,
} model_role_t;

/* How a tensor is divided among the slices of a stage; the edges are in plan.h. */
typedef enum {
    MODEL_CUT_NONE,            /* every rank holds it whole */
    MODEL_CUT_ROWS_HEADS,      /* rows of this rank's query heads */
    MODEL_CUT_ROWS_KV_HEADS,   /* rows of the key/value heads that its query heads read */
    MODEL_CUT_COLUMNS_HEADS,   /* K along its query heads: the leaves of attention output */
    MODEL_CUT_ROWS_FFN,        /* rows along its FFN leaves */
    MODEL_CUT_COLUMNS_FFN,     /* K along its FFN leaves */
    MODEL_CUT_ROWS_VOCAB,      /* rows of its vocabulary slice */
} model_cut_t;

typedef struct {
    const char *name; /* "blk.3.ffn_down.weight" */
    qtype_t type;     /* one with qtype_info()->is_weight */
    model_cut_t cut;
    uint32_t n_dims;
    uint64_t dims[GGUF_DIMS_MAX]; /* as in the file: dims[0] = columns (K), dims[1] = rows (N) */
    uint64_t rows;                /* dims[1]; 1 for vectors */
    uint64_t columns;             /* dims[0] */
    uint64_t row_bytes;
    uint64_t bytes;      /* rows * row_bytes */
    const uint8_t *data; /* row r is at data + r * row_bytes; mapped, read-only */
} model_tensor_t;

typedef struct model model_t;

/* STATUS_UNSUPPORTED names an architecture, tensor type or feature that Shoal does not have;
 * STATUS_INVALID a file that contradicts itself, with the tensor or key, found and expected. */
status_t model_open(const char *path, model_t **own_out) MUST_USE;
/* Over bytes in memory, as gguf_open_bytes. */
status_t model_open_bytes(const char *path, const void *bytes, size_t n,
                          model_t **own_out) MUST_USE;
void model_close(model_t *take_model);

const model_config_t *model_config(const model_t *model);
/* For what belongs to other parts of the model room (tokenizer arrays, chat template). */
const gguf_t *model_gguf(const model_t *model);
const char *model_path(const model_t *model);
/* The file's name without folder and ".gguf": how people name the model. */
const char *model_name(const model_t *model);

/* `layer` is ignored for the roles that exist once. NULL only for MODEL_ROPE_FACTORS when absent.
 * MODEL_OUTPUT of a tied model is the embedding's data with cut MODEL_CUT_ROWS_VOCAB. */
const model_tensor_t *model_tensor(const model_t *model, model_role_t role, uint32_t layer);

/* Ids from the file's keys; each is below the vocabulary's size. */
typedef struct {
    bool has_bos;
    uint32_t bos;
    bool add_bos; /* the file asks for bos before each prompt (tokenizer.ggml.add_bos_token) */
    uint32_t n_eos;
    uint32_t eos[MODEL_EOS_MAX]; /* eos, then end of turn, then end of message; no duplicates */
} model_special_ids_t;
const model_special_ids_t *model_special_ids(const model_t *model);

/* The file's chat template, size 0 when it has none. */
gguf_text_t model_chat_template(const model_t *model);

/* --- identity --- */

/* "sha256:<64 hex digits>" over the file's bytes. With cache_dir the answer is kept there, one
 * small file a path, and used again while path, device, inode, size and both times are the same; a
 * cache that is damaged or cannot be written costs time, never the answer. cache_dir may be NULL. */
status_t model_digest(const char *path, const char *cache_dir,
                      char digest_out[MODEL_DIGEST_SIZE]) MUST_USE;

/* All that decides a token apart from the request. Texts may not be NULL. */
typedef struct {
    const char *model_digest; /* "sha256:…" */
    const char *activations;  /* "native" | "f32" */
    const char *kv_type;      /* "bf16" | "f32" */
    uint32_t numerics_version;
    const char *backend; /* "cpu" */
    const char *adapter; /* "" for none */
} model_identity_t;
/* 64 hex digits. */
void model_text_identity(const model_identity_t *identity, char hex_out[DIGEST_HEX_SIZE]);

/* STATUS_REFUSED when `path`, its links resolved, is not inside `dir`: a link in a model folder
 * must not make an agent offer (and hash, and map) files that nobody put there. */
status_t model_check_inside(const char *dir, const char *path) MUST_USE;

#endif
