/* What the CPU backend's files share: packed forms, one level's table of kernels, the objects
 * behind the handles of ops.h. Nothing above kernels/cpu includes this, except its tests and
 * benches.
 *
 * A *level* (ref, avx2, avx512, amx) is one table of functions over plain pointers. ref is the
 * definition; the others must give its bits. They all read the same packed weights and the same KV
 * pages. */
#ifndef SHOAL_KERNELS_CPU_INTERNAL_H
#define SHOAL_KERNELS_CPU_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/pool.h"
#include "kernels/cpu/form.h"
#include "kernels/ops.h"

enum {
    PANEL = 32,            /* output columns of a panel: two lines of 16 */
    LINE = 16,             /* columns of a line */
    SEGMENT_K = 32,        /* values of the longest segment: one weight block, one group */
    PAIR_K = 8,            /* int8: k values of one pair of units; segments are padded to it */
    SHORT_SEGMENT_K = 16,  /* of types with scales for 16 values */
    WIDE_SEGMENT_K = 128,  /* of E4 */
    WEIGHT_INPUTS_MAX = 4, /* one for each kind of activation */
    KEYS_TILE = NUMERICS_KEY_TILE,
    KEYS_CHUNK = NUMERICS_KEY_CHUNK,
    ATTEND_ROWS = 4,   /* (row, query head) pairs that share the reading of a KV head */
    APART_ROWS = 96,   /* whose values apart share decoded columns: whole tiles of 4 and 6 */
    ATTEND_PAIRS = 16, /* pairs of one call, which share a tile that has to be gathered or turned */
};

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

/* The values of an int8 row that are multiplied apart, ascending: in their groups they are 0. */
typedef struct {
    _Alignas(64) float value[NUMERICS_APART];
    uint32_t k[NUMERICS_APART]; /* in this rank's input */
    uint32_t n;
    uint32_t zero[15 - 2 * NUMERICS_APART];
} kapart_t;
_Static_assert(sizeof(kapart_t) == 64, "a row's values apart are one cache line");

/* Those of some rows, and the columns of weights that they need. */
typedef struct {
    uint32_t n; /* columns */
    uint32_t k[APART_ROWS * NUMERICS_APART];
    float value[APART_ROWS][NUMERICS_APART];
    uint16_t column[APART_ROWS][NUMERICS_APART]; /* an index into k */
    uint8_t n_values[APART_ROWS];
} kapart_list_t;

typedef struct {
    uint32_t k, len;     /* in this rank's input */
    uint32_t absolute;   /* k in the whole matrix */
    uint32_t k_padded;   /* where its values start in the padded K */
    uint32_t len_padded; /* BF16, F32, F16: to 2; int8: sum over its segments */
    uint32_t seg_first, seg_end;
} kleaf_t;

/* Values of the next segment of 128 of a leaf, of which `done` are behind. */
static inline uint32_t wide_segment(const kleaf_t *leaf, uint32_t done)
{
    uint32_t next = WIDE_SEGMENT_K - (leaf->absolute + done) % WIDE_SEGMENT_K;
    return next < leaf->len - done ? next : leaf->len - done;
}

/* What stands in front of a leaf's codes where columns share their scales: one for each segment. */
static inline size_t wide_scale_bytes(const kleaf_t *leaf)
{
    if (leaf->len == 0)
        return 0;
    uint32_t last = (leaf->absolute + leaf->len - 1) / WIDE_SEGMENT_K;
    uint32_t n = last - leaf->absolute / WIDE_SEGMENT_K + 1;
    return ((size_t)n * sizeof(float) + 63) / 64 * 64;
}

/* The layout of one input row: int8 rows are n_segs kinput_seg_t and, has_apart, a kapart_t; the
 * others k_padded values. */
typedef struct {
    kactivation_t kind; /* KACTIVATION_INT8_16 has shorter segments, else it is as INT8 */
    bool pair_order;    /* F32 kind in native mode: within a pair the odd k comes first */
    uint32_t k;         /* source values a row */
    uint32_t k_padded;
    uint32_t n_leaves;
    kleaf_t *leaves;
    uint32_t n_segs;
    kseg_t *segs;
    bool has_apart; /* int8 with one leaf: segments but the last are full */
    size_t row_bytes;
} kinput_t;

typedef struct {
    kform_t form;
    bool bf16_scales;      /* S4, Z4: their 16 bits are BF16, else F16 */
    bool shared_scales;    /* E4: one for all columns of a panel */
    uint32_t run;          /* forms with tails: values under one scale */
    const kinput_t *input; /* of the weight's */
    size_t input_offset;   /* where it starts in an input row */
    uint32_t column;       /* of the output */
    uint32_t n;
    uint32_t panel_first; /* in the weight's numbering of panels */
    uint32_t n_panels;
    size_t panel_bytes;
    size_t spread_bytes; /* of a decoded panel; 0: none is made */
    uint8_t *data;
} kpart_t;

/* A step for each leaf turns leaf sums into partials: how many of the sums before it are added to
 * it, the latest first, each in front of what there is; STEP_OUT: that is the next partial. */
enum { STEP_ADDS = 7, STEP_OUT = 8 };

struct kweight {
    kdevice_t *device;
    /* One layout for each kind that the parts need, side by side in a row; all have one K. */
    kinput_t inputs[WEIGHT_INPUTS_MAX];
    uint32_t n_inputs;
    size_t row_bytes;
    uint32_t n, n_panels, n_parts, n_partials;
    kpart_t parts[KWEIGHT_PARTS_MAX];
    uint32_t n_steps;
    uint8_t steps[NUMERICS_LEAVES_MAX];
    void *memory; /* of all panels */
    size_t memory_bytes;
    bool borrowed; /* `memory` is an image: only read, and not ours to release */
};

typedef struct {
    const kweight_t *weight;
    const uint8_t *input;
    uint32_t rows;
    float *out;       /* [P][rows][n] */
    uint8_t *scratch; /* device_panel */
    /* Where single panels go elsewhere: floats from row to row of `out`, and the weight's column
     * that stands first in it. ld 0: all columns, n apart. */
    uint32_t ld, column;
    /* Lists of the rows' values apart, APART_ROWS rows each, for the weight's first layout; NULL:
     * matmul makes them. */
    const kapart_list_t *apart;
} kmatmul_t;

/* Pages of one KV head of one block: K [dim/2][16 tokens][2] BF16, then V [8 token pairs][dim16][2]
 * BF16; in f32 mode K [dim][16 tokens] and V [16 tokens][dim16] F32. dim16 is value_dim rounded up
 * to 16; the rest is 0. No V where values lie in the keys or there are none. Caches of more than
 * one position an entry, and exact ones, have rows instead: [slots][key_dim]. Caches of codes have
 * a byte in the place of each BF16, and behind K and behind V a line with the scales of the 16
 * tokens. */
typedef struct {
    kmode_t mode; /* KMODE_F32 where F32 is stored, in exact caches too */
    kkv_type_t type;
    bool rows, values_in_keys;
    uint32_t key_dim, value_dim, dim16, n_kv_heads, n_blocks, n_layers;
    uint32_t rate, slots; /* positions of an entry, entries of a block */
    size_t k_bytes, v_bytes;
    uint8_t *data;
    size_t bytes;
} kpages_t;

struct kkv {
    kdevice_t *device;
    kpages_t pages;
    kkv_t *next; /* this and the rest is kv_ahead.c's, under its lock */
    uint32_t *n_present; /* blocks of each layer that are */
};

/* Entries that attention looks at, of one cache, layer and KV head. Entry i of pair r is visible
 * for first[r] <= i < end[r]; with a list, which all pairs share, i is the rank in that list. */
typedef struct {
    const kpages_t *pages;
    const uint8_t *base; /* page of block 0 of this layer and KV head */
    size_t block_stride;
    const uint32_t *blocks;
    const uint32_t *list;
    uint32_t first[ATTEND_PAIRS], end[ATTEND_PAIRS];
} kpass_t;

/* One call of the attention kernel: n (row, query head) pairs of one sequence and one KV head. */
typedef struct {
    kpass_t pass[2];
    uint32_t n_passes;
    uint8_t *scratch; /* ATTEND_SCRATCH_BYTES, 64-byte aligned, for fast levels */
    float scale;      /* scale * log2(e); with a softcap scale alone */
    float softcap;    /* 0: none */
    uint32_t n;
    const float *sinks[ATTEND_PAIRS]; /* one F32 each, or NULL */
    const float *q[ATTEND_PAIRS];
    float *out[ATTEND_PAIRS];
    /* Blocks from which the caller's next call will read first, so that they can be fetched while
     * this one computes: as in kpass_t. n_blocks is 0 where there are none. */
    struct {
        const uint8_t *base;
        const uint32_t *blocks;
        uint32_t n_blocks;
    } after;
    /* Where the call sees one chunk of its keys: that chunk's maximum, sum and, from a line on,
     * values go here instead of results to `out`. NULL, or none is. */
    float *state[ATTEND_PAIRS];
} kattend_t;

/* The index scores of one row over entries of one pass, which is its first[0] … end[0]. */
typedef struct {
    kpass_t pass;
    uint8_t *scratch; /* as kattend_t's */
    uint32_t n_heads;
    float scale, weight_scale;
    const float *q, *w; /* [n_heads][key_dim], [n_heads] */
    float *scores_out;  /* [entry] */
} kscore_t;

/* A tile of keys and values in the layout of pages, when they have to be gathered or turned, and
 * behind it a level's own state: on the stack, whose every page is probed, it would cost as much as
 * 60 keys. */
#define ATTEND_TILE_BYTES ((size_t)2 * KEYS_TILE * KHEAD_DIM_MAX * 4)
#define ATTEND_SCRATCH_BYTES (ATTEND_TILE_BYTES + ((size_t)1 << 17))

typedef struct {
    const char *name;
    void (*rmsnorm)(const float *x, const float *weight, uint32_t n, float eps, float *out);
    /* Writes one input row; true when the row is an error: not finite, or too large to quantize. */
    bool (*quantize)(const kinput_t *layout, const float *x, uint8_t *row_out);
    void (*matmul)(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end,
                   uint32_t row_first, uint32_t row_end);
    /* What matmul takes of its scratch for a part with many rows. NULL: nothing. */
    size_t (*spread_bytes)(const kpart_t *part);
    /* Rows from which matmul works with tile registers; 0: never. */
    uint32_t tile_rows;
    /* residual and bias may be NULL. Columns [first, end) of one row. */
    void (*tree_add)(const tree_program_t *program, const float *const *inputs, const float *bias,
                     const float *residual, float *out, uint32_t first, uint32_t end);
    void (*silu_mul)(const float *gate, const float *up, uint32_t n, float *out);
    /* Gate and up apart, whatever `interleaved` says. */
    void (*activate)(const kactivate_t *what, const float *gate, const float *up, uint32_t n,
                     float *out);
    void (*softcap)(float *x, uint32_t n, float cap);
    /* Turns one head, from the first dimension that turns on; `turns` are half cosines, then half
     * sines. */
    void (*turn)(krope_pairs_t pairs, const float *turns, uint32_t half, float *head);
    void (*attend)(const kattend_t *job);
    /* The result of the one pair of `job` from the states of its n chunks, ascending. NULL: the
     * level writes no states. */
    void (*merge)(const kattend_t *job, const float *states, size_t stride, uint32_t n);
    void (*score)(const kscore_t *job);
} klevel_t;

extern const klevel_t level_ref;
extern const klevel_t level_avx2;
extern const klevel_t level_avx512;
extern const klevel_t level_amx;

struct kdevice {
    const klevel_t *level;
    kmode_t mode;
    pool_t *pool;
    uint8_t *scratch; /* ATTEND_SCRATCH_BYTES a thread, touched when used */
    /* What one op needs while it runs; grown when objects are opened, never in a step. */
    uint8_t *scratch_block;
    size_t scratch_block_bytes;
    /* A decoded panel for each thread, panel_bytes apart; grown as scratch_block is. */
    uint8_t *panels;
    size_t panel_bytes;
    struct kv_ahead *kv_ahead; /* NULL: no cache is large enough */
    char refused[256];
    /* [threads], time spent in an op's functions; NULL while no queue is traced. */
    struct busy {
        _Alignas(64) uint64_t ns;
    } *busy;
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
    float *table; /* [positions][2][dim/2]: cosines, sines */
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
status_t check_edges(const kweight_spec_t *spec);
/* Leaves that a weight sums apart: its run's, but in a build for measuring (numerics.h). */
uint32_t leaves_summed(const kweight_spec_t *spec);
void input_layout(const kweight_spec_t *spec, kactivation_t kind, bool pair_order,
                  kinput_t *own_out);
void input_release(kinput_t *input);
status_t weight_pack(kdevice_t *device, const kweight_spec_t *spec, kweight_t **own_out);
/* All of weight_pack but the panels, for which there is no memory yet; the parts' rows are not
 * looked at, so the caller says whether columns share their scales (of type F8S, else it says
 * nothing). weight_place says where the panels lie: memory_bytes from `memory` on. */
status_t weight_prepare(kdevice_t *device, const kweight_spec_t *spec, bool shared_scales,
                        kweight_t **own_out);
void weight_place(kweight_t *weight, void *memory);
void weight_release(kweight_t *take_weight);
kweight_info_t weight_info(const kweight_t *weight);
const kpart_t *weight_part(const kweight_t *weight, uint32_t panel); /* that holds it */

/* One input row for a weight; true when the row is an error. */
bool weight_quantize(const klevel_t *level, const kweight_t *weight, const float *x,
                     uint8_t *row_out);
/* apart.c: lists for n rows of a layout that has values apart, row_bytes from one to the next. */
void apart_lists(const kinput_t *layout, const uint8_t *input, size_t row_bytes, uint32_t n,
                 kapart_list_t *out);
static inline const kapart_t *apart_of(const kinput_t *layout, const uint8_t *row)
{
    return (const kapart_t *)(const void *)row + layout->n_segs;
}

/* weight_image.c */
const char *weight_layout(kmode_t mode);
const void *weight_image(const kweight_t *weight);
status_t weight_open_image(kdevice_t *device, const kweight_spec_t *spec, const void *image,
                           size_t bytes, kweight_t **own_out);

/* codes.c: one segment's worth of a quantized row as integers: value i is
 * (q[i] - FORM_ZERO) * d + m, m only where the form has minimums. */
typedef struct {
    float d, m;
    uint8_t q[SEGMENT_K];
    /* What d and m are products of, for forms with runs: halves, m's with its sign, and bytes. */
    uint16_t half_d, half_m;
    uint8_t scale, minimum;
} kcodes_t;
typedef void (*codes_fn)(const uint8_t *row, uint32_t segment, kcodes_t *out);
/* The 16 integers of a form's table, plus 128. */
const uint8_t *codes_table(kform_t form);
/* How a type is multiplied in native mode; `codes` is NULL where the packing needs none. `run` and
 * `bf16_scales` are those of kpart_t. */
typedef struct {
    kform_t form;
    kactivation_t kind;
    codes_fn codes;
    uint32_t run;
    bool bf16_scales;
} kmultiply_t;
/* False for types that are no weights. */
bool type_multiply(uint32_t qtype, kmode_t mode, kmultiply_t *out);

/* pack_panel.c: the rows of a panel's columns, whole rows of a model file. In the default
 * floating-point mode; the columns that n_rows leaves over are not touched. */
typedef struct {
    uint32_t qtype;
    codes_fn codes; /* of kmultiply_t */
    const uint8_t *rows;
    size_t row_bytes;
    uint32_t n_rows;
    uint32_t k_total, k_base; /* k_base: where this rank's input begins */
    float *row;               /* room for k_total values */
} kpanel_source_t;
void panel_write(const kpart_t *part, const kpanel_source_t *from, uint8_t *panel_out);

/* memory_map.c: zeroed pages, huge where the system has them. */
void *map_pages(size_t bytes);
void unmap_pages(void *take_pages, size_t bytes);
/* The same for weights and scratch, which share huge pages where they are small; any thread. */
void *map_shared(size_t bytes);
void unmap_shared(void *take_pages, size_t bytes);

/* device.c */
status_t device_scratch_reserve(kdevice_t *device, size_t bytes);
status_t device_panels_reserve(kdevice_t *device, size_t bytes);
/* The thread's room for a decoded panel; NULL where no weight needs one. */
static inline uint8_t *device_panel(const kdevice_t *device, uint32_t thread)
{
    return device->panels != NULL ? device->panels + thread * device->panel_bytes : NULL;
}

/* heads.c, experts.c */
status_t heads_pack(kdevice_t *device, const kheads_spec_t *spec, kheads_t **own_out);
void heads_release(kheads_t *take_heads);
status_t experts_open(kdevice_t *device, const kexperts_spec_t *spec, kexperts_t **own_out);
void experts_close(kexperts_t *take_experts);

/* kv.c */
status_t kv_open(kdevice_t *device, const kkv_shape_t *shape, kkv_t **own_out);
void kv_close(kkv_t *take_kv);
size_t kv_block_bytes(kmode_t mode, const kkv_shape_t *shape);
/* Writes one head of one entry (v is not looked at where the cache has no values of its own); true
 * when a value is not finite (0 is stored instead). */
bool kv_put(const kpages_t *pages, uint32_t layer, uint32_t block, uint32_t head, uint32_t slot,
            const float *k, const float *v);
const uint8_t *kv_page(const kpages_t *pages, uint32_t layer, uint32_t block, uint32_t head);

/* attend_stage.c: writes entries [tile, tile + n) of a pass as four K pages and four V pages, n up
 * to KEYS_TILE; what lies behind them in the last page stays. */
void stage_gather(const kpass_t *pass, uint32_t tile, uint32_t n, uint8_t *k_out, uint8_t *v_out);
/* The same of V alone, from keys that lie in lanes. */
void stage_values(const kpass_t *pass, uint32_t tile, uint32_t n, uint8_t *v_out);

/* rope.c */
status_t rope_open(kdevice_t *device, const krope_spec_t *spec, krope_t **own_out);
void rope_close(krope_t *take_rope);
void rope_turn(const klevel_t *level, const krope_t *rope, uint32_t position, float *head);

/* levels.c */
status_t level_choose(const char *forced, const klevel_t **level_out, char *refused_out,
                      size_t refused_size);

#endif
