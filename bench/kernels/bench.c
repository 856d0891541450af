/* kernels-bench: the speed of the matmul of each weight type on one thread, and what share that is
 * of the ceiling which probes of the same run give.
 *
 *   kernels-bench [--isa LEVEL] [--types Q4_0,BF16,…] [--rows 1,2,…] [--shape KxN] [--leaves L]
 *                 [--dram] [--rounds R]
 *
 * Without --dram the weight has the shape given and stays in the caches as far as it fits; with it
 * there are so many columns that every round reads the weight from memory. The machine may be
 * shared, so the clock counts this process's time alone, and each figure is the best of several
 * short rounds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ceiling.h"
#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/ops.h"

enum { LIST_MAX = 24, ROWS_MAX = 512, DRAM_BYTES = 96 << 20, ROUND_NS = 3000000 };

typedef struct {
    const char *isa; /* NULL: each that the machine has */
    qtype_t types[LIST_MAX];
    uint32_t n_types;
    uint32_t rows[LIST_MAX];
    uint32_t n_row_counts;
    uint32_t k, n, n_leaves, n_rounds;
    bool dram;
} options_t;

typedef struct {
    const options_t *options;
    const kernel_ops_t *ops;
    kdevice_t *device;
    kqueue_t *queue;
    kbatch_t *batch;
    kref_t x, input, out;
} bench_t;

static void must(status_t status)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "kernels-bench: %s\n", status_text());
    exit(1);
}

static _Noreturn void usage(const char *what)
{
    fprintf(stderr, "kernels-bench: %s is not understood; see the head of bench.c\n", what);
    exit(2);
}

/* Columns of the weight: those asked for, or enough that its bytes are far beyond the caches. */
static uint32_t columns_of(const options_t *options, qtype_t type)
{
    if (!options->dram)
        return options->n;
    uint64_t row_bytes = 0;
    if (!qtype_row_bytes(type, options->k, &row_bytes))
        usage("--shape");
    return (uint32_t)(DRAM_BYTES / row_bytes / 32 * 32);
}

static kweight_t *make_weight(bench_t *b, qtype_t type, uint32_t n)
{
    const options_t *options = b->options;
    uint64_t row_bytes = 0;
    if (!qtype_row_bytes(type, options->k, &row_bytes))
        usage("--shape");
    uint8_t *rows = mem_new(n, row_bytes);
    for (size_t i = 0; i < n * row_bytes; i++)
        rows[i] = (uint8_t)((i * 2654435761u) >> 13 & 0x3b);
    /* As in published files, where one scale serves 128 x 128. */
    for (size_t i = 0; type == QTYPE_F8S && i < n * row_bytes; i += sizeof(qtype_f8s_t))
        memcpy(rows + i, &(float){0.01f}, sizeof(float));
    uint32_t edges[NUMERICS_LEAVES_MAX + 1];
    for (uint32_t i = 0; i <= options->n_leaves; i++)
        edges[i] = (uint32_t)((uint64_t)options->k / 32 * i / options->n_leaves * 32);
    edges[options->n_leaves] = options->k;
    kweight_part_t part = {.qtype = type, .rows = rows, .bytes = n * row_bytes, .n_rows = n};
    kweight_spec_t spec = {.name = "bench",
                           .parts = &part,
                           .n_parts = 1,
                           .k_total = options->k,
                           .leaf_edges = edges,
                           .n_leaves = options->n_leaves,
                           .leaf_end = options->n_leaves};
    kweight_t *weight = NULL;
    must(b->ops->weight_pack(b->device, &spec, &weight));
    free(rows);
    return weight;
}

/* GOPS of the best round; a round is a few calls, so that the clock's steps do not count. */
static double matmul_rate(bench_t *b, const kweight_t *weight, uint32_t n, uint32_t rows)
{
    double ops = 2.0 * b->options->k * n * rows, best = 0;
    must(b->ops->batch_set_plain(b->queue, b->batch, rows));
    must(b->ops->quantize(b->queue, b->batch, weight, b->x, b->options->k, b->input));
    for (uint32_t i = 0; i < b->options->n_rounds; i++) {
        uint64_t start = cpu_ns(), took = 0;
        uint32_t calls = 0;
        do {
            must(b->ops->matmul(b->queue, b->batch, weight, b->input, b->out));
            calls++;
            took = cpu_ns() - start;
        } while (took < ROUND_NS);
        double rate = ops * calls / (double)took;
        best = rate > best ? rate : best;
    }
    return best;
}

static void bench_type(bench_t *b, qtype_t type, const probes_t *probes)
{
    const options_t *options = b->options;
    uint32_t n = columns_of(options, type);
    kweight_t *weight = make_weight(b, type, n);
    size_t bytes = b->ops->weight_info(weight).packed_bytes;
    double bytes_per_op = (double)bytes / (2.0 * options->k * n);
    double read = probe_read_rate(bytes, options->n_rounds);
    for (uint32_t i = 0; i < options->n_row_counts; i++) {
        uint32_t rows = options->rows[i];
        double rate = matmul_rate(b, weight, n, rows);
        double compute = ceiling_compute(probes, options->isa, type);
        double memory = read / bytes_per_op * rows;
        double ceiling = compute < memory ? compute : memory;
        double peak = ceiling_peak(probes, options->isa, type);
        printf("%-7s %-6s %5.1f MiB  M %3u  %7.1f GOPS %6.1f GB/s  %5.1f %% of the probe  "
               "%5.1f %% of the ceiling %7.1f (%s)\n",
               options->isa, qtype_name(type), (double)bytes / 1048576, rows, rate,
               rate * bytes_per_op / rows, 100 * rate / peak, 100 * rate / ceiling, ceiling,
               compute < memory ? "units" : "reads");
        fflush(stdout);
    }
    b->ops->weight_release(weight);
}

static uint32_t columns_max(const options_t *options)
{
    uint32_t most = 0;
    for (uint32_t t = 0; t < options->n_types; t++) {
        uint32_t n = columns_of(options, options->types[t]);
        most = n > most ? n : most;
    }
    return most;
}

static void bench_level(const options_t *options, const probes_t *probes)
{
    bench_t b = {.options = options, .ops = kernels_cpu()};
    kdevice_options_t device = {.isa = options->isa, .threads = 1};
    uint32_t rows = 1;
    for (uint32_t i = 0; i < options->n_row_counts; i++)
        rows = options->rows[i] > rows ? options->rows[i] : rows;
    size_t row_bytes = ((size_t)options->k + 4096) * 8 * sizeof(float);
    must(b.ops->device_open(&device, &b.device));
    must(b.ops->queue_open(b.device, KQUEUE_NOW, &b.queue));
    must(b.ops->batch_new(b.device, rows, 0, &b.batch));
    must(b.ops->buffer_new(b.device, (size_t)rows * options->k * sizeof(float), &b.x.buffer));
    must(b.ops->buffer_new(b.device, rows * row_bytes, &b.input.buffer));
    must(b.ops->buffer_new(b.device,
                           (size_t)rows * columns_max(options) * options->n_leaves * sizeof(float),
                           &b.out.buffer));
    float *x = b.ops->buffer_host(b.x.buffer);
    for (size_t i = 0; i < (size_t)rows * options->k; i++)
        x[i] = (float)(i * 2654435761u % 2001) / 1000.0f - 1.0f;
    for (uint32_t t = 0; t < options->n_types; t++)
        bench_type(&b, options->types[t], probes);
    b.ops->buffer_release(b.x.buffer);
    b.ops->buffer_release(b.input.buffer);
    b.ops->buffer_release(b.out.buffer);
    b.ops->batch_release(b.batch);
    b.ops->queue_close(b.queue);
    b.ops->device_close(b.device);
}

static uint32_t number(const char *text, uint32_t least, uint32_t most)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (end == text || *end != 0 || value < least || value > most)
        usage(text);
    return (uint32_t)value;
}

static qtype_t type_named(const char *name)
{
    for (uint32_t type = 0; type < QTYPE_OWN_FIRST + 100; type++)
        if (qtype_info(type) != NULL && strcmp(qtype_name(type), name) == 0)
            return (qtype_t)type;
    usage(name);
}

static void parse_list(options_t *options, bool types, char *list)
{
    uint32_t n = 0;
    for (char *save = NULL, *word = strtok_r(list, ",", &save); word != NULL;
         word = strtok_r(NULL, ",", &save), n++) {
        if (n == LIST_MAX)
            usage("a list so long");
        if (types)
            options->types[n] = type_named(word);
        else
            options->rows[n] = number(word, 1, ROWS_MAX);
    }
    if (n == 0)
        usage("an empty list");
    *(types ? &options->n_types : &options->n_row_counts) = n;
}

static void parse_option(options_t *options, const char *name, char *value)
{
    if (strcmp(name, "--isa") == 0) {
        options->isa = value;
    } else if (strcmp(name, "--types") == 0) {
        parse_list(options, true, value);
    } else if (strcmp(name, "--rows") == 0) {
        parse_list(options, false, value);
    } else if (strcmp(name, "--leaves") == 0) {
        options->n_leaves = number(value, 1, NUMERICS_LEAVES_MAX);
    } else if (strcmp(name, "--rounds") == 0) {
        options->n_rounds = number(value, 1, 1000);
    } else if (strcmp(name, "--shape") == 0) {
        char *x = strchr(value, 'x');
        if (x == NULL)
            usage(value);
        *x = 0;
        options->k = number(value, 32, 1 << 20);
        options->n = number(x + 1, 1, 1 << 20);
    } else {
        usage(name);
    }
}

int main(int argc, char **argv)
{
    static options_t options = {
        .types = {QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_Q5_0, QTYPE_Q8_0, QTYPE_Q4_K, QTYPE_Q5_K,
                  QTYPE_Q6_K, QTYPE_IQ4_NL, QTYPE_MXFP4, QTYPE_I8S, QTYPE_F8S, QTYPE_BF16,
                  QTYPE_F16, QTYPE_F32},
        .n_types = 14,
        .rows = {1, 2, 4, 8, 16, 96, 512},
        .n_row_counts = 7,
        .k = 2048,
        .n = 1024,
        .n_leaves = 1,
        .n_rounds = 5,
    };
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--dram") == 0) {
            options.dram = true;
        } else if (i + 1 < argc) {
            parse_option(&options, argv[i], argv[i + 1]);
            i++;
        } else {
            usage(argv[i]);
        }
    }
    const char *levels[KLEVELS_MAX];
    uint32_t n_levels = kernels_cpu_levels(levels);
    probes_t probes = probes_run(n_levels, options.n_rounds);
    printf("K = %u, %u %s, one thread; best of %u rounds\n", options.k, options.n_leaves,
           options.n_leaves == 1 ? "leaf" : "leaves", options.n_rounds);
    probes_print(&probes);
    const char *only = options.isa;
    for (uint32_t i = 1; i < n_levels; i++) {
        if (only != NULL && strcmp(only, levels[i]) != 0)
            continue;
        options.isa = levels[i];
        bench_level(&options, &probes);
    }
    probes = probes_run(n_levels, options.n_rounds);
    probes_print(&probes);
    return 0;
}
