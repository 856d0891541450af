/* kernels-bench-attend: attention over the cache of a model shaped like SmolLM2-135M.
 *
 *   kernels-bench-attend [--isa LEVEL] [--threads T] [--rounds R] [--layers L]
 *                        [--only decode|prompt] [--kv bf16|int8|fp8] [--context C]
 *
 * Decoding: one row for each of some streams, over all 30 (or L) layers in turn, so that what a
 * step reads comes from where it would come from in a model. Prompts: the last 512 rows of one
 * sequence, over one layer. Beside each time stand the rate of multiply-adds against the probe of
 * the unit that does them, and the bytes of keys and values a second against the probe of reading
 * as many. One thread is timed by the clock of its process, more by the wall's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ceiling.h"
#include "common/base/clock.h"
#include "common/base/memory.h"
#include "kernels/ops.h"

enum {
    LAYERS = 30,
    HEADS = 9,
    KV_HEADS = 3,
    DIM = 64,
    QKV = (HEADS + 2 * KV_HEADS) * DIM,
    ROWS_MAX = 512,
    MULTIPLY_ADDS = 2 * HEADS * DIM,      /* of one row with one key */
    ROUND_NS = 20000000,
};

typedef struct {
    const char *isa;
    uint32_t threads, n_rounds, n_layers, context; /* 0: all contexts */
    kkv_type_t type;
    const kernel_ops_t *ops;
    kdevice_t *device;
    kqueue_t *queue;
    kbatch_t *batch;
    kkv_t *kv;
    kref_t x, out;
    probes_t probes;
} bench_t;

static void must(status_t status)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "kernels-bench-attend: %s\n", status_text());
    exit(1);
}

static uint64_t now_ns(const bench_t *b)
{
    return b->threads == 1 ? cpu_ns() : clock_ns();
}

/* Rows [first, first + n) of each of n_streams sequences that have `blocks` blocks each, dealt to
 * them in turn as a scheduler deals them. */
static void set_rows(bench_t *b, uint32_t n_streams, uint32_t blocks, uint32_t first, uint32_t n)
{
    static kbatch_row_t rows[ROWS_MAX];
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, (size_t)n_streams * blocks);
    kbatch_table_t *tables = MEM_NEW_ARRAY(kbatch_table_t, n_streams);
    uint32_t n_rows = 0;
    for (uint32_t s = 0; s < n_streams; s++) {
        for (uint32_t i = 0; i < blocks; i++)
            ids[s * blocks + i] = i * n_streams + s;
        tables[s] = (kbatch_table_t){ids + (size_t)s * blocks, blocks};
        for (uint32_t i = 0; i < n; i++)
            rows[n_rows++] = (kbatch_row_t){.position = first + i, .sequence = s};
    }
    must(b->ops->batch_set(b->queue, b->batch, rows, n_rows, tables, n_streams));
    free(ids);
    free(tables);
}

static void fill_cache(bench_t *b, uint32_t n_layers, uint32_t n_streams, uint32_t context)
{
    kref_t k = b->x, v = b->x;
    k.offset = HEADS * DIM * 4;
    v.offset = (HEADS + KV_HEADS) * DIM * 4;
    uint32_t step = ROWS_MAX / n_streams;
    for (uint32_t at = 0; at < context; at += step) {
        set_rows(b, n_streams, (context + 15) / 16, at, context - at < step ? context - at : step);
        for (uint32_t layer = 0; layer < n_layers; layer++)
            must(b->ops->kv_append(b->queue, b->batch, b->kv, layer, k, v, QKV));
    }
}

static void attend_layers(bench_t *b, uint32_t n_layers)
{
    static const uint16_t map[HEADS] = {0, 0, 0, 1, 1, 1, 2, 2, 2};
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        kattention_t what = {.layer = layer,
                             .n_heads = HEADS,
                             .head_dim = DIM,
                             .kv_head_of = map,
                             .scale = 0.125f};
        must(b->ops->attention(b->queue, b->batch, b->kv, &what, b->x, QKV, b->out));
    }
}

/* The last `rows` positions of each stream's context, over n_layers; prints one line. */
static void bench_case(bench_t *b, uint32_t n_layers, uint32_t n_streams, uint32_t context,
                       uint32_t rows)
{
    kkv_shape_t shape = {.n_layers = n_layers,
                         .n_kv_heads = KV_HEADS,
                         .head_dim = DIM,
                         .n_blocks = n_streams * ((context + 15) / 16),
                         .type = b->type};
    must(b->ops->kv_open(b->device, &shape, &b->kv));
    fill_cache(b, n_layers, n_streams, context);
    set_rows(b, n_streams, (context + 15) / 16, context - rows, rows);
    uint64_t best = UINT64_MAX;
    for (uint32_t i = 0; i < b->n_rounds; i++) {
        uint64_t start = now_ns(b), took;
        uint32_t calls = 0;
        do {
            attend_layers(b, n_layers);
            calls++;
            took = now_ns(b) - start;
        } while (took < ROUND_NS);
        best = took / calls < best ? took / calls : best;
    }
    double keys = (double)rows * (context - (rows - 1) / 2.0) * n_streams * n_layers;
    double rate = 2.0 * MULTIPLY_ADDS * keys / (double)best;
    double peak = b->threads * ceiling_peak(&b->probes, b->isa, QTYPE_BF16);
    double bytes = (double)b->ops->kv_block_bytes(KMODE_NATIVE, &shape) / KKV_BLOCK_TOKENS *
                   n_streams * context;
    double read = probe_read_rate((size_t)bytes, b->n_rounds);
    printf("%-6s threads %u  streams %2u  rows %3u  context %4u  layers %2u  %9.1f us  "
           "%6.1f GFLOP/s (%4.1f %% of the probe)",
           b->isa, b->threads, n_streams, rows, context, n_layers, (double)best / 1000, rate,
           100 * rate / peak);
    if (rows == 1)
        printf("  %5.1f GB/s (one thread reads %5.1f)", bytes / (double)best, read);
    printf("\n");
    fflush(stdout);
    b->ops->kv_close(b->kv);
}

static void bench_level(bench_t *b, const char *only)
{
    kdevice_options_t options = {.isa = b->isa, .threads = b->threads};
    size_t bytes = (size_t)ROWS_MAX * QKV * sizeof(float);
    must(b->ops->device_open(&options, &b->device));
    must(b->ops->queue_open(b->device, KQUEUE_NOW, &b->queue));
    must(b->ops->batch_new(b->device, ROWS_MAX, 8192, &b->batch));
    must(b->ops->buffer_new(b->device, bytes, &b->x.buffer));
    must(b->ops->buffer_new(b->device, bytes, &b->out.buffer));
    float *x = b->ops->buffer_host(b->x.buffer);
    for (size_t i = 0; i < (size_t)ROWS_MAX * QKV; i++)
        x[i] = (float)(i * 2654435761u % 2001) / 1000.0f - 1.0f;
    static const uint32_t decode[][2] = {{1, 512}, {8, 128}, {8, 512}, {32, 512}, {1, 4096},
                                         {1, 2048}, {1, 8192}, {8, 2048}, {8, 8192}};
    static const uint32_t prompt[] = {512, 2048, 4096};
    for (size_t i = 0; i < sizeof decode / sizeof decode[0]; i++)
        if ((only == NULL || strcmp(only, "decode") == 0) &&
            (b->context == 0 || b->context == decode[i][1]))
            bench_case(b, b->n_layers, decode[i][0], decode[i][1], 1);
    for (size_t i = 0; i < sizeof prompt / sizeof prompt[0]; i++)
        if ((only == NULL || strcmp(only, "prompt") == 0) &&
            (b->context == 0 || b->context == prompt[i]))
            bench_case(b, 1, 1, prompt[i], ROWS_MAX);
    b->ops->buffer_release(b->x.buffer);
    b->ops->buffer_release(b->out.buffer);
    b->ops->batch_release(b->batch);
    b->ops->queue_close(b->queue);
    b->ops->device_close(b->device);
}

int main(int argc, char **argv)
{
    bench_t b = {.threads = 1, .n_rounds = 5, .n_layers = LAYERS, .ops = kernels_cpu()};
    const char *isa = NULL, *only = NULL, *levels[KLEVELS_MAX];
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--isa") == 0)
            isa = value;
        else if (strcmp(argv[i], "--only") == 0)
            only = value;
        else if (strcmp(argv[i], "--threads") == 0 && atoi(value) > 0)
            b.threads = (uint32_t)atoi(value);
        else if (strcmp(argv[i], "--layers") == 0 && atoi(value) > 0)
            b.n_layers = (uint32_t)atoi(value);
        else if (strcmp(argv[i], "--context") == 0 && atoi(value) > 0)
            b.context = (uint32_t)atoi(value);
        else if (strcmp(argv[i], "--kv") == 0 && strcmp(value, "int8") == 0)
            b.type = KKV_INT8;
        else if (strcmp(argv[i], "--kv") == 0 && strcmp(value, "fp8") == 0)
            b.type = KKV_FP8;
        else if (strcmp(argv[i], "--kv") == 0 && strcmp(value, "bf16") == 0)
            b.type = KKV_BF16;
        else if (strcmp(argv[i], "--rounds") == 0 && atoi(value) > 0)
            b.n_rounds = (uint32_t)atoi(value);
        else {
            fprintf(stderr, "kernels-bench-attend: %s is not understood; see the head of "
                            "bench_attend.c\n", argv[i]);
            return 2;
        }
    }
    uint32_t n_levels = kernels_cpu_levels(levels);
    b.probes = probes_run(n_levels, b.n_rounds);
    probes_print(&b.probes);
    for (uint32_t i = 1; i < n_levels; i++) {
        b.isa = levels[i];
        if (isa == NULL || strcmp(isa, b.isa) == 0)
            bench_level(&b, only);
    }
    return 0;
}
