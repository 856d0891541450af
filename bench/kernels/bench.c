/* kernels-bench [ROUNDS]: speed of every level and weight type on one thread, beside probes of what
 * the machine's units can do at most in the same run. The machine may be shared, so each figure is
 * the best of several short rounds, and probes and kernels take turns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/ops.h"
#include "probe.h"

enum { K = 2048, N = 1024, ROWS_MAX = 96 };

static const uint32_t TYPES[] = {QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_Q8_0,
                                 QTYPE_BF16, QTYPE_F16,  QTYPE_F32};

static uint32_t n_rounds = 5;

static void must(status_t status)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "kernels-bench: %s\n", status_text());
    exit(1);
}

static double probe_rate(double (*probe)(uint64_t))
{
    double best = 0;
    for (uint32_t i = 0; i < n_rounds; i++) {
        uint64_t start = clock_ns();
        double ops = probe(400000);
        double rate = ops / (double)(clock_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

static double read_rate(void)
{
    enum { BYTES = 64 << 20 };
    char *data = mem_new(BYTES + 64, 1);
    memset(data, 1, BYTES);
    const void *aligned = data + (64 - (uintptr_t)data % 64) % 64;
    double best = 0;
    volatile uint64_t sink = 0;
    for (uint32_t i = 0; i < n_rounds; i++) {
        uint64_t start = clock_ns();
        sink = sink ^ probe_read(aligned, BYTES);
        double rate = BYTES / (double)(clock_ns() - start);
        best = rate > best ? rate : best;
    }
    free(data);
    return best;
}

typedef struct {
    const kernel_ops_t *ops;
    kdevice_t *device;
    kqueue_t *queue;
    kbatch_t *batch;
    kref_t x, input, out;
} bench_t;

/* GOPS of one matmul of `rows` rows. */
static double matmul_rate(bench_t *b, const kweight_t *weight, uint32_t rows)
{
    must(b->ops->batch_set_plain(b->queue, b->batch, rows));
    must(b->ops->quantize(b->queue, b->batch, weight, b->x, K, b->input));
    double best = 0;
    for (uint32_t i = 0; i < n_rounds; i++) {
        uint64_t start = clock_ns();
        must(b->ops->matmul(b->queue, b->batch, weight, b->input, b->out));
        double rate = 2.0 * K * N * rows / (double)(clock_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

static kweight_t *make_weight(bench_t *b, uint32_t qtype, uint32_t n_leaves)
{
    uint64_t row_bytes = 0;
    (void)qtype_row_bytes(qtype, K, &row_bytes);
    uint8_t *rows = mem_new(N, row_bytes);
    for (size_t i = 0; i < N * row_bytes; i++)
        rows[i] = (uint8_t)((i * 2654435761u) >> 13 & 0x3b);
    uint32_t edges[NUMERICS_LEAVES_MAX + 1];
    for (uint32_t i = 0; i <= n_leaves; i++)
        edges[i] = K / n_leaves * i;
    kweight_part_t part = {.qtype = qtype, .rows = rows, .bytes = N * row_bytes, .n_rows = N};
    kweight_spec_t spec = {.name = "bench",
                           .parts = &part,
                           .n_parts = 1,
                           .k_total = K,
                           .leaf_edges = edges,
                           .n_leaves = n_leaves,
                           .leaf_end = n_leaves};
    kweight_t *weight = NULL;
    must(b->ops->weight_pack(b->device, &spec, &weight));
    free(rows);
    return weight;
}

static void bench_level(const char *isa)
{
    bench_t b = {.ops = kernels_cpu()};
    kdevice_options_t options = {.isa = isa, .threads = 1};
    must(b.ops->device_open(&options, &b.device));
    must(b.ops->queue_open(b.device, KQUEUE_NOW, &b.queue));
    must(b.ops->batch_new(b.device, ROWS_MAX, 0, &b.batch));
    must(b.ops->buffer_new(b.device, ROWS_MAX * K * sizeof(float), &b.x.buffer));
    must(b.ops->buffer_new(b.device, ROWS_MAX * (K + 4096) * sizeof(float), &b.input.buffer));
    must(b.ops->buffer_new(b.device, ROWS_MAX * N * sizeof(float), &b.out.buffer));
    float *x = b.ops->buffer_host(b.x.buffer);
    for (size_t i = 0; i < ROWS_MAX * K; i++)
        x[i] = (float)(i * 2654435761u % 2001) / 1000.0f - 1.0f;
    for (size_t t = 0; t < sizeof TYPES / sizeof TYPES[0]; t++) {
        kweight_t *weight = make_weight(&b, TYPES[t], 1);
        kweight_t *cut = make_weight(&b, TYPES[t], 16);
        double bytes_per_op = (double)b.ops->weight_info(weight).packed_bytes / (2.0 * K * N);
        double one = matmul_rate(&b, weight, 1);
        printf("%-7s %-5s  M=1 %7.1f GOPS (%5.1f GB/s)  M=4 %7.1f  M=8 %7.1f  M=96 %7.1f  "
               "leaves of 128 %7.1f\n",
               isa, qtype_name(TYPES[t]), one, one * bytes_per_op, matmul_rate(&b, weight, 4),
               matmul_rate(&b, weight, 8), matmul_rate(&b, weight, ROWS_MAX),
               matmul_rate(&b, cut, ROWS_MAX));
        b.ops->weight_release(weight);
        b.ops->weight_release(cut);
    }
    b.ops->buffer_release(b.x.buffer);
    b.ops->buffer_release(b.input.buffer);
    b.ops->buffer_release(b.out.buffer);
    b.ops->batch_release(b.batch);
    b.ops->queue_close(b.queue);
    b.ops->device_close(b.device);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        n_rounds = (uint32_t)strtoul(argv[1], NULL, 10);
    const char *levels[3];
    uint32_t n_levels = kernels_cpu_levels(levels);
    printf("K = %d, N = %d, one thread; best of %u rounds\n", K, N, n_rounds);
    if (n_levels > 1)
        printf("probe   maddubs %.1f GOPS, read %.1f GB/s\n", probe_rate(probe_maddubs),
               read_rate());
    if (n_levels > 2)
        printf("probe   VPDPBUSD %.1f GOPS, VDPBF16PS %.1f GFLOP/s, FMA %.1f GFLOP/s\n",
               probe_rate(probe_vnni), probe_rate(probe_bf16), probe_rate(probe_fma512));
    for (uint32_t i = 1; i < n_levels; i++)
        bench_level(levels[i]);
    if (n_levels > 2)
        printf("probe   VPDPBUSD %.1f GOPS, VDPBF16PS %.1f GFLOP/s after\n", probe_rate(probe_vnni),
               probe_rate(probe_bf16));
    return 0;
}
