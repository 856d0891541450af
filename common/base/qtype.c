/* See qtype.h. The table's sizes are those of the GGML file format. */
#include "common/base/qtype.h"

#include "common/base/checked.h"
#include "common/base/status.h"

static const qtype_info_t infos[] = {
    [QTYPE_F32] = {"F32", 1, 4, true},
    [QTYPE_F16] = {"F16", 1, 2, true},
    [QTYPE_Q4_0] = {"Q4_0", 32, 18, true},
    [QTYPE_Q4_1] = {"Q4_1", 32, 20, true},
    [QTYPE_Q5_0] = {"Q5_0", 32, 22, false},
    [QTYPE_Q5_1] = {"Q5_1", 32, 24, false},
    [QTYPE_Q8_0] = {"Q8_0", 32, 34, true},
    [QTYPE_Q8_1] = {"Q8_1", 32, 36, false},
    [QTYPE_Q2_K] = {"Q2_K", 256, 84, false},
    [QTYPE_Q3_K] = {"Q3_K", 256, 110, false},
    [QTYPE_Q4_K] = {"Q4_K", 256, 144, false},
    [QTYPE_Q5_K] = {"Q5_K", 256, 176, false},
    [QTYPE_Q6_K] = {"Q6_K", 256, 210, false},
    [QTYPE_Q8_K] = {"Q8_K", 256, 292, false},
    [QTYPE_IQ2_XXS] = {"IQ2_XXS", 256, 66, false},
    [QTYPE_IQ2_XS] = {"IQ2_XS", 256, 74, false},
    [QTYPE_IQ3_XXS] = {"IQ3_XXS", 256, 98, false},
    [QTYPE_IQ1_S] = {"IQ1_S", 256, 50, false},
    [QTYPE_IQ4_NL] = {"IQ4_NL", 32, 18, false},
    [QTYPE_IQ3_S] = {"IQ3_S", 256, 110, false},
    [QTYPE_IQ2_S] = {"IQ2_S", 256, 82, false},
    [QTYPE_IQ4_XS] = {"IQ4_XS", 256, 136, false},
    [QTYPE_I8] = {"I8", 1, 1, false},
    [QTYPE_I16] = {"I16", 1, 2, false},
    [QTYPE_I32] = {"I32", 1, 4, false},
    [QTYPE_I64] = {"I64", 1, 8, false},
    [QTYPE_F64] = {"F64", 1, 8, false},
    [QTYPE_IQ1_M] = {"IQ1_M", 256, 56, false},
    [QTYPE_BF16] = {"BF16", 1, 2, true},
    [QTYPE_TQ1_0] = {"TQ1_0", 256, 54, false},
    [QTYPE_TQ2_0] = {"TQ2_0", 256, 66, false},
    [QTYPE_MXFP4] = {"MXFP4", 32, 17, false},
    [QTYPE_NVFP4] = {"NVFP4", 64, 36, false},
};

const qtype_info_t *qtype_info(uint32_t id)
{
    if (id >= sizeof infos / sizeof *infos || infos[id].name == NULL)
        return NULL;
    return &infos[id];
}

const char *qtype_name(uint32_t id)
{
    const qtype_info_t *info = qtype_info(id);
    return info ? info->name : "unknown";
}

bool qtype_row_bytes(uint32_t id, uint64_t n_values, uint64_t *bytes_out)
{
    const qtype_info_t *info = qtype_info(id);
    if (info == NULL || n_values % info->block_values != 0)
        return false;
    return checked_mul_u64(n_values / info->block_values, info->block_bytes, bytes_out);
}

static void dequantize_f16(const uint8_t *row, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, row + 2 * i, sizeof bits);
        out[i] = qtype_f16_to_f32(bits);
    }
}

static void dequantize_bf16(const uint8_t *row, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, row + 2 * i, sizeof bits);
        out[i] = qtype_bf16_to_f32(bits);
    }
}

static void dequantize_q4_0(const uint8_t *row, size_t n, float *out)
{
    for (size_t b = 0; b < n / QTYPE_BLOCK_VALUES; b++, out += QTYPE_BLOCK_VALUES) {
        qtype_q4_0_t block;
        memcpy(&block, row + b * sizeof block, sizeof block);
        float d = qtype_f16_to_f32(block.d);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)((block.q[i] & 15) - 8) * d;
            out[i + 16] = (float)((block.q[i] >> 4) - 8) * d;
        }
    }
}

static void dequantize_q4_1(const uint8_t *row, size_t n, float *out)
{
    for (size_t b = 0; b < n / QTYPE_BLOCK_VALUES; b++, out += QTYPE_BLOCK_VALUES) {
        qtype_q4_1_t block;
        memcpy(&block, row + b * sizeof block, sizeof block);
        float d = qtype_f16_to_f32(block.d);
        float m = qtype_f16_to_f32(block.m);
        for (int i = 0; i < 16; i++) {
            out[i] = (float)(block.q[i] & 15) * d + m;
            out[i + 16] = (float)(block.q[i] >> 4) * d + m;
        }
    }
}

static void dequantize_q8_0(const uint8_t *row, size_t n, float *out)
{
    for (size_t b = 0; b < n / QTYPE_BLOCK_VALUES; b++, out += QTYPE_BLOCK_VALUES) {
        qtype_q8_0_t block;
        memcpy(&block, row + b * sizeof block, sizeof block);
        float d = qtype_f16_to_f32(block.d);
        for (int i = 0; i < QTYPE_BLOCK_VALUES; i++)
            out[i] = (float)block.q[i] * d;
    }
}

void qtype_dequantize_row(qtype_t type, const void *row, size_t n_values, float *out)
{
    const qtype_info_t *info = qtype_info((uint32_t)type);
    CHECK(info != NULL && info->is_weight && n_values % info->block_values == 0);
    switch (type) {
    case QTYPE_F32: memcpy(out, row, n_values * sizeof *out); return;
    case QTYPE_F16: dequantize_f16(row, n_values, out); return;
    case QTYPE_BF16: dequantize_bf16(row, n_values, out); return;
    case QTYPE_Q4_0: dequantize_q4_0(row, n_values, out); return;
    case QTYPE_Q4_1: dequantize_q4_1(row, n_values, out); return;
    case QTYPE_Q8_0: dequantize_q8_0(row, n_values, out); return;
    default: break;
    }
    CHECK(false && "every type with is_weight has a case");
}
