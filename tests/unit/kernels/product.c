/* Products of packed weights, through the op table, of one rank or of several. */
#include "product.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

/* As the plan cuts an FFN of k values, into leaves half as wide: more of them and shorter ones. */
shape_t ffn_shape(uint32_t k, uint32_t n)
{
    uint32_t leaves = k / 128 < 4 ? 4 : k / 128 > 16 ? 16 : k / 128;
    uint32_t unit = k < 512 ? 8 : 32;
    uint32_t units = (k + unit - 1) / unit;
    shape_t shape = {.k = k, .n = n, .n_leaves = leaves};
    for (uint32_t i = 0; i < leaves; i++)
        shape.edges[i] = unit * (uint32_t)((uint64_t)i * units / leaves);
    shape.edges[leaves] = k;
    return shape;
}

shape_t whole_shape(uint32_t k, uint32_t n)
{
    return (shape_t){.k = k, .n = n, .n_leaves = 1, .edges = {0, k}};
}

kweight_t *pack(const fixture_t *f, const shape_t *shape, qtype_t type, const uint8_t *rows,
                       size_t bytes, tree_run_t run)
{
    kweight_part_t part = {.qtype = type, .rows = rows, .bytes = bytes, .n_rows = shape->n};
    kweight_spec_t spec = {.name = "w",
                           .parts = &part,
                           .n_parts = 1,
                           .k_total = shape->k,
                           .leaf_edges = shape->edges,
                           .n_leaves = shape->n_leaves,
                           .leaf_first = run.first,
                           .leaf_end = run.end};
    kweight_t *weight = NULL;
    assert_ok(f->ops->weight_pack(f->device, &spec, &weight));
    return weight;
}

kbatch_t *plain_batch(const fixture_t *f, uint32_t rows)
{
    kbatch_t *batch = NULL;
    assert_ok(f->ops->batch_new(f->device, 1024, 0, &batch));
    assert_ok(f->ops->batch_set_plain(f->queue, batch, rows));
    return batch;
}

/* The partials of one rank, [P][rows][n], in a fresh buffer. */
kref_t partials_of(const fixture_t *f, kbatch_t *batch, const shape_t *shape,
                          const kweight_t *weight, tree_run_t run, const float *x, uint32_t rows)
{
    kweight_info_t info = f->ops->weight_info(weight);
    kref_t in = ref_of(f, x, (size_t)rows * shape->k * sizeof *x);
    in.offset = shape->edges[run.first] * sizeof *x;
    kref_t input = new_ref(f, rows * info.input_row_bytes);
    kref_t out = new_ref(f, (size_t)info.n_partials * rows * shape->n * sizeof(float));
    assert_ok(f->ops->quantize(f->queue, batch, weight, in, shape->k, input));
    assert_ok(f->ops->matmul(f->queue, batch, weight, input, out));
    wait_all(f);
    release_ref(f, in);
    release_ref(f, input);
    return out;
}

/* The product over ranks with these leaf runs, added through tree_add. */
float *product(const fixture_t *f, const shape_t *shape, qtype_t type, const uint8_t *data,
                      size_t bytes, const tree_run_t *runs, uint32_t n_ranks, const float *x,
                      uint32_t rows)
{
    kref_t partials[TREE_RANKS_MAX];
    kbatch_t *batch = plain_batch(f, rows);
    for (uint32_t r = 0; r < n_ranks; r++) {
        kweight_t *weight = pack(f, shape, type, data, bytes, runs[r]);
        partials[r] = partials_of(f, batch, shape, weight, runs[r], x, rows);
        f->ops->weight_release(weight);
    }
    size_t out_bytes = (size_t)rows * shape->n * sizeof(float);
    kref_t out = new_ref(f, out_bytes);
    ktree_add_t add = {
        .n_leaves = shape->n_leaves, .runs = runs, .partials = partials, .n_ranks = n_ranks};
    assert_ok(f->ops->tree_add(f->queue, batch, shape->n, &add, (kref_t){0}, out));
    wait_all(f);
    float *result = mem_new(1, out_bytes);
    memcpy(result, f->ops->buffer_host(out.buffer), out_bytes);
    for (uint32_t r = 0; r < n_ranks; r++)
        release_ref(f, partials[r]);
    release_ref(f, out);
    f->ops->batch_release(batch);
    return result;
}

float *whole_product(const fixture_t *f, const shape_t *shape, qtype_t type,
                            const uint8_t *data, size_t bytes, const float *x, uint32_t rows)
{
    tree_run_t run = {0, (uint16_t)shape->n_leaves};
    return product(f, shape, type, data, bytes, &run, 1, x, rows);
}
