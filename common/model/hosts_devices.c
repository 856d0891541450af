/* Devices by name. Rates are the makers' dense peaks; memory is what the driver reports as total,
 * which with error correction is less than the name says. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/model/hosts_file.h"

#define MIB 1048576.0
#define GIB (1024 * MIB)
#define TERA 1e12
#define GIGA 1e9

typedef struct {
    const char *name;
    double memory_mib, reserve_gib, bandwidth_gb_s;
    double tflops[HOSTS_N_COMPUTE]; /* F32, BF16, FP8, INT8 */
    double link_gb_s, link_us;
} known_t;

/* Each row was held against published copies of the sheet that stands above it. Totals of memory are
 * those of nvidia-smi as "Why does an NVIDIA H100 80GB card offer 85.52 GB?" tabulates them; of the
 * GeForce boards, as their drivers print them. PCIe 4.0 x16 carries 31.5 GB/s in a direction (16 GT/s,
 * 128b/130b). What an exchange costs besides is our estimate, of no sheet: 5 us between devices
 * (launch and completion), 1 us between sockets of a host. */
static const known_t known[] = {
    /* "NVIDIA A100 Tensor Core GPU" data sheet, SXM: HBM2 1,555 GB/s (40 GB), HBM2e 2,039 GB/s
     * (80 GB); dense F32 19.5, BF16 312, INT8 624; NVLink 600 GB/s both directions together. */
    {"A100-40", 40960, 1, 1555, {19.5, 312, 0, 624}, 300, 5},
    {"A100-80", 81920, 1, 2039, {19.5, 312, 0, 624}, 300, 5},
    /* "NVIDIA H100 Tensor Core GPU" data sheet, SXM: 3.35 TB/s; F32 67; with sparsity BF16 1,979, FP8
     * and INT8 3,958, half of that dense; NVLink 900 GB/s both directions together. */
    {"H100-80", 81559, 1, 3350, {67, 989.4, 1978.9, 1978.9}, 450, 5},
    /* "NVIDIA H200 Tensor Core GPU" data sheet, SXM: the same with 141 GB at 4.8 TB/s. */
    {"H200-141", 143771, 1, 4800, {67, 989.4, 1978.9, 1978.9}, 450, 5},
    /* "NVIDIA L4 Tensor Core GPU" data sheet: 300 GB/s; F32 30.3; with sparsity BF16 242, FP8 and
     * INT8 485, half of that dense; PCIe 4.0 x16. */
    {"L4-24", 23034, 1, 300, {30.3, 121, 242.5, 242.5}, 31.5, 5},
    /* "NVIDIA L40S" data sheet: 864 GB/s; F32 91.6; dense BF16 362, FP8 and INT8 733; PCIe 4.0. */
    {"L40S-48", 46068, 1, 864, {91.6, 362, 733, 733}, 31.5, 5},
    /* "NVIDIA Ampere GA102 GPU Architecture" whitepaper: a multiprocessor does 512 dense BF16
     * operations (F32 accumulation) and 2,048 of INT8 a cycle. RTX 3090: 82 of them at 1.695 GHz,
     * 936 GB/s; RTX 3060: 28 at 1.777 GHz, 360 GB/s. */
    {"RTX-3060-12", 12288, 1, 360, {12.7, 25.5, 0, 101.9}, 31.5, 5},
    {"RTX-3090-24", 24576, 1, 936, {35.6, 71, 0, 284}, 31.5, 5},
    /* "NVIDIA Ada GPU Architecture" whitepaper, RTX 4090: 1,008 GB/s; F32 82.6; with F32 accumulation
     * BF16 165.2, FP8 330.3; INT8 660.6; PCIe 4.0. */
    {"RTX-4090-24", 24564, 1, 1008, {82.6, 165.2, 330.3, 660.6}, 31.5, 5},
    /* "AMD EPYC 9004 Series" data sheet, 9654: 96 cores at 2.4 GHz, 12 channels of DDR5-4800 (460.8
     * GB/s), here with 32 GiB each; Infinity Fabric links of 16 lanes at 32 Gb/s, three between two
     * sockets as most boards have them. Zen 4 does 32 F32 operations a cycle and core (AVX-512 over a
     * data path of 256 bits), BF16 twice and INT8 four times as many. */
    {"EPYC-9654", 393216, 8, 460.8, {7.4, 14.7, 0, 29.5}, 192, 1},
};
enum { N_KNOWN = sizeof known / sizeof *known };

bool hosts_device_known(const char *name, hosts_device_t *out)
{
    for (size_t i = 0; i < N_KNOWN; i++) {
        const known_t *row = &known[i];
        if (strcasecmp(row->name, name) != 0)
            continue;
        *out = (hosts_device_t){
            .memory_bytes = (uint64_t)(row->memory_mib * MIB),
            .reserve_bytes = (uint64_t)(row->reserve_gib * GIB),
            .memory_bytes_s = row->bandwidth_gb_s * GIGA,
            .link_bytes_s = row->link_gb_s * GIGA,
            .link_s = row->link_us * 1e-6,
        };
        snprintf(out->name, sizeof out->name, "%s", row->name);
        for (size_t k = 0; k < HOSTS_N_COMPUTE; k++)
            out->flops_s[k] = row->tflops[k] * TERA;
        return true;
    }
    return false;
}

const char *hosts_device_names(void)
{
    static _Thread_local char list[512];
    list[0] = 0;
    for (size_t i = 0; i < N_KNOWN; i++) {
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", i > 0 ? ", " : "", known[i].name);
    }
    return list;
}
