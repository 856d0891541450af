/* An architecture as a table row: how its configuration is read, which tensors it has, what shape
 * each must have and how each is cut among ranks, for GGUF files and Hugging Face directories
 * alike. A further architecture is a row in arch.c and one file with its reading function; what it
 * shares with others (groups of tensors, rope scaling) it takes from arch_tensors.c and
 * arch_rope.c, and nothing in model.c changes. */
#ifndef SHOAL_COMMON_MODEL_ARCH_H
#define SHOAL_COMMON_MODEL_ARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/json.h"
#include "common/base/status.h"
#include "common/model/gguf.h"
#include "common/model/model.h"

/* --- tensors --- */

/* What a side of a tensor is as long as. */
typedef enum {
    ARCH_ONE, /* a vector has one row, an ordinary matrix one plane */
    ARCH_HIDDEN,
    ARCH_VOCAB,
    ARCH_Q,        /* n_heads * head_dim */
    ARCH_KV,       /* n_kv_heads * head_dim */
    ARCH_N_HEADS,  /* n_heads */
    ARCH_HEAD_DIM, /* head_dim */
    ARCH_FFN,
    ARCH_ROPE_PAIRS, /* dim / 2 of the first rope */
    ARCH_Q_RANK,
    ARCH_KV_RANK,
    ARCH_KV_A,     /* kv_rank + rope_dim */
    ARCH_Q_LATENT, /* n_heads * (nope_dim + rope_dim) */
    ARCH_KV_B,     /* n_heads * (nope_dim + value_dim) */
    ARCH_V_LATENT, /* n_heads * value_dim */
    ARCH_NOPE,
    ARCH_VALUE,
    ARCH_INDEX_Q, /* index heads * index dim */
    ARCH_INDEX_HEADS,
    ARCH_INDEX_DIM,
    ARCH_GROUP_IN,      /* values of one group of heads */
    ARCH_GROUPS_OUT,    /* groups * group_rank */
    ARCH_TWO_HEAD_DIM,  /* 2 * head_dim */
    ARCH_TWO_INDEX_DIM, /* 2 * index dim */
    ARCH_OVERLAP_RATE,
    ARCH_STRIDE_RATE,
    ARCH_STREAMS,
    ARCH_STREAMS_HIDDEN, /* streams * hidden */
    ARCH_MIX,            /* (2 + streams) * streams */
    ARCH_THREE,
    ARCH_EXPERTS_USED,
    ARCH_EXPERTS,
    ARCH_EXPERT_FFN,
    ARCH_EXPERT_GATE_UP, /* 2 * the experts' ffn */
    ARCH_SHARED_FFN,
} arch_side_t;

/* Which layers have a tensor. */
typedef enum {
    ARCH_ONCE, /* the model, not a layer */
    ARCH_LAYER,
    ARCH_GROUPED,
    ARCH_LATENT,
    ARCH_LATENT_PLAIN_Q, /* latent without q_rank */
    ARCH_LATENT_RANK_Q,  /* latent with q_rank */
    ARCH_LATENT_WHOLE,   /* kv_b in one */
    ARCH_LATENT_SPLIT,   /* attn_k_b and attn_v_b */
    ARCH_COMPRESSED,
    ARCH_OVERLAP, /* compressed with an indexer */
    ARCH_STRIDE,  /* compressed without one, with entries */
    ARCH_INDEXED,
    ARCH_DENSE,
    ARCH_ROUTED, /* experts */
    ARCH_SHARED, /* experts with a shared one */
    ARCH_HASHED, /* experts from a table */
    ARCH_CHOSEN, /* experts by score */
} arch_when_t;

typedef struct {
    model_role_t role;
    const char *gguf, *hf; /* with %u for the layer, then %u for the expert where the directory has
                              a tensor for each; NULL: that format has no such tensor */
    arch_side_t columns, rows, planes;
    model_cut_t cut;
    arch_when_t when;
    bool optional;
    bool vector;      /* norms, biases, factors: read as F32 */
    bool table;       /* ids: read as they are */
    bool each_expert; /* `hf` names one expert's; in a GGUF all lie in one tensor */
} arch_tensor_t;

typedef struct {
    const arch_tensor_t *tensors;
    size_t n;
} arch_group_t;

extern const arch_group_t arch_ends, arch_norms, arch_norms_around, arch_attention,
    arch_attention_bias, arch_attention_bias_optional, arch_output_bias_optional, arch_qk_norms,
    arch_latent, arch_indexer, arch_dense, arch_dense_bias_optional, arch_experts,
    arch_experts_mixtral, arch_router, arch_router_mixtral, arch_shared_expert,
    arch_shared_experts;

uint64_t arch_side(const model_config_t *config, arch_side_t side);
bool arch_layer_has(const model_config_t *config, uint32_t layer, arch_when_t when);

/* --- reading --- */

/* One reader for both formats: a value has a GGUF key, "<prefix>.<name>", and a member of
 * config.json. */
typedef struct {
    const source_t *source;
    const gguf_t *gguf;   /* NULL for a directory */
    const json_t *config; /* NULL for a GGUF */
    const char *prefix;   /* of GGUF keys: "llama" */
    const char *where;    /* the file, for errors */
    model_config_t *out;
    float *factors[MODEL_ROPES_MAX]; /* own; of out->ropes with .factors */
} arch_reader_t;

/* A NULL name: that format has no such value, so it counts as absent. The plain forms fail when it
 * is absent; the _or forms leave *out as it is. */
status_t arch_u32(const arch_reader_t *r, const char *gguf, const char *hf, uint32_t min,
                  uint32_t max, uint32_t *out) MUST_USE;
status_t arch_u32_or(const arch_reader_t *r, const char *gguf, const char *hf, uint32_t min,
                     uint32_t max, uint32_t *out) MUST_USE;
status_t arch_f32(const arch_reader_t *r, const char *gguf, const char *hf, float min, float max,
                  float *out) MUST_USE;
status_t arch_f32_or(const arch_reader_t *r, const char *gguf, const char *hf, float min, float max,
                     float *out) MUST_USE;
status_t arch_bool_or(const arch_reader_t *r, const char *gguf, const char *hf,
                      bool *out) MUST_USE;
/* STATUS_UNSUPPORTED when the value is there and is not zero (or false), which changes the
 * arithmetic in a way that Shoal does not have. */
status_t arch_refuse(const arch_reader_t *r, const char *gguf, const char *hf) MUST_USE;
/* A member of config.json must be one of the texts in a NULL-ended list, where it is there. */
status_t arch_text_is(const arch_reader_t *r, const char *hf, const char *const *allowed) MUST_USE;

/* What every architecture has: layers, widths, heads, context, norm_eps, tied embeddings.
 * `head_dim_default` 0 takes hidden / heads. */
typedef struct {
    uint32_t head_dim_default;
    bool tied_default; /* of a directory that does not say */
    bool no_ffn;       /* the width of dense layers is not asked for */
} arch_basics_t;
status_t arch_read_basics(arch_reader_t *r, const arch_basics_t *what) MUST_USE;
/* Grouped attention: n_kv_heads, head_dim, attention_scale. */
status_t arch_read_heads(arch_reader_t *r, const arch_basics_t *what) MUST_USE;
/* The windows: `layer_types` of the directory where it is there, else the layers for which
 * `slides` says so. */
status_t arch_read_windows(arch_reader_t *r, uint32_t window,
                           bool (*slides)(const model_config_t *config, uint32_t layer)) MUST_USE;
/* Experts: their number, the number used, widths. */
status_t arch_read_experts(arch_reader_t *r) MUST_USE;

/* --- rope (arch_rope.c) --- */

typedef struct {
    uint32_t dim; /* values of a head that turn where the files do not say */
    uint32_t dim_max;
    model_rope_pairs_t pairs;
    float base_default;
    uint32_t index;        /* of config->ropes */
    const char *base_key;  /* of config.json; NULL: "rope_theta" */
    const char *layer_type; /* what is said of these layers alone in rope_parameters, where it is,
                               stands for all else, "rope_theta" included; NULL: nothing is */
    bool unscaled;         /* what the files say of scaling is not about this one */
    bool dim_given;        /* by a member of its own: partial_rotary_factor is not applied to it */
    bool untruncated; /* yarn: the edges of its ramp are not rounded */
    bool no_magnitude; /* yarn: cosines and sines keep their size */
} arch_rope_t;
/* With scaling of every kind that Shoal has. */
status_t arch_read_rope(arch_reader_t *r, const arch_rope_t *what) MUST_USE;
/* DeepSeek's further factor of attention_scale under yarn; 1 without. After arch_read_rope. */
status_t arch_latent_mscale(const arch_reader_t *r, float *out) MUST_USE;

/* --- architectures --- */

enum { ARCH_GROUPS_MAX = 12, ARCH_HF_TYPES_MAX = 3 };

typedef struct {
    const char *name;                        /* ours, and where there is one the GGUF's */
    const char *gguf;                        /* general.architecture; NULL: not as GGUF */
    const char *hf[ARCH_HF_TYPES_MAX];       /* model_type of config.json */
    /* Fills all of the config but architecture and vocab. */
    status_t (*read)(arch_reader_t *r);
    const arch_group_t *groups[ARCH_GROUPS_MAX];
    /* A tensor that is there and is not used: the n_draft layers for drafting behind the last one.
     * May be NULL. */
    bool (*ignores)(uint32_t n_layers, uint32_t n_draft, const char *name);
} arch_t;

/* Whether the layer whose number begins `digits` is one of the n_draft behind the last one. */
bool arch_is_draft(const char *digits, uint32_t n_layers, uint32_t n_draft);

/* NULL when Shoal has no such architecture. */
const arch_t *arch_find_gguf(gguf_text_t name);
const arch_t *arch_find_hf(const char *model_type);
/* "llama, qwen2, …", for the error that names what would be right; `hf` gives model_types. */
const char *arch_names(bool hf);

extern const arch_t arch_llama, arch_mixtral, arch_qwen2, arch_qwen2moe, arch_qwen3, arch_qwen3moe,
    arch_gemma2, arch_gemma3, arch_gpt_oss, arch_deepseek2, arch_deepseek_v3, arch_deepseek_v32,
    arch_deepseek_v4;

#endif
