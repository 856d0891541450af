/* What the CPU backend's files share: packed forms, one level's table of kernels, the objects
 * behind the handles of ops.h. Nothing above kernels/cpu includes this, except its tests and
 * benches.
 *
 * A *level* (ref, avx2, avx512) is one table of functions over plain pointers. ref is the
 * definition; the others must give its bits. They all read the same packed weights and the same KV
 * pages. */
#ifndef SHOAL_KERNELS_CPU_INTERNAL_H
#define SHOAL_KERNELS_CPU_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/pool.h"
#include "kernels/ops.h"

enum {
    PANEL = 32,     /* output columns of a panel: two lines of 16 */
    LINE = 16,      /* columns of a line */
    SEGMENT_K = 32, /* values of the longest segment: one weight block, one group */
    PAIR_K = 8,     /* int8: k values of one pair of units; segments are padded to it */
    KEYS_TILE = NUMERICS_KEY_TILE,
    KEYS_CHUNK = NUMERICS_KEY_CHUNK,
    ATTEND_ROWS = 4, /* (row, query head) pairs that share the reading of a KV head */
};

/* How a part's panels are stored, segment by segment (or leaf by leaf) along K.
 * Q8:  per 4 k two lines [16 columns][4 k] of q + 128; after the segment 32 F16 scales.
 * Q4:  per 8 k two lines [16][4], low nibble k..k+3, high nibble k+4..k+7; then 32 scales.
 * Q4M: as Q4, then 32 F16 minimums.
 * BF16: per 2 k two lines [16][2]. F32: per k two lines [16]. F16: per k one line of 32. */
typedef enum { FORM_Q8, FORM_Q4, FORM_Q4M, FORM_BF16, FORM_F16, FORM_F32, N_FORMS } kform_t;

typedef struct {
    uint32_t k;    /* first value, counted in this rank's input */
    uint8_t len;   /* 1…32 */
    uint8_t pairs; /* ceil(len / 8) */
} kseg_t;
_Static_assert((int)SEGMENT_K == (int)NUMERICS_GROUP, "a segment has one activation scale");

/* One segment of an int8 input row, one cache line. Fast levels let the integer sum grow from
 * SUM_START, which makes its bits the float SUM_ZERO + S (numbers.h); one fma with da and offset
 * then is (float)S * da, rounded once, and takes the place of the conversion. |S| is at most 128 *
 * 127 * 32, below the 2^22 that this needs. */
typedef struct {
    _Alignas(64) int8_t q[SEGMENT_K]; /* 0 from the segment's length on */
    float da;
    float offset;     /* -SUM_ZERO * da, exact; NaN where da is */
    float sum;        /* (float)sum(q) * da */
    int32_t start_q4; /* SUM_START - 8 sum(q) */
    int32_t start_q8; /* SUM_START - 128 sum(q) */
    int32_t zero[3];
} kinput_seg_t;
_Static_assert(sizeof(kinput_seg_t) == 64, "a segment of an input row is one cache line");

typedef struct {
    uint32_t k, len;     /* in this rank's input */
    uint32_t k_padded;   /* where its values start in the padded K */
    uint32_t len_padded; /* BF16, F32, F16: to 2; int8: sum over its segments */
    uint32_t seg_first, seg_end;
} kleaf_t;

/* The layout of one input row: int8 rows are n_segs kinput_seg_t, the others k_padded values. */
typedef struct {
    kactivation_t kind;
    bool pair_order; /* F32 kind in native mode: within a pair the odd k comes first */
    uint32_t k;      /* source values a row */
    uint32_t k_padded;
    uint32_t n_leaves;
    kleaf_t *leaves;
    uint32_t n_segs;
    kseg_t *segs;
    size_t row_bytes;
} kinput_t;

typedef struct {
    kform_t form;
    uint32_t column; /* of the output */
    uint32_t n;
    uint32_t panel_first; /* in the weight's numbering of panels */
    uint32_t n_panels;
    size_t panel_bytes;
    uint8_t *data;
} kpart_t;

/* Steps that turn leaf sums into partials: the next leaf, the next leaf added to the topmost sum
 * (a leaf followed by an addition, which saves a turn through memory), the sum of the two topmost,
 * the next partial. */
enum { STEP_LEAF, STEP_LEAF_ADD, STEP_ADD, STEP_OUT };

struct kweight {
    kdevice_t *device;
    kinput_t input;
    uint32_t n, n_panels, n_parts, n_partials;
    kpart_t parts[KWEIGHT_PARTS_MAX];
    uint32_t n_steps;
    uint8_t steps[3 * NUMERICS_LEAVES_MAX];
    void *memory; /* of all panels */
    size_t memory_bytes;
};

typedef struct {
    const kweight_t *weight;
    const uint8_t *input;
    uint32_t rows;
    float *out; /* [P][rows][n] */
} kmatmul_t;

/* Pages of one KV head of one block: K [dim/2][16 tokens][2] BF16, then V [8 token pairs][dim16][2]
 * BF16; in f32 mode K [dim][16 tokens] and V [16 tokens][dim16] F32. dim16 is head_dim rounded up
 * to 16; the rest is 0. */
typedef struct {
    kmode_t mode;
    uint32_t head_dim, dim16, n_kv_heads, n_blocks, n_layers;
    size_t k_bytes, v_bytes;
    uint8_t *data;
    size_t bytes;
} kpages_t;

struct kkv {
    kdevice_t *device;
    kpages_t pages;
};

/* One call of the attention kernel: n (row, query head) pairs of one sequence and one KV head. */
typedef struct {
    const kpages_t *pages;
    const uint8_t *base; /* page of block 0 of this layer and KV head */
    size_t block_stride;
    const uint32_t *blocks;
    float scale; /* scale * log2(e) */
    uint32_t n;
    uint32_t positions[ATTEND_ROWS];
    const float *q[ATTEND_ROWS];
    float *out[ATTEND_ROWS];
} kattend_t;

typedef struct {
    const char *name;
    void (*rmsnorm)(const float *x, const float *weight, uint32_t n, float eps, float *out);
    /* Writes one input row; true when the row is an error: not finite, or too large to quantize. */
    bool (*quantize)(const kinput_t *layout, const float *x, uint8_t *row_out);
    void (*matmul)(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                   uint32_t row_first, uint32_t row_end);
    /* residual and bias may be NULL. Columns [first, end) of one row. */
    void (*tree_add)(const tree_program_t *program, const float *const *inputs, const float *bias,
                     const float *residual, float *out, uint32_t first, uint32_t end);
    void (*silu_mul)(const float *gate, const float *up, uint32_t n, float *out);
    void (*attend)(const kattend_t *job);
} klevel_t;

extern const klevel_t level_ref;
extern const klevel_t level_avx2;
extern const klevel_t level_avx512;

struct kdevice {
    const klevel_t *level;
    kmode_t mode;
    pool_t *pool;
    char refused[256];
};

struct kbuffer {
    kdevice_t *device;
    size_t bytes;
    uint8_t *data;
    size_t mapped_bytes;
};

struct ktable {
    uint32_t qtype, n_rows, k;
    size_t row_bytes;
    const uint8_t *rows;
};

struct krope {
    krope_spec_t spec;
    float *table; /* [positions][dim/2][2]: cosine, sine */
};

/* `declared_*` is what the last batch_set call said; the rest is what the queue has reached. */
struct kbatch {
    uint32_t rows_max, blocks_max;
    uint32_t declared_rows;
    bool declared_plain;
    uint32_t declared_position_max;
    uint32_t n_rows;
    kbatch_row_t *rows;
    uint32_t n_tables;
    uint32_t *table_first; /* [rows_max + 1] into blocks */
    uint32_t *blocks;
    uint8_t *errors;
};

/* pack.c */
status_t input_layout(const kweight_spec_t *spec, kactivation_t kind, bool pair_order,
                      kinput_t *own_out);
void input_release(kinput_t *input);
status_t weight_pack(kdevice_t *device, const kweight_spec_t *spec, kweight_t **own_out);
void weight_release(kweight_t *take_weight);
kweight_info_t weight_info(const kweight_t *weight);
/* The part that holds a panel. */
const kpart_t *weight_part(const kweight_t *weight, uint32_t panel);

/* memory_map.c: zeroed pages, huge where the system has them. */
void *map_pages(size_t bytes);
void unmap_pages(void *take_pages, size_t bytes);

/* kv.c */
status_t kv_open(kdevice_t *device, const kkv_shape_t *shape, kkv_t **own_out);
void kv_close(kkv_t *take_kv);
size_t kv_block_bytes(kmode_t mode, const kkv_shape_t *shape);
/* Writes one head of one token; true when a value is not finite (0 is stored instead). */
bool kv_put(const kpages_t *pages, uint32_t layer, uint32_t block, uint32_t head, uint32_t slot,
            const float *k, const float *v);
const uint8_t *kv_page(const kpages_t *pages, uint32_t layer, uint32_t block, uint32_t head);

/* rope.c */
status_t rope_open(kdevice_t *device, const krope_spec_t *spec, krope_t **own_out);
void rope_close(krope_t *take_rope);
void rope_turn(const krope_t *rope, uint32_t position, float *head);

/* levels.c */
status_t level_choose(const char *forced, const klevel_t **level_out, char *refused_out,
                      size_t refused_size);

#endif
