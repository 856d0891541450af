/* See qtype.h. The table's sizes are those of the GGML file format. */
#include "common/base/qtype.h"

#include "common/base/checked.h"
#include "common/base/qtype_blocks.h"
#include "common/base/status.h"

static const qtype_info_t infos[] = {
    [QTYPE_F32] = {"F32", 1, 4, true},
    [QTYPE_F16] = {"F16", 1, 2, true},
    [QTYPE_Q4_0] = {"Q4_0", 32, 18, true},
    [QTYPE_Q4_1] = {"Q4_1", 32, 20, true},
    [QTYPE_Q5_0] = {"Q5_0", 32, 22, true},
    [QTYPE_Q5_1] = {"Q5_1", 32, 24, true},
    [QTYPE_Q8_0] = {"Q8_0", 32, 34, true},
    [QTYPE_Q8_1] = {"Q8_1", 32, 36, false},
    [QTYPE_Q2_K] = {"Q2_K", 256, 84, true},
    [QTYPE_Q3_K] = {"Q3_K", 256, 110, true},
    [QTYPE_Q4_K] = {"Q4_K", 256, 144, true},
    [QTYPE_Q5_K] = {"Q5_K", 256, 176, true},
    [QTYPE_Q6_K] = {"Q6_K", 256, 210, true},
    [QTYPE_Q8_K] = {"Q8_K", 256, 292, false},
    [QTYPE_IQ2_XXS] = {"IQ2_XXS", 256, 66, true},
    [QTYPE_IQ2_XS] = {"IQ2_XS", 256, 74, true},
    [QTYPE_IQ3_XXS] = {"IQ3_XXS", 256, 98, true},
    [QTYPE_IQ1_S] = {"IQ1_S", 256, 50, true},
    [QTYPE_IQ4_NL] = {"IQ4_NL", 32, 18, true},
    [QTYPE_IQ3_S] = {"IQ3_S", 256, 110, true},
    [QTYPE_IQ2_S] = {"IQ2_S", 256, 82, true},
    [QTYPE_IQ4_XS] = {"IQ4_XS", 256, 136, true},
    [QTYPE_I8] = {"I8", 1, 1, false},
    [QTYPE_I16] = {"I16", 1, 2, false},
    [QTYPE_I32] = {"I32", 1, 4, false},
    [QTYPE_I64] = {"I64", 1, 8, false},
    [QTYPE_F64] = {"F64", 1, 8, false},
    [QTYPE_IQ1_M] = {"IQ1_M", 256, 56, true},
    [QTYPE_BF16] = {"BF16", 1, 2, true},
    [QTYPE_TQ1_0] = {"TQ1_0", 256, 54, true},
    [QTYPE_TQ2_0] = {"TQ2_0", 256, 66, true},
    [QTYPE_MXFP4] = {"MXFP4", 32, 17, true},
    [QTYPE_NVFP4] = {"NVFP4", 64, 36, true},
};

static const qtype_info_t own_infos[] = {
    [QTYPE_I8S - QTYPE_OWN_FIRST] = {"I8S", 32, sizeof(qtype_i8s_t), true},
    [QTYPE_F8S - QTYPE_OWN_FIRST] = {"F8S", QTYPE_F8S_VALUES, sizeof(qtype_f8s_t), true},
#define Z4_FOUR(first, name)                                         \
    [first - QTYPE_OWN_FIRST] = {name, 128, 67, true},               \
    [first + 1 - QTYPE_OWN_FIRST] = {name "_32", 32, 19, true},      \
    [first + 2 - QTYPE_OWN_FIRST] = {name "_64", 64, 35, true},      \
    [first + 3 - QTYPE_OWN_FIRST] = {name "_ROW", 1024, 515, true}
    Z4_FOUR(QTYPE_Z4, "Z4"),
    Z4_FOUR(QTYPE_Z4_BF16, "Z4B"),
    Z4_FOUR(QTYPE_S4, "S4"),
    Z4_FOUR(QTYPE_S4_BF16, "S4B"),
};

qtype_t qtype_z4_of(uint64_t group, bool bf16, bool zero_is_8)
{
    CHECK(group > 0 && group % 32 == 0);
    uint32_t size = group % 1024 == 0 ? 3 : group % 128 == 0 ? 0 : group % 64 == 0 ? 2 : 1;
    return (qtype_t)(QTYPE_Z4 + size + (bf16 ? 4u : 0u) + (zero_is_8 ? 8u : 0u));
}

const qtype_info_t *qtype_info(uint32_t id)
{
    if (id >= QTYPE_OWN_FIRST && id - QTYPE_OWN_FIRST < sizeof own_infos / sizeof *own_infos)
        return &own_infos[id - QTYPE_OWN_FIRST];
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
    if (info == NULL)
        return false;
    bool short_block = n_values % info->block_values != 0;
    if (short_block && id < QTYPE_OWN_FIRST)
        return false;
    return checked_mul_u64(n_values / info->block_values + short_block, info->block_bytes,
                           bytes_out);
}

uint64_t qtype_held_bytes(uint32_t id, uint64_t n_values, uint64_t row_bytes)
{
    if (!qtype_is_z4(id))
        return row_bytes;
    uint64_t values = qtype_info(id)->block_values, rest = n_values % values;
    return rest > 0 ? row_bytes - (values - rest) / 2 : row_bytes;
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

static void block_q4_0(const uint8_t *bytes, float *out)
{
    qtype_q4_0_t block;
    memcpy(&block, bytes, sizeof block);
    float d = qtype_f16_to_f32(block.d);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)((block.q[i] & 15) - 8) * d;
        out[i + 16] = (float)((block.q[i] >> 4) - 8) * d;
    }
}

static void block_q4_1(const uint8_t *bytes, float *out)
{
    qtype_q4_1_t block;
    memcpy(&block, bytes, sizeof block);
    float d = qtype_f16_to_f32(block.d);
    float m = qtype_f16_to_f32(block.m);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)(block.q[i] & 15) * d + m;
        out[i + 16] = (float)(block.q[i] >> 4) * d + m;
    }
}

static void block_q8_0(const uint8_t *bytes, float *out)
{
    qtype_q8_0_t block;
    memcpy(&block, bytes, sizeof block);
    float d = qtype_f16_to_f32(block.d);
    for (int i = 0; i < QTYPE_BLOCK_VALUES; i++)
        out[i] = (float)block.q[i] * d;
}

static const qtype_block_fn block_fns[] = {
    [QTYPE_Q4_0] = block_q4_0,
    [QTYPE_Q4_1] = block_q4_1,
    [QTYPE_Q5_0] = qtype_block_q5_0,
    [QTYPE_Q5_1] = qtype_block_q5_1,
    [QTYPE_Q8_0] = block_q8_0,
    [QTYPE_Q2_K] = qtype_block_q2_k,
    [QTYPE_Q3_K] = qtype_block_q3_k,
    [QTYPE_Q4_K] = qtype_block_q4_k,
    [QTYPE_Q5_K] = qtype_block_q5_k,
    [QTYPE_Q6_K] = qtype_block_q6_k,
    [QTYPE_IQ2_XXS] = qtype_block_iq2_xxs,
    [QTYPE_IQ2_XS] = qtype_block_iq2_xs,
    [QTYPE_IQ3_XXS] = qtype_block_iq3_xxs,
    [QTYPE_IQ1_S] = qtype_block_iq1_s,
    [QTYPE_IQ4_NL] = qtype_block_iq4_nl,
    [QTYPE_IQ3_S] = qtype_block_iq3_s,
    [QTYPE_IQ2_S] = qtype_block_iq2_s,
    [QTYPE_IQ4_XS] = qtype_block_iq4_xs,
    [QTYPE_IQ1_M] = qtype_block_iq1_m,
    [QTYPE_TQ1_0] = qtype_block_tq1_0,
    [QTYPE_TQ2_0] = qtype_block_tq2_0,
    [QTYPE_MXFP4] = qtype_block_mxfp4,
    [QTYPE_NVFP4] = qtype_block_nvfp4,
};

static void dequantize_i8s(const uint8_t *row, size_t n, float *out)
{
    for (size_t first = 0; first < n; first += 32, row += sizeof(qtype_i8s_t)) {
        qtype_i8s_t block;
        memcpy(&block, row, sizeof block);
        for (size_t i = 0; i < 32 && first + i < n; i++)
            out[first + i] = (float)block.q[i] * block.d;
    }
}

float qtype_e4m3_to_f32(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24;
    uint32_t exponent = (code >> 3) & 15u, mantissa = code & 7u;
    if ((code & 0x7fu) == 0x7fu)
        return qtype_bits_to_f32(sign | 0x7fc00000u);
    if (exponent != 0)
        return qtype_bits_to_f32(sign | (exponent + 120) << 23 | mantissa << 20);
    float value = (float)mantissa * 0x1p-9f;
    return sign ? -value : value;
}

static void dequantize_f8s(const uint8_t *row, size_t n, float *out)
{
    for (size_t first = 0; first < n; first += QTYPE_F8S_VALUES, row += sizeof(qtype_f8s_t)) {
        qtype_f8s_t block;
        memcpy(&block, row, sizeof block);
        for (size_t i = 0; i < QTYPE_F8S_VALUES && first + i < n; i++)
            out[first + i] = qtype_e4m3_to_f32(block.q[i]) * block.d;
    }
}

static void dequantize_z4(qtype_t type, const uint8_t *row, size_t n, float *out)
{
    const qtype_info_t *info = qtype_info((uint32_t)type);
    for (size_t first = 0; first < n; first += info->block_values, row += info->block_bytes) {
        qtype_z4_t block;
        memcpy(&block, row, info->block_bytes);
        float d = qtype_z4_is_bf16((uint32_t)type) ? qtype_bf16_to_f32(block.d)
                                                   : qtype_f16_to_f32(block.d);
        for (size_t i = 0; i < info->block_values && first + i < n; i++)
            out[first + i] = (float)((block.q[i / 2] >> (i % 2 * 4) & 15) - block.zero) * d;
    }
}

void qtype_dequantize_row(qtype_t type, const void *row, size_t n_values, float *out)
{
    const qtype_info_t *info = qtype_info((uint32_t)type);
    CHECK(info != NULL && info->is_weight &&
          (type >= QTYPE_OWN_FIRST || n_values % info->block_values == 0));
    switch (type) {
    case QTYPE_F32: memcpy(out, row, n_values * sizeof *out); return;
    case QTYPE_F16: dequantize_f16(row, n_values, out); return;
    case QTYPE_BF16: dequantize_bf16(row, n_values, out); return;
    case QTYPE_I8S: dequantize_i8s(row, n_values, out); return;
    case QTYPE_F8S: dequantize_f8s(row, n_values, out); return;
    default: break;
    }
    if (qtype_is_z4((uint32_t)type)) {
        dequantize_z4(type, row, n_values, out);
        return;
    }
    CHECK((size_t)type < sizeof block_fns / sizeof *block_fns && block_fns[type] != NULL);
    const uint8_t *block = row;
    for (size_t i = 0; i < n_values; i += info->block_values, block += info->block_bytes)
        block_fns[type](block, out + i);
}
