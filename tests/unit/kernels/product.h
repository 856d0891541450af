/* What the tests of matmul share: shapes, packing, and whole products. */
#ifndef SHOAL_TESTS_UNIT_KERNELS_PRODUCT_H
#define SHOAL_TESTS_UNIT_KERNELS_PRODUCT_H

#include "support.h"

typedef struct {
    uint32_t k, n;
    uint32_t edges[NUMERICS_LEAVES_MAX + 1];
    uint32_t n_leaves;
} shape_t;

/* As the plan cuts an FFN of k values, into leaves half as wide: more of them and shorter ones. */
shape_t ffn_shape(uint32_t k, uint32_t n);
shape_t whole_shape(uint32_t k, uint32_t n);

kweight_t *pack(const fixture_t *f, const shape_t *shape, qtype_t type, const uint8_t *rows,
                size_t bytes, tree_run_t run);
kbatch_t *plain_batch(const fixture_t *f, uint32_t rows);

/* The partials of one rank, [P][rows][n], in a fresh buffer. */
kref_t partials_of(const fixture_t *f, kbatch_t *batch, const shape_t *shape,
                   const kweight_t *weight, tree_run_t run, const float *x, uint32_t rows);

/* The product over ranks with these leaf runs, added through tree_add to zeros. To be released. */
float *product(const fixture_t *f, const shape_t *shape, qtype_t type, const uint8_t *data,
               size_t bytes, const tree_run_t *runs, uint32_t n_ranks, const float *x,
               uint32_t rows);
float *whole_product(const fixture_t *f, const shape_t *shape, qtype_t type, const uint8_t *data,
                     size_t bytes, const float *x, uint32_t rows);

#endif
