/* Who computes what: leaves, slices, stages, memory, and the placing of ranks on hosts.
 *
 * Pure functions: no clock, no random draw, no file, no memory kept. The same input gives the same
 * plan on every machine, which the numbers depend on: leaf edges are part of the definition of a
 * logit (docs/numerics.md), and a coordinator and a rank that disagreed about one would change
 * text. Nothing here may depend on the number of ranks but the runs that say which rank owns
 * what. */
#ifndef SHOAL_COMMON_MODEL_PLAN_H
#define SHOAL_COMMON_MODEL_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/model/model.h"

enum {
    PLAN_LEAVES_MAX = 16, /* also in the kernels' definition of numbers; a test holds them equal */
    PLAN_EXPERT_LEAVES = 4,
    PLAN_TP_MAX = 16, /* more slices than leaves would leave ranks without work */
    PLAN_STAGES_MAX = 64,
    PLAN_RANKS_MAX = 256, /* of one replica: tp * stages */
    PLAN_VOCAB_BLOCK = 1024,
    PLAN_KV_BLOCK = 64, /* KV tokens are counted in whole tiles of attention */
    PLAN_RANKS_PER_CORE_MAX = 16,
    PLAN_NODES_MAX = 8, /* tree nodes in a run of leaves, at most (plan_run_nodes) */
    PLAN_CUTS_MAX = 8,
    PLAN_PROJECTION_COLUMNS = 16,
};

typedef struct {
    uint32_t first;
    uint32_t count; /* may be 0 */
} plan_run_t;

/* --- leaves --- */

/* Leaf i is [edge[i], edge[i + 1]); edge[0] = 0 and edge[n] is the whole K. Leaves may be empty. */
typedef struct {
    uint32_t n;
    uint32_t edge[PLAN_LEAVES_MAX + 1];
} plan_leaves_t;

/* Of attention output over H heads, of each of which it reads d values: n = min(H, 16, max(4,
 * floor(H*d/256))), edge i = floor(i*H/n), counted in heads. A leaf's end costs as much as some ten
 * inputs of it, so leaves are 256 wide or wider wherever four remain. */
void plan_leaf_edges_heads(uint32_t n_heads, uint32_t d, plan_leaves_t *out);

/* The same of a model's attention: of whole groups of heads where outputs are projected by group.
 * Counted in heads. */
void plan_leaf_edges_attention(const model_config_t *config, plan_leaves_t *out);

/* The same leaves, counted in inputs of MODEL_ATTN_OUTPUT. */
void plan_leaf_edges_output(const model_config_t *config, plan_leaves_t *out);

/* Of the FFN's down over K values: n = min(16, max(4, floor(K/256))), edge i =
 * u * floor(i*ceil(K/u)/n), the last at K, with u = 32, or 8 if K < 512. Counted in values of K. */
void plan_leaf_edges_ffn(uint32_t k, plan_leaves_t *out);

/* Of an expert's down, the shared one's too: as above, but 4 leaves at most. */
void plan_leaf_edges_expert(uint32_t k, plan_leaves_t *out);

/* Slices beyond which one would have neither attention nor a part of an FFN; PLAN_TP_MAX at most. */
uint32_t plan_tp_max(const model_config_t *config);

/* The leaves of slice `slice` of tp: for tp = 2^j the tree's node at depth j (a node of n leaves
 * has children of ceil(n/2) and floor(n/2)), else leaves
 * [floor(s*n/tp), floor((s+1)*n/tp)), which keeps every run at three nodes or fewer. */
plan_run_t plan_leaf_run(uint32_t n_leaves, uint32_t tp, uint32_t slice);

/* The fewest tree nodes that make up a run, in ascending order: what a rank computes and sends as
 * partials. Returns how many (0 for an empty run; 1 when tp is a power of two; at most 3 for the
 * runs of plan_leaf_run). */
uint32_t plan_run_nodes(uint32_t n_leaves, plan_run_t run, plan_run_t nodes_out[PLAN_NODES_MAX]);

/* --- cuts --- */

/* How the slices of a stage share its layers, where there is more than one way: data of a replica's
 * plan, the same on each of its ranks. No number depends on it: sums of experts are exact integers,
 * and attention is cut at its leaves. */
typedef struct {
    uint32_t tp;
    /* Neighbouring slices form groups, tp / expert_groups in each. A group holds a run of whole
     * experts, and inside it each slice owns leaves of every one of them: 1 is tensor-parallel
     * inside experts, tp whole experts a slice. 0 when the model has no experts. */
    uint32_t expert_groups;
    /* So many slices, evenly spread among the tp, hold attention and its KV; the others hold none
     * of either. Where each holder keeps the whole cache (latent and compressed attention), this is
     * the number of its copies. */
    uint32_t attention_slices;
    /* Those slices form so many groups of neighbours. A group holds all heads, cut by leaves inside
     * it, and the KV of its own sequences alone: a sequence is attended to by one group. 1: every
     * slice with attention has a part in every sequence. */
    uint32_t attention_replicas;
} plan_cut_t;

/* A cut from what was asked for; a 0 is left to the rule: attention on every slice, one replica of
 * it, and the groups whose busiest slice has the smallest part of the experts' work, at one
 * token (expected over even choices) and at many tokens (which use every expert) added; of equal
 * ones the fewest. STATUS_INVALID unless 1 <= tp <= PLAN_TP_MAX, attention_slices <= tp,
 * attention_replicas divides those, and groups divide tp into at most PLAN_EXPERT_LEAVES slices
 * each. */
status_t plan_cut(const model_config_t *config, const plan_cut_t *wanted,
                  plan_cut_t *out) MUST_USE;

/* The leaves of attention that a slice owns. A slice without attention has an empty run, which
 * stands between its neighbours' in the order of leaves, inside its replica of attention. */
plan_run_t plan_attention_run(const plan_cut_t *cut, uint32_t n_leaves, uint32_t slice);

/* The slices of replica `replica` of attention, those without attention behind each included: they
 * add nothing to its sums. Together the replicas have every slice once, in order. */
plan_run_t plan_attention_slices(const plan_cut_t *cut, uint32_t replica);

/* Projections that every slice with attention needs whole, to latents of queries and keys, and those
 * of indexers and compressors: the slices that share them, each making a run of columns that an
 * exchange gives to all, or 1 where each makes all for itself, because what it would save is not
 * worth the wait for the others, because replicas of attention have different rows, or because a
 * model has none. `always`: whatever it saves. */
uint32_t plan_projection_slices(const model_config_t *config, const plan_cut_t *cut, bool always);

/* The columns that slice `index` of those makes: multiples of PLAN_PROJECTION_COLUMNS, or the end. */
plan_run_t plan_projection_run(uint32_t columns, uint32_t slices, uint32_t index);

/* Their columns in a layer that are exchanged at once: those from the rows of the residual, and
 * behind those (`second`) the indexer's queries. 0 where a layer has none, or none that are shared. */
uint32_t plan_projection_columns(const model_config_t *config, uint32_t layer, bool second);

/* Whether slices sum n elements, of which they have bytes_all together for each, by pieces: each adds
 * one of tp pieces and gives the sums, an F32 each, to all. Otherwise everybody gets everything: that
 * is more bytes, and one wait less. */
bool plan_sums_by_pieces(uint32_t tp, uint64_t n, uint64_t bytes_all);

/* --- slices --- */

/* What one slice of a stage owns of each layer (and, on the last stage, of the head). */
typedef struct {
    plan_run_t head_leaves; /* leaves of attention output */
    plan_run_t heads;       /* query heads */
    plan_run_t kv_heads;    /* key/value heads that those read; neighbours may share one */
    plan_run_t ffn_leaves;  /* leaves of down */
    plan_run_t ffn;         /* rows of gate and up, columns of down */
    plan_run_t experts;     /* those of its group; all of these empty without experts */
    plan_run_t expert_leaves;
    plan_run_t expert_ffn;
    plan_run_t shared_leaves; /* of the shared expert, over all slices */
    plan_run_t shared_ffn;
    uint32_t projection_slices; /* that share the projections (plan_projection_slices), this one
                                   among them; 0 when it has no attention, and none of them */
    plan_run_t vocab;       /* rows of the last stage's head (plan_head_run) */
} plan_slice_t;

/* `cut` is one that plan_cut() made of this model. STATUS_INVALID unless slice < tp. */
status_t plan_slice(const model_config_t *config, const plan_cut_t *cut, uint32_t slice,
                    plan_slice_t *out) MUST_USE;

/* Rows [first, first + count) of the vocabulary for one slice: whole blocks of PLAN_VOCAB_BLOCK
 * tokens, as even as can be, earlier slices first. */
plan_run_t plan_vocab_run(uint32_t vocab, uint32_t tp, uint32_t slice);

/* Rows of the head that one rank of `stages` has, cut as plan_vocab_run(): among the slices of the last
 * stage or, when the head is shared, among all ranks in their order. */
plan_run_t plan_head_run(uint32_t vocab, uint32_t tp, uint32_t stages, bool shared, uint32_t stage,
                         uint32_t slice);

/* --- sizes --- */

/* What the planner knows of a model. Values are elements; bytes are as stored in the file. */
typedef struct {
    model_config_t config;
    uint64_t file_bytes;
    uint64_t embedding_values, embedding_bytes;
    uint64_t head_values, head_bytes;   /* output norm included */
    uint64_t norm_values, norm_bytes;   /* of the largest layer: norms, routers, projections to
                                           latents; every rank holds them, but for: */
    uint64_t projection_values, projection_bytes; /* of these what plan_projection_slices() is of */
    uint64_t q_values, q_bytes;         /* of one layer, as are the rest (the largest layer): what
                                           is cut by query heads */
    uint64_t kv_values, kv_bytes;       /* attn_k and attn_v */
    uint64_t output_values, output_bytes;
    uint64_t ffn_values, ffn_bytes;     /* gate, up and down of a dense layer */
    uint64_t expert_values, expert_bytes; /* all experts of a layer that has them */
    uint64_t shared_values, shared_bytes; /* its shared expert */
} plan_sizes_t;
void plan_sizes(const model_t *model, plan_sizes_t *out);

/* --- stages --- */

/* Layers of each stage: contiguous, at least one each. The largest cost is as small as can be, and
 * among such cuts the costs are as even as can be. A layer costs the values it multiplies (of
 * experts, those that are used); stage 0
 * also embeds (a row's copy: one norm's worth). Unless all stages share the head, the last one has it
 * alone, and it runs for every row of a decode. A prompt runs it for one row, so its stages are less
 * even then; but an answer takes longer than its prompt, and time is lost on the slowest stage of
 * each. STATUS_INVALID unless 1 <= stages <= min(layers, PLAN_STAGES_MAX). */
status_t plan_stages(const plan_sizes_t *sizes, uint32_t stages, bool shared_head,
                     plan_run_t layers_out[PLAN_STAGES_MAX]) MUST_USE;

/* Whether stages that reach each other through memory had better share the head: its values are more
 * than a layer's, so that on one stage alone it would unbalance decodes or prompts. */
bool plan_head_is_large(const plan_sizes_t *sizes, uint32_t stages);

/* --- fit --- */

/* How a replica is formed: the deployment's part of the question. */
typedef struct {
    uint32_t tp;
    uint32_t stages;
    uint32_t context_max;
    bool activations_f32;        /* weights as F32, KV as F32 */
    bool kv_codes;               /* KV as codes of a byte (kv_type.h) */
    uint64_t kv_tokens_max;      /* at most so many; 0 takes what plan_kv_tokens_wanted() says */
    uint32_t prefill_tokens_max; /* rows of a step; 0 takes PLAN_STEP_ROWS */
    uint32_t expert_groups, attention_slices; /* as plan_cut(); 0 leaves them open */
    uint32_t attention_replicas;              /* the same; 0 is 1 */
    uint64_t draft_bytes; /* that the first rank's draft model takes; plan_draft_bytes() */
    bool shared_head; /* every stage has a part of the head (plan_head_run) */
} plan_shape_t;
enum { PLAN_KV_SEQUENCES = 8, PLAN_STEP_ROWS = 512, PLAN_LOGIT_ROWS = 64 };

/* What a shape asks of plan_cut(). */
static inline plan_cut_t plan_shape_cut(const plan_shape_t *shape)
{
    return (plan_cut_t){shape->tp, shape->expert_groups, shape->attention_slices,
                        shape->attention_replicas};
}

/* Memory of one rank, in bytes. */
typedef struct {
    uint64_t weights; /* packed: the file's bytes of its part and 1/8 for padding and F32 scales */
    uint64_t scratch; /* activations of a step, logits of its sequences */
    uint64_t process; /* code, stacks, buffers of the fabric */
    uint64_t draft;   /* a draft model with its cache */
    uint64_t fixed;   /* the sum of these */
    uint64_t kv_per_token;
    uint32_t kv_pools; /* of a replica's KV tokens this rank holds one in so many */
} plan_need_t;

/* What a rank's part of a replica's KV tokens takes, and the tokens of a replica whose ranks have
 * so many bytes for them; UINT64_MAX where the rank holds none. */
static inline uint64_t plan_kv_bytes(const plan_need_t *need, uint64_t kv_tokens)
{
    return (kv_tokens + need->kv_pools - 1) / need->kv_pools * need->kv_per_token;
}
static inline uint64_t plan_kv_tokens(const plan_need_t *need, uint64_t bytes)
{
    return need->kv_per_token == 0 ? UINT64_MAX : bytes / need->kv_per_token * need->kv_pools;
}

/* KV tokens of a draft model: the context of one sequence, of the others what answers usually take. */
static inline uint64_t plan_draft_tokens(uint32_t context)
{
    enum { SEQUENCES = 8, EXPECTED = 1024, GUESSES = 32 };
    return context + (SEQUENCES - 1) * (uint64_t)(context < EXPECTED ? context : EXPECTED) +
           SEQUENCES * (uint64_t)GUESSES;
}

/* What a draft model takes, whole and with its cache, for sequences of context_max (0: as many as it
 * was trained for). STATUS_INVALID as plan_need(). */
status_t plan_draft_bytes(const plan_sizes_t *draft, uint32_t context_max,
                          uint64_t *bytes_out) MUST_USE;

/* STATUS_INVALID names a shape that no memory would make right: tp or stages out of range,
 * context_max above the model's trained context, kv_tokens_max below plan_kv_tokens_needed(). */
status_t plan_need(const plan_sizes_t *sizes, const plan_shape_t *shape, uint32_t stage,
                   uint32_t slice, plan_need_t *out) MUST_USE;

/* The same for all tp * stages ranks (rank = stage * tp + slice), with the layers of each stage. */
status_t plan_needs(const plan_sizes_t *sizes, const plan_shape_t *shape,
                    plan_need_t needs_out[PLAN_RANKS_MAX],
                    plan_run_t layers_out[PLAN_STAGES_MAX]) MUST_USE;

/* The cuts that a shape leaves open, in the order in which they are to be tried: what plan_cut()
 * takes; the groups whose largest slice has the fewest bytes of experts; and, where every slice
 * with attention keeps the whole cache, half as many of those, and so on down to one, for ranks
 * that share a host's memory. Returns how many, at least one. STATUS_INVALID as plan_cut(). */
status_t plan_cuts(const model_config_t *config, const plan_shape_t *shape,
                   plan_cut_t cuts_out[PLAN_CUTS_MAX], uint32_t *n_out) MUST_USE;

/* The window behind which no layer of a model sees a key, or 0: blocks that lie behind it are given
 * back while the sequence goes on. */
uint32_t plan_kv_window(const model_config_t *config);

/* What a token leaves for a KV head: its key, and its value in whole 16s. */
static inline uint64_t plan_head_values(uint64_t dim)
{
    return dim + (dim + 15) / 16 * 16;
}

/* Positions that share the room of one compressed entry: a block of 16 has room for those of whole
 * windows, or for one. */
static inline uint64_t plan_entry_positions(uint32_t rate)
{
    return rate < 16 ? 16 / (16 / rate) : 16;
}

/* KV tokens that a sequence of `tokens` holds at most at once, when it comes in steps of `rows`: the
 * window, the step's own rows, and what lies in their blocks and in the window's first tile. */
static inline uint64_t plan_kv_tokens_held(uint32_t window, uint64_t rows, uint64_t tokens)
{
    uint64_t most = (window + rows + 2ull * PLAN_KV_BLOCK + 16) / PLAN_KV_BLOCK * PLAN_KV_BLOCK;
    return window > 0 && most < tokens ? most : tokens;
}

/* KV tokens that two sequences of context_max take, or one on each replica of attention where that is
 * more, and those that a replica is given when memory allows: kv_tokens_max, or PLAN_KV_SEQUENCES of
 * context_max on each replica of attention. Both in whole PLAN_KV_BLOCKs of each. */
uint64_t plan_kv_tokens_needed(const model_config_t *config, const plan_shape_t *shape);
uint64_t plan_kv_tokens_wanted(const model_config_t *config, const plan_shape_t *shape);

/* KV tokens that every rank can hold when each rank may use memory_bytes[rank] (rank = stage * tp +
 * slice; n = tp * stages), capped at the shape's maximum, in whole PLAN_KV_BLOCKs of each replica of
 * attention. STATUS_REFUSED, with the numbers of the tightest rank, when plan_kv_tokens_needed() do
 * not fit. */
status_t plan_fit(const plan_sizes_t *sizes, const plan_shape_t *shape,
                  const uint64_t *memory_bytes, uint64_t *kv_tokens_out) MUST_USE;

/* --- placing --- */

typedef struct {
    const char *id;
    uint32_t cores;
    uint64_t memory_bytes; /* that ranks may use */
    const char *const *model_digests; /* "sha256:…" of the models the host has */
    size_t n_model_digests;
    bool draining; /* takes no rank */
    bool suspect;  /* takes a rank only when nothing else would do */
} plan_host_t;

/* A rank that stands already, of whatever deployment. */
typedef struct {
    const char *host;
    const char *deployment;
    uint32_t ordinal;
    uint32_t threads;
    uint64_t memory_bytes;
} plan_existing_t;

typedef struct {
    const char *a, *b; /* hosts whose link is dead: no replica uses both */
} plan_host_pair_t;

typedef struct {
    const plan_host_t *hosts;
    size_t n_hosts;
    const plan_existing_t *existing;
    size_t n_existing;
    const plan_host_pair_t *avoided;
    size_t n_avoided;
} plan_world_t;

typedef struct {
    const char *deployment;
    uint32_t ordinal;
    const char *model_digest;
    const plan_sizes_t *sizes;
    plan_shape_t shape;
    uint32_t replicas; /* of the deployment, which share the cores; 0 counts as 1 */
    uint32_t threads;  /* of a rank; 0 shares the host's cores out */
    /* NULL, or tp * stages host ids (each may be NULL): the rank goes there or nowhere. */
    const char *const *pinned_hosts;
} plan_request_t;

typedef struct {
    uint32_t stage, slice;
    const char *host; /* borrowed from the world */
    uint32_t layer_first, layer_count;
    uint32_t threads;
    uint64_t memory_bytes; /* fixed part and KV */
} plan_rank_t;

typedef struct {
    uint32_t n_ranks;
    plan_rank_t ranks[PLAN_RANKS_MAX]; /* rank = stage * tp + slice */
    uint64_t kv_tokens;
    plan_cut_t cut;
    bool shared_head; /* as plan_shape_t */
    bool oversubscribed; /* more threads than cores somewhere: right, but slower than it could be */
} plan_placement_t;

/* Places one replica. Hosts are asked to carry it first on free cores, then, counting every rank
 * that stands there, at 1, 2, 4, 8 and PLAN_RANKS_PER_CORE_MAX ranks a core; at each level one host
 * alone is preferred, then several, cut between stages where a host takes a whole stage, else
 * between slices. Among hosts: fewest ranks of this deployment (so replicas spread), most free
 * cores, most free memory, lowest id. Memory is a hard limit everywhere. Suspect hosts are tried
 * only when the rest cannot hold it. Pinned ranks go where they are pinned, the others by the same
 * order. Where the shape leaves the cut open, the next of plan_cuts() is tried when no host can
 * carry the one before. On one host the stages share a large head, on several they do not: every row
 * of logits would pass between them. What the request's shape says of that is not looked at.
 *
 * STATUS_REFUSED with the reason when no placing is right now (no host has the model, too little
 * memory, all draining, pinned host missing), STATUS_INVALID when none ever would be. */
status_t plan_replica(const plan_world_t *world, const plan_request_t *request,
                      plan_placement_t *out) MUST_USE;

/* Places each request in turn, those before it counted as standing. statuses_out[i] is that of
 * request i; reasons_out, when not NULL, gets n texts (the caller frees each; NULL where it was
 * placed). Returns how many were placed. */
size_t plan_replicas(const plan_world_t *world, const plan_request_t *requests, size_t n,
                     plan_placement_t *placements_out, status_t *statuses_out,
                     char **own_reasons_out);

#endif
