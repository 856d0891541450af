/* What a packed weight is made from. Packing happens once at load: rows of the model file, in their
 * stored precision, become panels of 32 output columns in the order in which the kernels read
 * them, cut into the segments of docs/numerics.md. */
#ifndef SHOAL_KERNELS_WEIGHT_H
#define SHOAL_KERNELS_WEIGHT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows [row_first, row_first + n_rows) of a source matrix [.. rows][k_total]. They become the next
 * n_rows output columns of the packed weight. A fused QKV is three parts, gate and up two. */
typedef struct {
    uint32_t qtype;   /* type id (common/base/qtype.h), any that is a weight */
    const void *rows; /* row 0 of the source, raw blocks, borrowed for the call */
    size_t bytes;     /* bytes readable at rows; a part that reaches further is refused */
    uint32_t row_first;
    uint32_t n_rows;
} kweight_part_t;

/* The whole matrix multiplies k_total inputs. leaf_edges holds n_leaves + 1 absolute K that never
 * descend, from 0 to k_total (an empty leaf's sum is +0); this rank computes leaves [leaf_first,
 * leaf_end), so its input has leaf_edges[leaf_end] - leaf_edges[leaf_first] values a row, the first
 * of which is absolute K leaf_edges[leaf_first]. A matmul with whole input has n_leaves = 1 and
 * edges {0, k_total}. An empty run is a valid weight of no input and no partial. */
typedef struct {
    const char *name; /* for error texts */
    const kweight_part_t *parts;
    uint32_t n_parts; /* 1…KWEIGHT_PARTS_MAX; parts of several kinds make a mixed input */
    uint32_t k_total;
    const uint32_t *leaf_edges;
    uint32_t n_leaves; /* 1…16 */
    uint32_t leaf_first;
    uint32_t leaf_end;
    bool leaves_apart; /* a partial for each leaf, not for each node of the cover: experts' down */
} kweight_spec_t;

enum {
    KWEIGHT_PARTS_MAX = 8,
    KWEIGHT_K_MAX = 1 << 20,
    KWEIGHT_N_MAX = 1 << 24,
};

/* What the input of a weight is turned into before the multiplication. */
typedef enum {
    KACTIVATION_INT8,    /* types with scales for 32 values: Q8_0, Q4_0, Q4_K, MXFP4, I8S, Z4 … */
    KACTIVATION_BF16,    /* BF16 and F8S */
    KACTIVATION_F32,     /* F32 and F16, types without an integer form, and in f32 mode all */
    KACTIVATION_INT8_16, /* types with scales for 16 values: Q2_K, Q3_K, Q6_K */
    KACTIVATION_MIXED,   /* parts of several kinds; such an input belongs to its weight alone */
} kactivation_t;

/* A packed weight; immutable, may be used from any queue of its device. */
typedef struct kweight kweight_t;

/* Facts about a packed weight. */
typedef struct {
    kactivation_t activation;
    uint32_t n;          /* output columns of all parts together */
    uint32_t k;          /* input values a row on this rank */
    uint32_t n_partials; /* P of tree.h: output is [P][rows][n] F32; 1 when there is one leaf */
    size_t packed_bytes;
    size_t input_row_bytes; /* bytes a row that ops->quantize writes for this weight */
} kweight_info_t;

#endif
