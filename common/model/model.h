/* What a model is: an immutable handle made from one GGUF file or one Hugging Face directory.
 *
 * model_open checks the structure of the files (source.h), finds the architecture in a table
 * (arch.h), reads its configuration, and finds every tensor that the architecture lists, with the
 * shape that the configuration implies. After that nothing about the files can surprise the loader:
 * each view has known shape, type and length. A tensor that the architecture does not know is
 * refused by name, because leaving it out would change the text silently.
 *
 * What the layers are made of is data (model_layer_t and the numbers beside it), so that the stage
 * knows kinds of attention and of feed-forward and no family by name.
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
#include "common/model/source.h"

enum {
    MODEL_LAYERS_MAX = 512,
    MODEL_HEADS_MAX = 512,
    MODEL_HEAD_DIM_MAX = 512,
    MODEL_HIDDEN_MAX = 65536,
    MODEL_FFN_MAX = 262144,
    MODEL_VOCAB_MAX = 1048576,
    MODEL_CONTEXT_MAX = 1 << 24,
    MODEL_EOS_MAX = 8,
    MODEL_EXPERTS_MAX = 1024,
    MODEL_EXPERTS_USED_MAX = 64,
    MODEL_ROPES_MAX = 2,
    MODEL_LATENT_MAX = 8192, /* of q_rank and kv_rank */
    MODEL_DIGEST_SIZE = sizeof "sha256:" - 1 + DIGEST_HEX_SIZE, /* "sha256:" + 64 digits + NUL */
};

/* --- rope --- */

/* Which elements of a head rotate together. GGUF files of `llama` hold the rows of attn_q and
 * attn_k permuted, so that with PAIRS_ADJACENT the result equals what the original checkpoint gives
 * with PAIRS_HALVES. Pair i of dim/2 turns by position * scale * base^(-2i/dim) / factor[i]. */
typedef enum {
    MODEL_ROPE_PAIRS_ADJACENT, /* (2i, 2i+1) */
    MODEL_ROPE_PAIRS_HALVES,   /* (i, i + dim/2) */
} model_rope_pairs_t;

typedef struct {
    uint32_t dim; /* even; further elements of a head do not turn */
    model_rope_pairs_t pairs;
    float base;
    float scale;     /* linear scaling: positions are multiplied by it; 1 without scaling */
    float magnitude; /* cosines and sines are multiplied by it; 1 but for yarn */
    bool factors;    /* model_rope_factors() gives dim/2 divisors of the frequencies */
} model_rope_t;

/* --- kinds of layers --- */

typedef enum {
    MODEL_ATTENTION_GROUPED, /* query heads share key/value heads; keys and values are cached */
    MODEL_ATTENTION_LATENT,  /* MLA, absorbed: one latent and one rotated part a token are cached */
    MODEL_ATTENTION_COMPRESSED, /* one head of keys that are the values too, seen in a window, and
                                   beside them entries that each stand for `rate` positions */
} model_attention_kind_t;

typedef enum {
    MODEL_FFN_DENSE,
    MODEL_FFN_EXPERTS, /* a router, experts, perhaps a shared expert */
} model_ffn_kind_t;

/* Zero is an ordinary layer. */
typedef struct {
    uint8_t attention; /* model_attention_kind_t */
    uint8_t ffn;       /* model_ffn_kind_t */
    uint8_t rope;      /* which of config->ropes */
    bool indexed;      /* of the keys (compressed: of the entries) only those are seen that its
                          indexer chooses; entries of such layers overlap */
    bool hashed;       /* a token's experts stand in a table */
    uint16_t rate;     /* compressed: positions of an entry; 0: only the window */
    uint32_t window;   /* position t sees the keys t - window < p <= t; 0: all up to its own */
} model_layer_t;

/* What becomes of gate and up. */
typedef enum {
    MODEL_ACTIVATION_SILU,         /* silu(gate) * up */
    MODEL_ACTIVATION_GELU_TANH,    /* gelu(gate), the tanh form, * up */
    MODEL_ACTIVATION_CLAMP_SWIGLU, /* gpt-oss: both clamped at activation_limit, (up + 1) */
    MODEL_ACTIVATION_SILU_LIMIT,   /* V4: silu of gate, both clamped at activation_limit */
} model_activation_t;

/* Latent attention; all zero in models without it. */
typedef struct {
    uint32_t q_rank; /* 0: queries are made from the hidden state at once */
    uint32_t kv_rank;
    uint32_t nope_dim;  /* of a query head: what does not turn */
    uint32_t rope_dim;  /* what turns; shared by the heads on the key side */
    uint32_t value_dim; /* of a head */
    float norm_eps;     /* of the norms of the ranks */
    bool split;         /* the file holds kv_b as attn_k_b (turned) and attn_v_b */
} model_latent_t;

typedef enum {
    MODEL_SCORE_SOFTMAX,        /* over all experts, before the choice */
    MODEL_SCORE_SOFTMAX_CHOSEN, /* over the chosen ones; the choice is by logits */
    MODEL_SCORE_SIGMOID,
    MODEL_SCORE_SQRT_SOFTPLUS,
} model_score_t;

/* Experts; all zero in models without them. */
typedef struct {
    uint32_t n;
    uint32_t n_used;
    uint32_t ffn;        /* of one expert */
    uint32_t shared_ffn; /* of the shared expert; 0: none */
    bool shared_gated;   /* its weight is the sigmoid of a router of its own; else 1 */
    model_score_t score;
    bool normalized;      /* the weights of the chosen are divided by their sum */
    float factor;         /* the weights are multiplied by it; 1 ordinarily */
    uint32_t n_groups;    /* 0: all experts are one group */
    uint32_t groups_kept;
    bool group_by_sum;    /* a group's score: the sum of its two best, not its best */
    bool interleaved;     /* gate and up are one tensor: row 2i of gate, row 2i + 1 of up */
} model_experts_t;

/* Compressed attention; all zero in models without it. */
typedef struct {
    uint32_t q_rank;
    uint32_t rope_dim;   /* the last values of a head turn */
    uint32_t groups;     /* of heads, whose outputs are projected to group_rank each, then together */
    uint32_t group_rank;
    uint32_t overlap_rate, stride_rate; /* of layers with and without an indexer */
} model_compressed_t;

/* The residual stream as n streams that each block reads and writes by weights of its own
 * (hyper-connections); n 0: one stream. */
typedef struct {
    uint32_t n;
    uint32_t iterations;
    float eps;
} model_streams_t;

/* The indexer of sparse attention; all zero in models without it. */
typedef struct {
    uint32_t n_heads;
    uint32_t head_dim;
    uint32_t top_k;
    float norm_eps;
} model_index_t;

typedef struct {
    const char *architecture; /* "llama": the descriptor's name, the same for both formats */
    uint32_t n_layers;
    uint32_t hidden;
    uint32_t n_heads;
    uint32_t n_kv_heads; /* divides n_heads; query head h reads key/value head h / (heads per kv) */
    uint32_t head_dim;   /* of grouped attention: of queries, keys and values */
    uint32_t ffn;        /* of dense layers */
    uint32_t vocab;
    uint32_t context_train; /* positions the model was trained for: the limit of context_max */
    float norm_eps;
    float attention_scale; /* of q·k: 1/sqrt(head_dim) ordinarily */
    bool tied_embeddings;  /* MODEL_OUTPUT is MODEL_TOKEN_EMBD */

    /* In what follows zero means "without". */
    bool norm_plus_one;     /* norm weights are stored minus one */
    float embedding_scale;  /* embedded rows are multiplied by it */
    float attention_softcap; /* scores x become cap * tanh(x / cap) */
    float logit_softcap;
    model_activation_t activation;
    float activation_limit;
    model_rope_t ropes[MODEL_ROPES_MAX];
    model_latent_t latent;
    model_compressed_t compressed;
    model_experts_t experts;
    model_index_t index;
    model_streams_t streams;
    model_layer_t layers[MODEL_LAYERS_MAX];
} model_config_t;

/* --- tensors --- */

/* What a tensor is for. Those up to MODEL_HEAD_MIX_SCALE exist once, the others once a layer. Shapes
 * are [rows, columns]; F32 [n] marks vectors, which model_read_vector() gives as F32 whatever their
 * stored type is. */
typedef enum {
    MODEL_TOKEN_EMBD,   /* [vocab, hidden] */
    MODEL_OUTPUT_NORM,  /* F32 [hidden] */
    MODEL_OUTPUT,       /* [vocab, hidden] */
    MODEL_ROPE_FACTORS, /* F32 [rope dim/2]; of GGUF files */
    MODEL_HEAD_MIX,       /* [streams, streams * hidden] */
    MODEL_HEAD_MIX_BASE,  /* F32 [streams] */
    MODEL_HEAD_MIX_SCALE, /* F32 [1] */

    MODEL_ATTN_NORM,      /* F32 [hidden] */
    MODEL_ATTN_POST_NORM, /* F32 [hidden], of what attention gives, before the residual */
    MODEL_FFN_NORM,       /* F32 [hidden] */
    MODEL_FFN_POST_NORM,  /* F32 [hidden] */

    MODEL_ATTN_Q, /* [heads * head_dim, hidden]; latent: [heads * (nope + rope), hidden] */
    MODEL_ATTN_K, /* [kv_heads * head_dim, hidden] */
    MODEL_ATTN_V, /* [kv_heads * head_dim, hidden] */
    MODEL_ATTN_Q_BIAS,
    MODEL_ATTN_K_BIAS,
    MODEL_ATTN_V_BIAS,
    MODEL_ATTN_Q_NORM,      /* F32 [head_dim], of each head */
    MODEL_ATTN_K_NORM,      /* F32 [head_dim], of each head */
    MODEL_ATTN_SINKS,       /* F32 [heads] */
    MODEL_ATTN_OUTPUT,      /* [hidden, heads * head_dim]; latent: [hidden, heads * value_dim] */
    MODEL_ATTN_OUTPUT_BIAS, /* F32 [hidden] */

    MODEL_ATTN_Q_A,       /* [q_rank, hidden] */
    MODEL_ATTN_Q_A_NORM,  /* F32 [q_rank] */
    MODEL_ATTN_Q_B,       /* [heads * (nope + rope), q_rank] */
    MODEL_ATTN_KV_A,      /* [kv_rank + rope, hidden] */
    MODEL_ATTN_KV_A_NORM, /* F32 [kv_rank] */
    MODEL_ATTN_KV_B,      /* [heads * (nope + value), kv_rank] */
    MODEL_ATTN_K_B,       /* [heads * kv_rank, nope]: turned; beside V_B in place of KV_B */
    MODEL_ATTN_V_B,       /* [heads * value, kv_rank] */

    MODEL_ATTN_OUTPUT_A, /* compressed: [groups * group_rank, heads/groups * head_dim]; MODEL_ATTN_KV_A
                            is [head_dim, hidden] there and MODEL_ATTN_OUTPUT [hidden, groups *
                            group_rank] */
    MODEL_COMPRESS_KV,       /* [width, hidden]; width = head_dim, twice that where entries overlap */
    MODEL_COMPRESS_GATE,     /* [width, hidden] */
    MODEL_COMPRESS_POSITION, /* F32 [rate, width] */
    MODEL_COMPRESS_NORM,     /* F32 [head_dim] */
    MODEL_INDEX_COMPRESS_KV, /* the same of the indexer's keys: [2 * index dim, hidden] … */
    MODEL_INDEX_COMPRESS_GATE,
    MODEL_INDEX_COMPRESS_POSITION,
    MODEL_INDEX_COMPRESS_NORM,

    MODEL_ATTN_MIX,       /* [(2 + streams) * streams, streams * hidden] */
    MODEL_ATTN_MIX_BASE,  /* F32 [(2 + streams) * streams] */
    MODEL_ATTN_MIX_SCALE, /* F32 [3] */
    MODEL_FFN_MIX,
    MODEL_FFN_MIX_BASE,
    MODEL_FFN_MIX_SCALE,

    MODEL_INDEX_Q_B,         /* [index heads * index dim, q_rank] */
    MODEL_INDEX_K,           /* [index dim, hidden] */
    MODEL_INDEX_K_NORM,      /* F32 [index dim], of a layer norm */
    MODEL_INDEX_K_NORM_BIAS, /* F32 [index dim] */
    MODEL_INDEX_WEIGHTS,     /* [index heads, hidden] */

    MODEL_FFN_GATE, /* [ffn, hidden] */
    MODEL_FFN_UP,   /* [ffn, hidden] */
    MODEL_FFN_DOWN, /* [hidden, ffn] */
    MODEL_FFN_GATE_BIAS,
    MODEL_FFN_UP_BIAS,
    MODEL_FFN_DOWN_BIAS,

    MODEL_ROUTER,            /* [experts, hidden] */
    MODEL_ROUTER_BIAS,       /* F32 [experts], part of the logits */
    MODEL_ROUTER_CORRECTION, /* F32 [experts], of the choice alone */
    MODEL_ROUTER_TABLE,      /* ids [vocab, experts used]: the experts of each token */
    MODEL_SHARED_GATE,       /* [shared_ffn, hidden] */
    MODEL_SHARED_UP,         /* [shared_ffn, hidden] */
    MODEL_SHARED_DOWN,       /* [hidden, shared_ffn] */
    MODEL_SHARED_ROUTER,     /* [1, hidden]: the shared expert's weight is the sigmoid of it */

    /* One for each expert: model_expert(). */
    MODEL_EXPERT_GATE,         /* [expert ffn, hidden] */
    MODEL_EXPERT_UP,           /* [expert ffn, hidden] */
    MODEL_EXPERT_GATE_UP,      /* [2 * expert ffn, hidden] in place of the two */
    MODEL_EXPERT_DOWN,         /* [hidden, expert ffn] */
    MODEL_EXPERT_GATE_BIAS,    /* F32 [expert ffn] */
    MODEL_EXPERT_UP_BIAS,      /* F32 [expert ffn] */
    MODEL_EXPERT_GATE_UP_BIAS, /* F32 [2 * expert ffn] in place of the two */
    MODEL_EXPERT_DOWN_BIAS,    /* F32 [hidden] */
    MODEL_N_ROLES,
} model_role_t;

/* How a tensor is divided among the slices of a stage; the edges are in plan.h. */
typedef enum {
    MODEL_CUT_NONE,          /* every rank holds it whole */
    MODEL_CUT_ROWS_HEADS,    /* rows of this rank's query heads */
    MODEL_CUT_ROWS_KV_HEADS, /* rows of the key/value heads that its query heads read */
    MODEL_CUT_COLUMNS_HEADS, /* K along its query heads: the leaves of attention output */
    MODEL_CUT_ROWS_FFN,      /* rows along its FFN leaves */
    MODEL_CUT_COLUMNS_FFN,   /* K along its FFN leaves */
    MODEL_CUT_ROWS_SHARED,   /* rows along its leaves of the shared expert */
    MODEL_CUT_COLUMNS_SHARED,
    MODEL_CUT_ROWS_EXPERT,   /* of each expert that it holds, rows along its leaves of it */
    MODEL_CUT_COLUMNS_EXPERT,
    MODEL_CUT_ROWS_VOCAB,    /* rows of its vocabulary slice */
} model_cut_t;

/* Rows [row_first, row_first + rows) of a tensor of the files: the whole of it, or one expert's. */
typedef struct {
    const char *name; /* "blk.3.ffn_down.weight" */
    qtype_t type;     /* one with qtype_info()->is_weight */
    model_cut_t cut;
    uint64_t rows; /* 1 for vectors */
    uint64_t columns;
    uint64_t row_bytes;
    uint64_t bytes;      /* that its rows take in a rank: rows * row_bytes, or less (qtype_held_bytes);
                            never less where there is data */
    const uint8_t *data; /* row r is at data + r * row_bytes; mapped, read-only. NULL: the rows have
                            to be read */
    const source_tensor_t *source;
    uint64_t row_first;
} model_tensor_t;

typedef struct model model_t;

/* `path` is a GGUF file or a directory. STATUS_UNSUPPORTED names an architecture, tensor type or
 * feature that Shoal does not have; STATUS_INVALID files that contradict themselves, with the
 * tensor or key, found and expected. */
status_t model_open(const char *path, model_t **own_out) MUST_USE;
/* The same, with the matrices of the layers and the head quantized as they are read: "q8" (Q8_0),
 * "q4" (Q4_1, the head Q8_0) or "fp8" (F8S, blocks of 128 with one scale). "" is model_open. Tensors
 * that are quantized already, or whose columns are no whole blocks, stay as they are;
 * STATUS_UNSUPPORTED when that is all of them, STATUS_INVALID for another word. */
status_t model_open_quantized(const char *path, const char *quantize, model_t **own_out) MUST_USE;
/* Only whether the word is known. */
status_t model_check_quantize(const char *quantize) MUST_USE;
/* Over a GGUF in memory, as gguf_open_bytes. */
status_t model_open_bytes(const char *path, const void *bytes, size_t n,
                          model_t **own_out) MUST_USE;
void model_close(model_t *take_model);

const model_config_t *model_config(const model_t *model);
/* For what belongs to other parts of the model room (tokenizer, chat template). model_gguf() is
 * NULL for a directory. */
const source_t *model_source(const model_t *model);
const gguf_t *model_gguf(const model_t *model);
const char *model_path(const model_t *model);
/* The file's name without folder and ".gguf", or the directory's: how people name the model. */
const char *model_name(const model_t *model);

/* `layer` is ignored for the roles that exist once. NULL when absent. MODEL_OUTPUT of a tied model
 * is the embedding's data with cut MODEL_CUT_ROWS_VOCAB. */
const model_tensor_t *model_tensor(const model_t *model, model_role_t role, uint32_t layer);
/* The same of one expert. False, with *view_out left alone, when absent. */
bool model_expert(const model_t *model, model_role_t role, uint32_t layer, uint32_t expert,
                  model_tensor_t *view_out) MUST_USE;
/* config->ropes[rope].dim / 2 divisors of the frequencies; NULL when there are none. */
const float *model_rope_factors(const model_t *model, uint32_t rope);

/* Rows [row_first, row_first + n_rows) of the view as they are stored, row_bytes each. */
status_t model_read_rows(const model_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                         uint8_t *out) MUST_USE;
/* Values that a row of the residual stream has: hidden, times the streams. */
static inline uint32_t model_residual(const model_config_t *config)
{
    return config->hidden * (config->streams.n > 0 ? config->streams.n : 1);
}

/* Bytes of all weights as they are read: with quantization, of the quantized rows. */
uint64_t model_weight_bytes(const model_t *model);

/* All values of all rows as F32. */
status_t model_read_f32(const model_tensor_t *tensor, float *out) MUST_USE;

/* Ids from the files; each is below the vocabulary's size. */
typedef struct {
    bool has_bos;
    uint32_t bos;
    bool add_bos; /* a GGUF asks for bos before each prompt (tokenizer.ggml.add_bos_token) */
    uint32_t n_eos;
    uint32_t eos[MODEL_EOS_MAX]; /* eos, then end of turn, then end of message; no duplicates */
} model_special_ids_t;
const model_special_ids_t *model_special_ids(const model_t *model);

/* A GGUF's chat template, size 0 when it has none. A directory's is in its own files (chat.h). */
gguf_text_t model_chat_template(const model_t *model);

/* "llama (llama), qwen2 …": every architecture with both of its names, for people. */
const char *model_architectures(void);

/* --- identity --- */

/* "sha256:<64 hex digits>" over the file's bytes; of a directory over the names and digests of its
 * files that matter (model_files.h), each of which is cached by itself. With cache_dir the answer is
 * kept there, one small file a path, and used again while path, device, inode, size and both times
 * are the same; a cache that is damaged or cannot be written costs time, never the answer. cache_dir
 * may be NULL. */
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
    const char *quantize; /* "" for none; NULL means the same */
} model_identity_t;
/* 64 hex digits. */
void model_text_identity(const model_identity_t *identity, char hex_out[DIGEST_HEX_SIZE]);

/* STATUS_REFUSED when `path`, its links resolved, is not inside `dir`: a link in a model folder
 * must not make an agent offer (and hash, and map) files that nobody put there. */
status_t model_check_inside(const char *dir, const char *path) MUST_USE;

#endif
