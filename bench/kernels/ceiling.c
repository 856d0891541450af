/* See ceiling.h. */
#include "ceiling.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/base/memory.h"
#include "probe.h"

uint64_t cpu_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

enum { HUGE_PAGE = 2 << 20 };

static double probe_rate(double (*probe)(uint64_t), uint32_t n_rounds)
{
    double best = 0;
    for (uint32_t i = 0; i < n_rounds; i++) {
        uint64_t start = cpu_ns();
        double ops = probe(400000);
        double rate = ops / (double)(cpu_ns() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

probes_t probes_run(uint32_t n_levels, uint32_t n_rounds)
{
    probes_t probes = {0};
    if (n_levels > 1) {
        probes.maddubs = probe_rate(probe_maddubs, n_rounds);
        probes.fma256 = probe_rate(probe_fma256, n_rounds);
    }
    if (n_levels > 2) {
        probes.vnni = probe_rate(probe_vnni, n_rounds);
        probes.bf16 = probe_rate(probe_bf16, n_rounds);
        probes.fma512 = probe_rate(probe_fma512, n_rounds);
    }
    return probes;
}

void probes_print(const probes_t *probes)
{
    printf("probes  VPMADDUBSW %.1f GOPS, FMA of 256 bits %.1f GFLOP/s", probes->maddubs,
           probes->fma256);
    if (probes->vnni > 0)
        printf(", VPDPBUSD %.1f GOPS, VDPBF16PS %.1f GFLOP/s, FMA of 512 bits %.1f GFLOP/s",
               probes->vnni, probes->bf16, probes->fma512);
    printf("\n");
}

double probe_read_rate(size_t bytes, uint32_t n_rounds)
{
    bytes = bytes / 128 * 128;
    char *data = mem_new(bytes + HUGE_PAGE, 1);
    char *aligned = data + (HUGE_PAGE - (uintptr_t)data % HUGE_PAGE) % HUGE_PAGE;
    /* Packed weights have huge pages where the system has them; without them both are slower. */
    (void)madvise(aligned, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    memset(aligned, 1, bytes);
    double best = 0;
    volatile uint64_t sink = 0;
    for (uint32_t i = 0; i < n_rounds; i++) {
        size_t done = 0;
        uint64_t start = cpu_ns();
        do {
            sink = sink ^ probe_read(aligned, bytes);
            done += bytes;
        } while (done < (size_t)8 << 20);
        double rate = (double)done / (double)(cpu_ns() - start);
        best = rate > best ? rate : best;
    }
    free(data);
    return best;
}

typedef enum { PRODUCTS_INT8, PRODUCTS_BF16, PRODUCTS_F32 } products_t;

/* How docs/numerics.md multiplies a type; its segments have `segment` values. */
typedef struct {
    products_t products;
    uint32_t segment, minimums;
} multiplied_t;

static multiplied_t multiplied(qtype_t type)
{
    switch (type) {
    case QTYPE_BF16:
    case QTYPE_F8S:
        return (multiplied_t){PRODUCTS_BF16, 0, 0};
    case QTYPE_F16:
    case QTYPE_F32:
        return (multiplied_t){PRODUCTS_F32, 0, 0};
    case QTYPE_Q4_1:
    case QTYPE_Q5_1:
    case QTYPE_Q4_K:
    case QTYPE_Q5_K:
        return (multiplied_t){PRODUCTS_INT8, 32, 1};
    case QTYPE_Q2_K:
        return (multiplied_t){PRODUCTS_INT8, 16, 1};
    case QTYPE_Q3_K:
    case QTYPE_Q6_K:
        return (multiplied_t){PRODUCTS_INT8, 16, 0};
    default:
        return (multiplied_t){PRODUCTS_INT8, 32, 0};
    }
}

/* Of up to 6 bits, and not named by a table of more. */
static bool held_as_nibbles(qtype_t type)
{
    return type == QTYPE_Q4_0 || type == QTYPE_Q4_1 || type == QTYPE_Q4_K || qtype_is_z4(type) ||
           type == QTYPE_MXFP4 || type == QTYPE_Q5_0 || type == QTYPE_Q5_1 ||
           type == QTYPE_Q5_K || type == QTYPE_Q6_K;
}

/* What tile registers do at level amx is given as shares of what the vectors could. */
static bool has_avx512(const char *isa)
{
    return strcmp(isa, "avx512") == 0 || strcmp(isa, "amx") == 0;
}

double ceiling_peak(const probes_t *probes, const char *isa, qtype_t type)
{
    bool avx512 = has_avx512(isa);
    switch (multiplied(type).products) {
    case PRODUCTS_INT8:
        return avx512 ? probes->vnni : probes->maddubs / (held_as_nibbles(type) ? 1 : 2);
    case PRODUCTS_BF16:
        return avx512 ? probes->bf16 : probes->fma256;
    default:
        return avx512 ? probes->fma512 : probes->fma256;
    }
}

double ceiling_compute(const probes_t *probes, const char *isa, qtype_t type)
{
    multiplied_t how = multiplied(type);
    double peak = ceiling_peak(probes, isa, type);
    if (how.products != PRODUCTS_INT8)
        return peak;
    double scalings = 2.0 + how.minimums, dots = how.segment / 4.0;
    if (!has_avx512(isa)) {
        /* Products of 16 bits are widened once a segment, and 8-bit weights go as two nibbles. */
        uint32_t halves = held_as_nibbles(type) ? 1 : 2;
        dots *= halves;
        scalings += halves;
    }
    return peak * dots / (dots + scalings);
}
