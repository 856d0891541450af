/* Which kernels this machine may run: CPUID says what the CPU has, XGETBV what the operating system
 * saves when it switches threads (without that, AVX-512 registers of one process leak into another
 * or are lost), and the self-check whether the results are ref's to the bit. */
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/log.h"
#include "kernels/cpu/internal.h"
#include "kernels/cpu/ref.h"
#include "kernels/cpu/selfcheck.h"

const klevel_t level_ref = {
    .name = "ref",
    .rmsnorm = rmsnorm_ref,
    .quantize = quantize_ref,
    .matmul = matmul_ref,
    .tree_add = tree_add_ref,
    .silu_mul = silu_mul_ref,
    .activate = activate_ref,
    .softcap = softcap_ref,
    .turn = turn_ref,
    .attend = attend_ref,
    .score = score_ref,
};

enum { XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6, XCR0_AMX = 0x60000 };
/* Linux lends tile registers only to processes that ask (its documentation of x86, "Using XSTATE
 * features in user space applications"). */
enum { ARCH_GET_XCOMP_SUPP = 0x1021, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_TILES = 18 };

typedef struct {
    const char *name;
    unsigned bit; /* of the register that the caller has chosen */
} feature_t;

typedef struct {
    unsigned leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax;
    unsigned tile_ebx, tile_ecx; /* of palette 1 */
    uint64_t xcr0;               /* 0 where the system does not use XSAVE */
} cpu_t;

static cpu_t read_cpu(void)
{
    cpu_t cpu = {0};
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d))
        cpu.leaf1_ecx = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        cpu.leaf7_ebx = b;
        cpu.leaf7_ecx = c;
        cpu.leaf7_edx = d;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
            cpu.leaf7_1_eax = a;
    }
    if (__get_cpuid_count(0x1d, 1, &a, &b, &c, &d)) {
        cpu.tile_ebx = b;
        cpu.tile_ecx = c;
    }
    if (cpu.leaf1_ecx & 1u << 27) {
        uint32_t low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        cpu.xcr0 = (uint64_t)high << 32 | low;
    }
    return cpu;
}

/* The first feature that is missing, or NULL. */
static const char *missing(unsigned reg, const feature_t *features, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(reg >> features[i].bit & 1u))
            return features[i].name;
    return NULL;
}

#define MISSING(reg, ...)                            \
    missing((reg), (const feature_t[]){__VA_ARGS__}, \
            sizeof((const feature_t[]){__VA_ARGS__}) / sizeof(feature_t))

static const char *avx2_missing(const cpu_t *cpu)
{
    const char *name =
        MISSING(cpu->leaf1_ecx, {"FMA", 12}, {"XSAVE", 27}, {"AVX", 28}, {"F16C", 29});
    if (name == NULL)
        name = MISSING(cpu->leaf7_ebx, {"AVX2", 5});
    if (name == NULL && (cpu->xcr0 & XCR0_AVX) != XCR0_AVX)
        name = "the operating system's consent to AVX registers (XCR0)";
    return name;
}

static const char *avx512_missing(const cpu_t *cpu)
{
    const char *name = avx2_missing(cpu);
    if (name == NULL)
        name = MISSING(cpu->leaf7_ebx, {"AVX512F", 16}, {"AVX512DQ", 17}, {"AVX512BW", 30},
                       {"AVX512VL", 31});
    if (name == NULL)
        name = MISSING(cpu->leaf7_ecx, {"AVX512_VNNI", 11});
    if (name == NULL)
        name = MISSING(cpu->leaf7_1_eax, {"AVX512_BF16", 5});
    if (name == NULL && (cpu->xcr0 & XCR0_AVX512) != XCR0_AVX512)
        name = "the operating system's consent to AVX-512 registers (XCR0)";
    return name;
}

static const char *amx_missing(const cpu_t *cpu)
{
    const unsigned rows = 16, registers_and_row_bytes = 8u << 16 | 64;
    uint64_t supported = 0;
    const char *name = avx512_missing(cpu);
    if (name == NULL)
        name = MISSING(cpu->leaf7_edx, {"AMX_TILE", 24}, {"AMX_INT8", 25});
    if (name == NULL &&
        (cpu->tile_ebx != registers_and_row_bytes || (cpu->tile_ecx & 0xffff) != rows))
        name = "eight AMX tiles of 16 rows of 64 bytes";
    if (name == NULL && (cpu->xcr0 & XCR0_AMX) != XCR0_AMX)
        name = "the operating system's consent to AMX tiles (XCR0)";
    if (name == NULL && (syscall(SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &supported) != 0 ||
                         !(supported >> XFEATURE_TILES & 1u)))
        name = "an operating system that lends AMX tiles (arch_prctl)";
    return name;
}

/* For all threads of the process, those to come as well. Frames of signals are larger then. */
static bool ask_for_tiles(void)
{
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILES) == 0;
}

static const char *nothing_missing(const cpu_t *cpu)
{
    (void)cpu;
    return NULL;
}

/* The one that is taken without being asked for comes last. amx is taken only by its name, because
 * it has only been emulated: a self-check finds wrong bits, but not an instruction that faults. */
static const struct {
    const char *name;
    const klevel_t *level;
    const char *(*missing)(const cpu_t *cpu);
    bool (*ask)(void); /* the operating system; NULL: no need to */
    const char *caution;
} LEVELS[] = {
    {"ref", &level_ref, nothing_missing, NULL, NULL},
    {"avx2", &level_avx2, avx2_missing, NULL, NULL},
    {"amx", &level_amx, amx_missing, ask_for_tiles, "emulated only, never run on real AMX"},
    {"avx512", &level_avx512, avx512_missing, NULL, NULL},
};
enum { N_LEVELS = sizeof LEVELS / sizeof LEVELS[0] };

/* What the self-check says of a level: once a process, because neither the kernels nor the vectors
 * change. Who comes meanwhile waits for the answer. */
static const char *check_once(size_t i)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        bool known;
        const char *kernel;
    } answers[N_LEVELS];
    pthread_mutex_lock(&lock);
    if (!answers[i].known)
        answers[i].kernel = selfcheck(LEVELS[i].level);
    answers[i].known = true;
    const char *kernel = answers[i].kernel;
    pthread_mutex_unlock(&lock);
    return kernel;
}

/* Whether the level is among those that are tried. */
static bool is_wanted(size_t i, const char *forced)
{
    bool asked = forced != NULL && forced[0] != 0;
    return asked ? strcmp(forced, LEVELS[i].name) == 0 : LEVELS[i].caution == NULL;
}

/* Writes why a level cannot be used and returns false, or returns true. */
static bool level_works(size_t i, const cpu_t *cpu, char *why_out, size_t why_size)
{
    const char *name = LEVELS[i].missing(cpu);
    if (name != NULL) {
        snprintf(why_out, why_size, "%s: this machine lacks %s", LEVELS[i].name, name);
        return false;
    }
    if (LEVELS[i].ask != NULL && !LEVELS[i].ask()) {
        snprintf(why_out, why_size, "%s: the operating system refused AMX tiles (arch_prctl: %s)",
                 LEVELS[i].name, strerror(errno));
        return false;
    }
    const char *kernel = check_once(i);
    if (kernel != NULL) {
        snprintf(why_out, why_size, "%s: %s gives other bits than ref on this machine",
                 LEVELS[i].name, kernel);
        return false;
    }
    return true;
}

status_t level_choose(const char *forced, const klevel_t **level_out, char *refused_out,
                      size_t refused_size)
{
    cpu_t cpu = read_cpu();
    char why[160];
    if (forced == NULL)
        forced = getenv("SHOAL_ISA");
    refused_out[0] = 0;
    for (size_t i = N_LEVELS; i-- > 0;) {
        if (!is_wanted(i, forced))
            continue;
        if (level_works(i, &cpu, why, sizeof why)) {
            if (LEVELS[i].caution != NULL)
                log_warn("kernel level %s: %s", LEVELS[i].name, LEVELS[i].caution);
            *level_out = LEVELS[i].level;
            return STATUS_OK;
        }
        if (forced != NULL && forced[0] != 0)
            return fail(STATUS_UNSUPPORTED,
                        "kernel level %s; without SHOAL_ISA the best one that "
                        "works is taken",
                        why);
        size_t used = strlen(refused_out);
        snprintf(refused_out + used, refused_size - used, "%s%s", used > 0 ? "; " : "", why);
    }
    return fail(STATUS_INVALID, "kernel level \"%s\" is unknown: ref, avx2, avx512 or amx", forced);
}

/* The level that level_choose() comes to first. */
static void *check_first(void *unused)
{
    cpu_t cpu = read_cpu();
    const char *forced = getenv("SHOAL_ISA");
    for (size_t i = N_LEVELS; i-- > 0;)
        if (is_wanted(i, forced) && LEVELS[i].ask == NULL && LEVELS[i].missing(&cpu) == NULL) {
            (void)check_once(i);
            break;
        }
    return unused;
}

void kernels_cpu_begin(void)
{
    pthread_t thread;
    sigset_t all, before; /* signals are for the other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, check_first, NULL) == 0)
        pthread_detach(thread); /* without it device_open checks */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

uint32_t kernels_cpu_levels(const char *names_out[KLEVELS_MAX])
{
    cpu_t cpu = read_cpu();
    uint32_t n = 0;
    for (size_t i = 0; i < N_LEVELS; i++)
        if (LEVELS[i].missing(&cpu) == NULL)
            names_out[n++] = LEVELS[i].name;
    return n;
}
