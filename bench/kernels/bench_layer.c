/* kernels-bench-layer [ROUNDS [TYPE [1b]]]: where the time of one layer goes, op by op, for the shape
 * of SmolLM2-135M or of a model of 1.1 B (weights of TYPE, Q4_1 if none is said), at the row counts
 * of decoding and of a prompt chunk. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/fused.h"

enum {
    DIM = 64,
    HEADS_MAX = 32,
    ROWS_MAX = 512,
    N_OPS = 8,
};

typedef struct {
    uint32_t hidden, ffn, heads, kv_heads, qkv;
    uint32_t leaves_o, leaves_down; /* docs/numerics.md, "Leaves" */
} shape_t;

static const shape_t SMOLLM2 = {576, 1536, 9, 3, 15 * DIM, 4, 6};
static const shape_t ONE_BILLION = {2048, 8192, 32, 8, 48 * DIM, 8, 16};
static const shape_t *shape = &SMOLLM2;

static const char *const OP_NAMES[N_OPS] = {"norm+quantize", "qkv", "position", "attention",
                                            "quantize",      "o",   "gate+up",  "down"};

typedef struct {
    const kernel_ops_t *ops;
    kdevice_t *device;
    kqueue_t *queue;
    kbatch_t *batch;
    kkv_t *kv;
    krope_t *rope;
    kweight_t *qkv, *o, *up, *down;
    kref_t x, norm, weight, input, middle, wide, partials;
} layer_t;

static qtype_t weight_type = QTYPE_Q4_1;

static void must(status_t status)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "kernels-bench-layer: %s\n", status_text());
    exit(1);
}

/* n_parts of n rows each; leaves end at multiples of `unit` inputs. */
static kweight_t *make_weight(layer_t *l, uint32_t n_parts, uint32_t n, uint32_t k,
                              uint32_t n_leaves, uint32_t unit)
{
    uint64_t row_bytes = 0;
    (void)qtype_row_bytes(weight_type, k, &row_bytes);
    uint8_t *rows = mem_new(n, row_bytes);
    for (size_t i = 0; i < n * row_bytes; i++)
        rows[i] = (uint8_t)((i * 2654435761u) >> 13 & 0x2b);
    uint32_t edges[NUMERICS_LEAVES_MAX + 1];
    for (uint32_t i = 0; i <= n_leaves; i++)
        edges[i] = k / unit * i / n_leaves * unit;
    kweight_part_t part = {.qtype = weight_type, .rows = rows, .bytes = n * row_bytes, .n_rows = n};
    kweight_part_t parts[] = {part, part};
    kweight_spec_t spec = {.name = "bench",
                           .parts = parts,
                           .n_parts = n_parts,
                           .k_total = k,
                           .leaf_edges = edges,
                           .n_leaves = n_leaves,
                           .leaf_end = n_leaves};
    kweight_t *weight = NULL;
    must(l->ops->weight_pack(l->device, &spec, &weight));
    free(rows);
    return weight;
}

static layer_t open_layer(uint32_t threads)
{
    layer_t l = {.ops = kernels_cpu()};
    kdevice_options_t options = {.threads = threads};
    must(l.ops->device_open(&options, &l.device));
    must(l.ops->queue_open(l.device, KQUEUE_NOW, &l.queue));
    must(l.ops->batch_new(l.device, ROWS_MAX, 4096, &l.batch));
    kkv_shape_t cache = {.n_layers = 1, .n_kv_heads = shape->kv_heads, .head_dim = DIM, .n_blocks = 64};
    must(l.ops->kv_open(l.device, &cache, &l.kv));
    krope_spec_t rope = {.dim = DIM, .base = 1e5, .position_scale = 1, .positions = 1024};
    must(l.ops->rope_open(l.device, &rope, &l.rope));
    l.qkv = make_weight(&l, 1, shape->qkv, shape->hidden, 1, 32);
    l.o = make_weight(&l, 1, shape->hidden, shape->hidden, shape->leaves_o, DIM);
    l.up = make_weight(&l, 2, shape->ffn, shape->hidden, 1, 32);
    l.down = make_weight(&l, 1, shape->hidden, shape->ffn, shape->leaves_down, 32);
    kref_t *refs[] = {&l.x, &l.norm, &l.weight, &l.input, &l.middle, &l.wide, &l.partials};
    for (size_t i = 0; i < sizeof refs / sizeof refs[0]; i++)
        must(l.ops->buffer_new(l.device, (size_t)ROWS_MAX * 2 * shape->ffn * 4, &refs[i]->buffer));
    float *x = l.ops->buffer_host(l.x.buffer), *weight = l.ops->buffer_host(l.weight.buffer);
    for (size_t i = 0; i < (size_t)ROWS_MAX * shape->hidden; i++)
        x[i] = ((float)(i * 2654435761u % 2001) / 1000.0f - 1.0f) *
               (i % shape->hidden % 190 == 7 ? 20 : 1);
    for (size_t i = 0; i < shape->hidden; i++)
        weight[i] = 1.0f;
    return l;
}

static void close_layer(layer_t *l)
{
    kref_t refs[] = {l->x, l->norm, l->weight, l->input, l->middle, l->wide, l->partials};
    for (size_t i = 0; i < sizeof refs / sizeof refs[0]; i++)
        l->ops->buffer_release(refs[i].buffer);
    kweight_t *weights[] = {l->qkv, l->o, l->up, l->down};
    for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
        l->ops->weight_release(weights[i]);
    l->ops->rope_close(l->rope);
    l->ops->kv_close(l->kv);
    l->ops->batch_release(l->batch);
    l->ops->queue_close(l->queue);
    l->ops->device_close(l->device);
}

static void run_op(layer_t *l, uint32_t op)
{
    uint16_t map[HEADS_MAX];
    for (uint32_t h = 0; h < shape->heads; h++)
        map[h] = (uint16_t)(h * shape->kv_heads / shape->heads);
    const kernel_ops_t *ops = l->ops;
    kqueue_t *q = l->queue;
    kattention_t attention = {
        .n_heads = shape->heads, .head_dim = DIM, .kv_head_of = map, .scale = 0.125f};
    kpositioned_t position = {.rope = l->rope, .kv = l->kv, .n_heads = shape->heads,
                              .n_kv_heads = shape->kv_heads, .head_dim = DIM};
    knormed_t norm = {.norm = l->weight, .eps = 1e-5f, .weight = l->qkv};
    kgate_up_t gate_up = {
        .gate_up = l->up, .down = l->down, .activate = {.kind = KACTIVATE_SILU}};
    switch (op) {
    case 0:
        must(ops->fused->norm_quantize(q, l->batch, shape->hidden, l->x, &norm, l->input));
        return;
    case 1:
        must(ops->matmul(q, l->batch, l->qkv, l->input, l->wide));
        return;
    case 2:
        must(ops->fused->position(q, l->batch, &position, l->wide, shape->qkv));
        return;
    case 3:
        must(ops->attention(q, l->batch, l->kv, &attention, l->wide, shape->qkv, l->norm));
        return;
    case 4:
        must(ops->quantize(q, l->batch, l->o, l->norm, shape->hidden, l->middle));
        return;
    case 5:
        must(ops->matmul(q, l->batch, l->o, l->middle, l->partials));
        return;
    case 6: /* of the rows that q, k and v had: their layout is the same */
        must(ops->fused->gate_up(q, l->batch, &gate_up, l->input, l->wide, l->middle));
        return;
    default:
        must(ops->matmul(q, l->batch, l->down, l->middle, l->partials));
    }
}

/* One sequence: rows tokens that end at position `context` - 1. */
static void bench_rows(layer_t *l, uint32_t threads, uint32_t rows, uint32_t context,
                       uint32_t n_rounds)
{
    kbatch_row_t batch_rows[ROWS_MAX];
    uint32_t blocks[64];
    for (uint32_t i = 0; i < 64; i++)
        blocks[i] = i;
    for (uint32_t i = 0; i < rows; i++)
        batch_rows[i] = (kbatch_row_t){.position = context - rows + i};
    must(l->ops->batch_set(l->queue, l->batch, batch_rows, rows, &(kbatch_table_t){blocks, 64}, 1));
    uint64_t best[N_OPS];
    memset(best, 0xff, sizeof best);
    for (uint32_t round = 0; round < n_rounds; round++)
        for (uint32_t op = 0; op < N_OPS; op++) {
            uint64_t start = clock_ns();
            run_op(l, op);
            uint64_t took = clock_ns() - start;
            best[op] = took < best[op] ? took : best[op];
        }
    uint64_t total = 0;
    printf("threads %u  rows %3u  context %4u:", threads, rows, context);
    for (uint32_t op = 0; op < N_OPS; op++) {
        printf("  %s %.1f", OP_NAMES[op], (double)best[op] / 1000);
        total += best[op];
    }
    printf("  = %.1f us a layer\n", (double)total / 1000);
}

int main(int argc, char **argv)
{
    uint32_t n_rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 10;
    for (uint32_t type = 0; argc > 2 && type < QTYPE_OWN_FIRST; type++)
        if (qtype_info(type) != NULL && strcmp(qtype_name(type), argv[2]) == 0)
            weight_type = (qtype_t)type;
    if (argc > 3 && strcmp(argv[3], "1b") == 0)
        shape = &ONE_BILLION;
    for (uint32_t threads = 1; threads <= 2; threads++) {
        layer_t layer = open_layer(threads);
        bench_rows(&layer, threads, 1, 512, n_rounds);
        bench_rows(&layer, threads, 8, 512, n_rounds);
        bench_rows(&layer, threads, 512, 512, n_rounds);
        close_layer(&layer);
    }
    return 0;
}
