/* Matmul in plain C: the definition (docs/numerics.md, "Matmul"). One row, one panel of 32 columns,
 * one leaf at a time; every column's sum is written out as scalar operations in ascending K. */
#include <math.h>
#include <string.h>

#include "common/base/qtype.h"
#include "common/base/status.h"
#include "kernels/cpu/form_run.h"
#include "kernels/cpu/numbers.h"
#include "kernels/cpu/ref.h"

static uint16_t load_u16(const uint8_t *from)
{
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static uint32_t load_u32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* dot[c] = sum of the segment's (w - z) q; returns the bytes of its lines. Where values have no bits
 * above their nibbles, those are taken as 0. */
static size_t segment_dots(kform_t form, const kseg_t *seg, const uint8_t *lines, const int8_t *q,
                           int32_t dot[PANEL])
{
    int32_t z = FORM_ZERO(form), value[16];
    for (int32_t i = 0; i < 16; i++) /* of a nibble */
        value[i] = (FORM_HAS_TABLE(form) ? codes_table(form)[i] : i) - z;
    uint32_t bits = FORM_UPPER_BITS(form);
    const uint8_t *upper = lines;
    lines += FORM_UPPER_BYTES(form);
    memset(dot, 0, PANEL * sizeof *dot);
    for (uint32_t p = 0; p < seg->pairs; p++, q += PAIR_K) {
        for (uint32_t c = 0; c < PANEL; c++) {
            size_t slot = (size_t)(c / LINE) * 64 + (size_t)(c % LINE) * 4;
            for (uint32_t k = 0; k < 4; k++) {
                if (FORM_HAS_BYTES(form)) {
                    dot[c] += (lines[(size_t)(2 * p) * 128 + slot + k] - z) * q[k];
                    dot[c] += (lines[(size_t)(2 * p + 1) * 128 + slot + k] - z) * q[4 + k];
                } else {
                    uint8_t both = lines[(size_t)p * 128 + slot + k];
                    int32_t above = upper[slot + k] >> 2 * p * bits, mask = (1 << bits) - 1;
                    dot[c] += (value[both & 15] + (above & mask) * 16) * q[k];
                    dot[c] += (value[both >> 4] + (above >> bits & mask) * 16) * q[4 + k];
                }
            }
        }
    }
    return FORM_UPPER_BYTES(form) + (size_t)seg->pairs * (FORM_HAS_BYTES(form) ? 256 : 128);
}

/* Scale or minimum of column c; they are stored as halves or as floats. */
static float scale_of(kform_t form, const uint8_t *scales, uint32_t c)
{
    return FORM_IS_WIDE(form) ? bits_float(load_u32(scales + 4 * (size_t)c))
                              : qtype_f16_to_f32(load_u16(scales + 2 * (size_t)c));
}

/* The sum of one leaf of an int8 input row. Returns the panel's next byte. */
static const uint8_t *leaf_int8(kform_t form, const kinput_t *input, const kleaf_t *leaf,
                                const uint8_t *row, const uint8_t *panel, float sum_out[PANEL])
{
    const kinput_seg_t *in = (const kinput_seg_t *)(const void *)row + leaf->seg_first;
    for (uint32_t c = 0; c < PANEL; c++)
        sum_out[c] = 0;
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++, in++) {
        int32_t dot[PANEL];
        panel += segment_dots(form, &input->segs[s], panel, in->q, dot);
        for (uint32_t c = 0; c < PANEL; c++) {
            float scaled = (float)dot[c] * in->da;
            sum_out[c] = fmaf(scaled, scale_of(form, panel, c), sum_out[c]);
        }
        panel += FORM_IS_WIDE(form) ? 128 : 64;
        if (FORM_HAS_MINIMUMS(form)) {
            for (uint32_t c = 0; c < PANEL; c++)
                sum_out[c] = fmaf(scale_of(form, panel, c), in->sum, sum_out[c]);
            panel += FORM_IS_WIDE(form) ? 128 : 64;
        }
    }
    return panel;
}

static float half_of(const kpart_t *part, const uint8_t *scales, uint32_t c)
{
    uint16_t half = load_u16(scales + 2 * (size_t)c);
    return part->bf16_scales ? bf16_value(half) : qtype_f16_to_f32(half);
}

/* The scale of column c in the segment at which the tail stands. */
static float tail_scale(const kpart_t *part, const tail_t *tail, uint32_t c)
{
    switch (part->form) {
    case FORM_M4:
        return bits_float(exponent_bits(tail->bytes[c]));
    case FORM_X4:
    case FORM_K6:
        return half_of(part, tail->scales, c) * (float)(int8_t)tail->bytes[c];
    case FORM_K4:
    case FORM_K5:
        return half_of(part, tail->scales, c) * (float)run_six_bits(tail->bytes, c, false);
    default:
        return half_of(part, tail->scales, c);
    }
}

static float run_minimum(const kpart_t *part, const tail_t *run, uint32_t c)
{
    return half_of(part, run->scales + 64, c) * (float)run_six_bits(run->bytes, c, true);
}

/* Forms whose scales are not behind their segments. */
static const uint8_t *leaf_tail(const kpart_t *part, const kleaf_t *leaf, const uint8_t *row,
                                const uint8_t *panel, float sum_out[PANEL])
{
    const kinput_seg_t *in = (const kinput_seg_t *)(const void *)row + leaf->seg_first;
    kform_t form = part->form;
    tail_t tail = scales_open(form, part, leaf, panel);
    for (uint32_t c = 0; c < PANEL; c++)
        sum_out[c] = 0;
    for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++, in++) {
        int32_t dot[PANEL];
        panel = scales_reach(form, part, leaf, s, panel, &tail);
        panel += segment_dots(form, &part->input->segs[s], panel, in->q, dot);
        for (uint32_t c = 0; c < PANEL; c++) {
            int32_t zero = form == FORM_Z4 ? tail.bytes[c] : 0;
            float scaled = (float)(dot[c] + zero * segment_less(in)) * in->da;
            sum_out[c] = fmaf(scaled, tail_scale(part, &tail, c), sum_out[c]);
            if (FORM_HAS_MINIMUMS(form))
                sum_out[c] = fmaf(run_minimum(part, &tail, c), in->sum, sum_out[c]);
        }
        scales_next(form, part, leaf, s, &tail);
    }
    return FORM_HAS_TAIL(form) ? tail.end : panel;
}

/* len values of BF16, in pairs. */
static const uint8_t *sum_bf16(const uint8_t *a, uint32_t len, const uint8_t *panel,
                               float sum_out[PANEL])
{
    for (uint32_t c = 0; c < PANEL; c++)
        sum_out[c] = 0;
    for (uint32_t k = 0; k < len; k += 2, panel += 128) {
        float even = bf16_value(load_u16(a + (size_t)k * 2));
        float odd = bf16_value(load_u16(a + (size_t)k * 2 + 2));
        for (uint32_t c = 0; c < PANEL; c++) {
            const uint8_t *w = panel + (size_t)(c / LINE) * 64 + (size_t)(c % LINE) * 4;
            sum_out[c] = fmaf(bf16_value(load_u16(w + 2)), odd, sum_out[c]);
            sum_out[c] = fmaf(bf16_value(load_u16(w)), even, sum_out[c]);
        }
    }
    return panel;
}

static const uint8_t *leaf_bf16(const kleaf_t *leaf, const uint8_t *row, const uint8_t *panel,
                                float sum_out[PANEL])
{
    return sum_bf16(row + (size_t)leaf->k_padded * 2, leaf->len_padded, panel, sum_out);
}

/* A sum as of BF16 for each segment of 128, in which e4m3 codes are exact, then fma by its scale. */
static const uint8_t *leaf_e4(const kpart_t *part, const kleaf_t *leaf, const uint8_t *row,
                              const uint8_t *panel, float sum_out[PANEL])
{
    const uint8_t *shared = panel;
    panel += part->shared_scales ? wide_scale_bytes(leaf) : 0;
    for (uint32_t c = 0; c < PANEL; c++)
        sum_out[c] = 0;
    for (uint32_t done = 0, len = 0; done < leaf->len; done += len) {
        float sum[PANEL] = {0};
        len = wide_segment(leaf, done);
        const uint8_t *a = row + (size_t)(leaf->k_padded + done) * 2;
        for (uint32_t k = 0; k < len; k += 2, panel += 2 * PANEL) {
            float even = bf16_value(load_u16(a + (size_t)k * 2));
            float odd = bf16_value(load_u16(a + (size_t)k * 2 + 2));
            for (uint32_t c = 0; c < PANEL; c++) {
                const uint8_t *codes = panel + (size_t)(c % LINE) * 4 + c / LINE;
                sum[c] = fmaf(qtype_e4m3_to_f32(codes[2]), odd, sum[c]);
                sum[c] = fmaf(qtype_e4m3_to_f32(codes[0]), even, sum[c]);
            }
        }
        const uint8_t *scales = part->shared_scales ? shared : panel;
        size_t step = part->shared_scales ? 0 : 4;
        for (uint32_t c = 0; c < PANEL; c++)
            sum_out[c] = fmaf(sum[c], bits_float(load_u32(scales + c * step)), sum_out[c]);
        shared += 4;
        panel += step * PANEL;
    }
    return panel;
}

/* F32 and F16: the packed order of K is the order of addition. */
static const uint8_t *leaf_float(kform_t form, const kleaf_t *leaf, const uint8_t *row,
                                 const uint8_t *panel, float sum_out[PANEL])
{
    const float *a = (const float *)(const void *)row + leaf->k_padded;
    size_t step = form == FORM_F16 ? 2 : 4;
    for (uint32_t c = 0; c < PANEL; c++)
        sum_out[c] = 0;
    for (uint32_t k = 0; k < leaf->len_padded; k++, panel += PANEL * step) {
        for (uint32_t c = 0; c < PANEL; c++) {
            float w = form == FORM_F16 ? qtype_f16_to_f32(load_u16(panel + c * step))
                                       : bits_float(load_u32(panel + c * step));
            sum_out[c] = fmaf(w, a[k], sum_out[c]);
        }
    }
    return panel;
}

static float minimum_of(const kpart_t *part, const code_at_t *at, uint32_t c)
{
    if (FORM_HAS_RUNS(part->form))
        return run_minimum(part, &at->tail, c);
    return scale_of(part->form, at->scales + (FORM_IS_WIDE(part->form) ? 128 : 64), c);
}

/* Adds the products of a row's values apart; `panel` is the first byte of the part's one leaf. */
static void add_apart(const kpart_t *part, const kapart_t *apart, const uint8_t *panel,
                      float sum[PANEL])
{
    kform_t form = part->form;
    for (uint32_t i = 0; i < apart->n; i++) {
        code_at_t at = code_at(form, part, panel, apart->k[i]);
        for (uint32_t c = 0; c < PANEL; c++) {
            uint32_t stored = load_u32(at.lines + 4 * (size_t)c) >> at.shift;
            uint32_t above = load_u32(at.upper + 4 * (size_t)c) >> at.upper_shift;
            int32_t code = (int32_t)(stored & (FORM_HAS_BYTES(form) ? 255 : 15));
            code = FORM_HAS_TABLE(form) ? codes_table(form)[code] : code;
            code += (int32_t)(above & ((1u << FORM_UPPER_BITS(form)) - 1)) * 16;
            code -= form == FORM_Z4 ? at.tail.bytes[c] : FORM_ZERO(form);
            float d = FORM_SCALES_APART(form) ? tail_scale(part, &at.tail, c)
                                              : scale_of(form, at.scales, c);
            float weight = FORM_HAS_MINIMUMS(form)
                               ? fmaf((float)code, d, minimum_of(part, &at, c))
                               : (float)code * d;
            sum[c] = fmaf(apart->value[i], weight, sum[c]);
        }
    }
}

static void panel_row(const kmatmul_t *job, const kpart_t *part, uint32_t index, uint32_t row)
{
    const kweight_t *weight = job->weight;
    const kinput_t *input = part->input;
    const uint8_t *panel = part->data + (size_t)index * part->panel_bytes;
    const uint8_t *in = job->input + (size_t)row * weight->row_bytes + part->input_offset;
    uint32_t column = index * PANEL;
    uint32_t n = part->n - column < PANEL ? part->n - column : PANEL;
    float stack[TREE_DEPTH_MAX][PANEL];
    uint32_t depth = 0, partial = 0;
    const kleaf_t *leaf = input->leaves;
    for (uint32_t s = 0; s < weight->n_steps; s++) {
        CHECK(depth < TREE_DEPTH_MAX);
        if (FORM_SCALES_APART(part->form))
            panel = leaf_tail(part, leaf, in, panel, stack[depth]);
        else if (part->form < FORM_BF16)
            panel = leaf_int8(part->form, input, leaf, in, panel, stack[depth]);
        else if (part->form == FORM_BF16)
            panel = leaf_bf16(leaf, in, panel, stack[depth]);
        else if (part->form == FORM_E4)
            panel = leaf_e4(part, leaf, in, panel, stack[depth]);
        else
            panel = leaf_float(part->form, leaf, in, panel, stack[depth]);
        if (input->has_apart)
            add_apart(part, apart_of(input, in), part->data + (size_t)index * part->panel_bytes,
                      stack[depth]);
        leaf++;
        for (uint32_t adds = weight->steps[s] & STEP_ADDS; adds > 0; adds--, depth--)
            for (uint32_t c = 0; c < PANEL; c++)
                stack[depth - 1][c] += stack[depth][c];
        depth++;
        if (weight->steps[s] & STEP_OUT) {
            depth--;
            size_t ld = job->ld > 0 ? job->ld : weight->n;
            size_t at = ((size_t)partial * job->rows + row) * ld +
                        (part->column + column - job->column);
            memcpy(job->out + at, stack[depth], n * sizeof(float));
            partial++;
        }
    }
}

void matmul_ref(const kmatmul_t *job, uint32_t panel_first, uint32_t panel_end, uint32_t row_first,
                uint32_t row_end)
{
    for (uint32_t p = panel_first; p < panel_end; p++) {
        const kpart_t *part = weight_part(job->weight, p);
        for (uint32_t row = row_first; row < row_end; row++)
            panel_row(job, part, p - part->panel_first, row);
    }
}
