/* Writes rows of a model file as one panel of 32 output columns, in the order in which the kernels
 * read it (form.h, kform_t). */
#include <string.h>

#include "common/base/qtype.h"
#include "kernels/cpu/form_run.h"
#include "kernels/cpu/internal.h"

/* 16 bytes, of which byte i has values i and i + 16. */
static void split_values(const uint8_t *q, uint8_t values_out[SEGMENT_K])
{
    for (uint32_t i = 0; i < SEGMENT_K / 2; i++) {
        values_out[i] = q[i] & 15;
        values_out[i + SEGMENT_K / 2] = q[i] >> 4;
    }
}

/* The 32 values of a block as the unsigned bytes or the nibbles that the kernels multiply. */
static void block_values(kform_t form, const uint8_t *block, uint8_t values_out[SEGMENT_K])
{
    if (form == FORM_Q8) {
        for (int i = 0; i < SEGMENT_K; i++)
            values_out[i] = (uint8_t)(block[2 + i] ^ 0x80);
        return;
    }
    split_values(block + (form == FORM_Q4M ? 4 : 2), values_out);
}

static void put_u32(uint8_t *to, const uint8_t *four, uint32_t shift)
{
    uint32_t word;
    memcpy(&word, four, sizeof word);
    word <<= shift; /* nibbles are below 16: nothing crosses into the next byte */
    uint32_t old;
    memcpy(&old, to, sizeof old);
    word |= old;
    memcpy(to, &word, sizeof word);
}

/* One column of one segment; `to` is the column's first slot in the segment. */
static void pack_segment_column(kform_t form, const kseg_t *seg, const uint8_t *values, uint8_t *to)
{
    uint8_t padded[SEGMENT_K] = {0};
    memcpy(padded, values, seg->len);
    for (uint32_t p = 0; p < seg->pairs; p++) {
        const uint8_t *low = padded + p * PAIR_K;
        if (FORM_HAS_BYTES(form)) {
            put_u32(to + (size_t)(2 * p) * 128, low, 0);
            put_u32(to + (size_t)(2 * p + 1) * 128, low + 4, 0);
        } else {
            put_u32(to + (size_t)p * 128, low, 0);
            put_u32(to + (size_t)p * 128, low + 4, 4);
        }
    }
}

/* Where column c of a panel starts in a line pair, 4 bytes a column. */
static size_t column_slot(uint32_t c)
{
    return (size_t)(c / LINE) * 64 + (size_t)(c % LINE) * 4;
}

static void pack_int8_panel(const kinput_t *input, const kpart_t *part, const uint8_t *rows,
                            size_t row_bytes, uint32_t k_base, uint32_t n_columns, uint8_t *panel)
{
    size_t block_bytes = part->form == FORM_Q8 ? 34 : part->form == FORM_Q4M ? 20 : 18;
    for (uint32_t s = 0; s < input->n_segs; s++) {
        const kseg_t *seg = &input->segs[s];
        uint32_t k = k_base + seg->k;
        uint8_t *scales = panel + (size_t)seg->pairs * (part->form == FORM_Q8 ? 256 : 128);
        for (uint32_t c = 0; c < n_columns; c++) {
            const uint8_t *block = rows + c * row_bytes + k / SEGMENT_K * block_bytes;
            uint8_t values[SEGMENT_K];
            block_values(part->form, block, values);
            pack_segment_column(part->form, seg, values + k % SEGMENT_K, panel + column_slot(c));
            memcpy(scales + 2 * (size_t)c, block, 2);
            if (part->form == FORM_Q4M)
                memcpy(scales + 64 + 2 * (size_t)c, block + 2, 2);
        }
        panel = scales + (part->form == FORM_Q4M ? 128 : 64);
    }
}

/* The bits above the nibbles of one column of one segment, which are left in `values`. */
static void pack_upper_bits(uint32_t bits, const kseg_t *seg, uint8_t *values, uint8_t *to)
{
    for (uint32_t i = 0; i < seg->len; i++) {
        uint32_t unit = i / 4;
        to[i % 4] = (uint8_t)(to[i % 4] | (uint32_t)values[i] >> 4 << unit * bits);
        values[i] &= 15;
    }
}

/* A scale or minimum of one column, which a half holds exactly where the form is not wide. */
static void put_scale(kform_t form, float value, uint32_t c, uint8_t *scales)
{
    if (FORM_IS_WIDE(form)) {
        memcpy(scales + 4 * (size_t)c, &value, sizeof value);
        return;
    }
    uint16_t half = qtype_f32_to_f16(value);
    memcpy(scales + 2 * (size_t)c, &half, sizeof half);
}

/* Types that codes.c turns into integers. A segment of the type holds 32 values or 16. */
static void pack_codes_panel(const kpart_t *part, const uint8_t *rows, size_t row_bytes,
                             uint32_t k_base, uint32_t n_columns, codes_fn codes, uint8_t *panel)
{
    const kinput_t *input = part->input;
    kform_t form = part->form;
    uint32_t longest = input->kind == KACTIVATION_INT8 ? SEGMENT_K : SHORT_SEGMENT_K;
    uint32_t scale_bytes = FORM_IS_WIDE(form) ? 128 : 64;
    for (uint32_t s = 0; s < input->n_segs; s++) {
        const kseg_t *seg = &input->segs[s];
        uint32_t k = k_base + seg->k;
        uint8_t *lines = panel + FORM_UPPER_BYTES(form);
        uint8_t *scales = lines + (size_t)seg->pairs * (FORM_HAS_BYTES(form) ? 256 : 128);
        for (uint32_t c = 0; c < n_columns; c++) {
            kcodes_t block = {0};
            codes(rows + c * row_bytes, k / longest, &block);
            uint8_t *values = block.q + k % longest;
            if (FORM_UPPER_BITS(form) > 0)
                pack_upper_bits(FORM_UPPER_BITS(form), seg, values, panel + column_slot(c));
            pack_segment_column(form, seg, values, lines + column_slot(c));
            put_scale(form, block.d, c, scales);
            if (FORM_HAS_MINIMUMS(form))
                put_scale(form, block.m, c, scales + scale_bytes);
        }
        panel = scales + (FORM_HAS_MINIMUMS(form) ? 2 * scale_bytes : scale_bytes);
    }
}

/* What one segment has of a column in the head of its run. */
static void put_run_scale(kform_t form, const kcodes_t *block, uint32_t c, uint8_t *bytes)
{
    if (!FORM_HAS_MINIMUMS(form)) {
        bytes[c] = block->scale;
        return;
    }
    uint32_t scale = block->scale, minimum = block->minimum;
    uint32_t top = scale >> 4 | minimum >> 4 << 2;
    bytes[c] = (uint8_t)((scale & 15) | (minimum & 15) << 4);
    bytes[PANEL + c % LINE] = (uint8_t)(bytes[PANEL + c % LINE] | top << (c < LINE ? 4 : 0));
}

static void pack_runs_panel(const kpart_t *part, const kpanel_source_t *from, uint8_t *panel)
{
    const kinput_t *input = part->input;
    kform_t form = part->form;
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        tail_t tail = scales_open(form, part, leaf, panel);
        uint8_t *head = panel;
        for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
            const kseg_t *seg = &input->segs[s];
            uint32_t k = from->k_base + seg->k;
            head = s == tail.run_end ? panel : head;
            panel += scales_reach(form, part, leaf, s, panel, &tail) - panel;
            for (uint32_t c = 0; c < from->n_rows; c++) {
                kcodes_t block = {0};
                from->codes(from->rows + c * from->row_bytes, k / RUN_SEGMENT_K(form), &block);
                uint8_t *values = block.q + k % RUN_SEGMENT_K(form);
                if (FORM_UPPER_BITS(form) > 0)
                    pack_upper_bits(FORM_UPPER_BITS(form), seg, values, panel + column_slot(c));
                pack_segment_column(form, seg, values,
                                    panel + FORM_UPPER_BYTES(form) + column_slot(c));
                memcpy(head + 2 * (size_t)c, &block.half_d, 2);
                if (FORM_HAS_MINIMUMS(form))
                    memcpy(head + 64 + 2 * (size_t)c, &block.half_m, 2);
                put_run_scale(form, &block, c, head + (tail.bytes - head));
            }
            panel += run_line_bytes(form, seg->pairs);
            scales_next(form, part, leaf, s, &tail);
        }
    }
}

/* Where a segment's column goes in a panel with tails. */
typedef struct {
    uint8_t *line, *scale, *byte;
} tail_slot_t;

/* What segment `seg`, at k of the whole row, has of one column. */
static void pack_tail_column(const kpart_t *part, const kseg_t *seg, const uint8_t *row, uint32_t k,
                             tail_slot_t to)
{
    uint8_t values[SEGMENT_K];
    uint32_t skipped = k % SEGMENT_K;
    if (part->form == FORM_M4) {
        const uint8_t *block = row + (size_t)(k / SEGMENT_K) * 17;
        split_values(block + 1, values);
        *to.byte = block[0];
    } else if (part->form == FORM_X4) {
        const uint8_t *block = row + (size_t)(k / 256) * 136;
        uint32_t s = k / SEGMENT_K % 8, high = block[2] | (uint32_t)block[3] << 8;
        uint32_t low = block[4 + s / 2];
        uint32_t scale = (low >> (s % 2 * 4) & 15) | (high >> (2 * s) & 3) << 4;
        split_values(block + 8 + s * 16, values);
        memcpy(to.scale, block, 2);
        *to.byte = (uint8_t)(scale - 32);
    } else {
        const uint8_t *block = row + (size_t)(k / part->run) * (part->run / 2 + 3);
        skipped = 0;
        for (uint32_t i = 0; i < seg->len; i++) {
            uint32_t at = k % part->run + i;
            values[i] = block[offsetof(qtype_z4_t, q) + at / 2] >> (at % 2 * 4) & 15;
        }
        memcpy(to.scale, block, 2);
        if (part->form == FORM_Z4)
            *to.byte = block[offsetof(qtype_z4_t, zero)];
    }
    pack_segment_column(part->form, seg, values + skipped, to.line);
}

static void pack_tail_panel(const kpart_t *part, const uint8_t *rows, size_t row_bytes,
                            uint32_t k_base, uint32_t n_columns, uint8_t *panel)
{
    const kinput_t *input = part->input;
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        tail_t tail = tail_open(part, leaf, panel);
        uint8_t *lines = panel;
        for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
            const kseg_t *seg = &input->segs[s];
            for (uint32_t c = 0; c < n_columns; c++) {
                tail_slot_t to = {lines + column_slot(c), panel + (tail.scales - panel) + 2 * c,
                                  panel + (tail.bytes - panel) + c};
                pack_tail_column(part, seg, rows + c * row_bytes, k_base + seg->k, to);
            }
            lines += (size_t)seg->pairs * 128;
            tail_next(part->form, part, leaf, s, &tail);
        }
        panel += tail.end - panel;
    }
}

/* Codes stay what they are: the kernels make BF16 of them, in which they are exact. */
static void pack_e4_panel(const kpart_t *part, const uint8_t *rows, size_t row_bytes,
                          uint32_t k_base, uint32_t n_columns, uint8_t *panel)
{
    const kinput_t *input = part->input;
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        uint8_t *shared = panel;
        panel += part->shared_scales ? wide_scale_bytes(leaf) : 0;
        for (uint32_t done = 0, len = 0; done < leaf->len; done += len, shared += 4) {
            len = wide_segment(leaf, done);
            size_t codes = (size_t)(len + 1) / 2 * 2 * PANEL;
            uint32_t k = k_base + leaf->k + done;
            for (uint32_t c = 0; c < n_columns; c++) {
                const uint8_t *block =
                    rows + c * row_bytes + k / WIDE_SEGMENT_K * sizeof(qtype_f8s_t);
                const uint8_t *from = block + 4 + k % WIDE_SEGMENT_K;
                uint8_t *to = panel + (size_t)(c % LINE) * 4 + c / LINE;
                for (uint32_t i = 0; i < len; i++)
                    to[(size_t)(i / 2) * 2 * PANEL + (size_t)(i % 2) * 2] = from[i];
                memcpy(part->shared_scales ? shared : panel + codes + 4 * (size_t)c, block, 4);
            }
            panel += codes + (part->shared_scales ? 0 : 128);
        }
    }
}

static void pack_half_panel(const kinput_t *input, const kpart_t *part, const uint8_t *rows,
                            size_t row_bytes, uint32_t k_base, uint32_t n_columns, uint8_t *panel)
{
    for (uint32_t c = 0; c < n_columns; c++) {
        const uint8_t *row = rows + c * row_bytes + (size_t)k_base * 2;
        for (uint32_t l = 0; l < input->n_leaves; l++) {
            const kleaf_t *leaf = &input->leaves[l];
            for (uint32_t i = 0; i < leaf->len; i++) {
                size_t k = leaf->k_padded + i;
                size_t at;
                if (part->form == FORM_BF16)
                    at = k / 2 * 128 + column_slot(c) + k % 2 * 2;
                else /* F16: the odd k of a pair is stored, and so added, first */
                    at = (k ^ 1) * 64 + (size_t)c * 2;
                memcpy(panel + at, row + (size_t)(leaf->k + i) * 2, 2);
            }
        }
    }
}

static void pack_f32_panel(const kinput_t *input, const kpanel_source_t *from, float *panel)
{
    float *row = from->row;
    for (uint32_t c = 0; c < from->n_rows; c++) {
        qtype_dequantize_row((qtype_t)from->qtype, from->rows + c * from->row_bytes, from->k_total,
                             row);
        for (uint32_t l = 0; l < input->n_leaves; l++) {
            const kleaf_t *leaf = &input->leaves[l];
            for (uint32_t i = 0; i < leaf->len; i++) {
                size_t k = leaf->k_padded + (input->pair_order ? i ^ 1 : i);
                panel[k * PANEL + c] = row[from->k_base + leaf->k + i];
            }
        }
    }
}

void panel_write(const kpart_t *part, const kpanel_source_t *from, uint8_t *panel_out)
{
    const uint8_t *rows = from->rows;
    size_t bytes = from->row_bytes;
    uint32_t k = from->k_base, n = from->n_rows;
    if (FORM_HAS_RUNS(part->form))
        pack_runs_panel(part, from, panel_out);
    else if (from->codes != NULL)
        pack_codes_panel(part, rows, bytes, k, n, from->codes, panel_out);
    else if (part->form < FORM_BF16)
        pack_int8_panel(part->input, part, rows, bytes, k, n, panel_out);
    else if (FORM_HAS_TAIL(part->form))
        pack_tail_panel(part, rows, bytes, k, n, panel_out);
    else if (part->form == FORM_E4)
        pack_e4_panel(part, rows, bytes, k, n, panel_out);
    else if (part->form != FORM_F32)
        pack_half_panel(part->input, part, rows, bytes, k, n, panel_out);
    else
        pack_f32_panel(part->input, from, (float *)(void *)panel_out);
}
