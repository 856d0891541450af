/* Packs rows of a model file into panels (internal.h, kform_t). Panels are independent, so the
 * threads of the device share them out. */
#include <stdlib.h>
#include <string.h>

#include "common/base/checked.h"
#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/cpu/form_z4.h"
#include "kernels/cpu/fpmode.h"
#include "kernels/cpu/internal.h"
#include "kernels/cpu/numbers.h"

typedef struct {
    kweight_t *weight;
    const kweight_spec_t *spec;
    size_t row_bytes[KWEIGHT_PARTS_MAX];
    codes_fn codes[KWEIGHT_PARTS_MAX];
} pack_job_t;

static uint64_t wide_segments(const kinput_t *input)
{
    uint64_t n = 0;
    for (uint32_t l = 0; l < input->n_leaves; l++)
        for (uint32_t k = 0; k < input->leaves[l].len; n++)
            k += wide_segment(&input->leaves[l], k);
    return n;
}

static uint64_t z4_panel_bytes(const kinput_t *input)
{
    uint64_t sum = 0;
    for (uint32_t l = 0; l < input->n_leaves; l++)
        sum += z4_leaf_bytes(&input->leaves[l]);
    return sum;
}

static uint64_t form_panel_bytes(kform_t form, const kinput_t *input)
{
    uint64_t k = input->k_padded, scale_bytes = FORM_IS_WIDE(form) ? PANEL * 4 : PANEL * 2;
    if (form < FORM_BF16)
        return k * PANEL / (FORM_HAS_BYTES(form) ? 1 : 2) +
               input->n_segs * scale_bytes * (FORM_HAS_MINIMUMS(form) ? 2 : 1);
    switch (form) {
    case FORM_BF16:
    case FORM_F16:
        return k * PANEL * 2;
    case FORM_Z4:
        return z4_panel_bytes(input);
    case FORM_E4:
        return k * PANEL + wide_segments(input) * PANEL * 4;
    default:
        return k * PANEL * 4;
    }
}

/* The 32 values of a block as the unsigned bytes that the kernels multiply. */
static void block_values(kform_t form, const uint8_t *block, uint8_t values_out[SEGMENT_K])
{
    if (form == FORM_Q8) {
        for (int i = 0; i < SEGMENT_K; i++)
            values_out[i] = (uint8_t)(block[2 + i] ^ 0x80);
        return;
    }
    const uint8_t *q = block + (form == FORM_Q4M ? 4 : 2);
    for (int i = 0; i < SEGMENT_K / 2; i++) {
        values_out[i] = q[i] & 15;
        values_out[i + SEGMENT_K / 2] = q[i] >> 4;
    }
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
    size_t block_bytes = part->form == FORM_Q8 ? 34 : part->form == FORM_Q4 ? 18 : 20;
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

/* Types that codes.c turns into integers. A segment of the type holds 32 values or 16. */
static void pack_codes_panel(const kpart_t *part, const uint8_t *rows, size_t row_bytes,
                             uint32_t k_base, uint32_t n_columns, codes_fn codes, uint8_t *panel)
{
    const kinput_t *input = part->input;
    uint32_t longest = input->kind == KACTIVATION_INT8 ? SEGMENT_K : SHORT_SEGMENT_K;
    for (uint32_t s = 0; s < input->n_segs; s++) {
        const kseg_t *seg = &input->segs[s];
        uint32_t k = k_base + seg->k;
        uint8_t *scales = panel + (size_t)seg->pairs * (FORM_HAS_BYTES(part->form) ? 256 : 128);
        for (uint32_t c = 0; c < n_columns; c++) {
            kcodes_t block = {0};
            codes(rows + c * row_bytes, k / longest, &block);
            pack_segment_column(part->form, seg, block.q + k % longest, panel + column_slot(c));
            memcpy(scales + 4 * (size_t)c, &block.d, 4);
            if (FORM_HAS_MINIMUMS(part->form))
                memcpy(scales + 128 + 4 * (size_t)c, &block.m, 4);
        }
        panel = scales + (FORM_HAS_MINIMUMS(part->form) ? 256 : 128);
    }
}

static void pack_z4_panel(const kinput_t *input, const uint8_t *rows, size_t row_bytes,
                          uint32_t k_base, uint32_t n_columns, uint8_t *panel)
{
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        uint8_t *lines = panel;
        panel += z4_leaf_bytes(leaf);
        for (uint32_t s = leaf->seg_first; s < leaf->seg_end; s++) {
            const kseg_t *seg = &input->segs[s];
            uint32_t k = k_base + seg->k;
            uint32_t run = k / QTYPE_Z4_VALUES - leaf->absolute / QTYPE_Z4_VALUES;
            uint8_t *scales = panel - z4_leaf_bytes(leaf) + (size_t)leaf->len_padded * LINE;
            uint8_t *zeros = scales + (size_t)z4_runs(leaf) * 64 + (size_t)run * 32;
            for (uint32_t c = 0; c < n_columns; c++) {
                const uint8_t *block =
                    rows + c * row_bytes + k / QTYPE_Z4_VALUES * sizeof(qtype_z4_t);
                uint8_t values[SEGMENT_K];
                for (uint32_t i = 0; i < seg->len; i++) {
                    uint32_t at = k % QTYPE_Z4_VALUES + i;
                    values[i] = block[offsetof(qtype_z4_t, q) + at / 2] >> (at % 2 * 4) & 15;
                }
                pack_segment_column(FORM_Z4, seg, values, lines + column_slot(c));
                memcpy(scales + (size_t)run * 64 + 2 * (size_t)c, block, 2);
                zeros[c] = block[offsetof(qtype_z4_t, zero)];
            }
            lines += (size_t)seg->pairs * 128;
        }
    }
}

/* Codes stay what they are: the kernels make BF16 of them, in which they are exact. */
static void pack_e4_panel(const kinput_t *input, const uint8_t *rows, size_t row_bytes,
                          uint32_t k_base, uint32_t n_columns, uint8_t *panel)
{
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        for (uint32_t done = 0, len = 0; done < leaf->len; done += len) {
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
                memcpy(panel + codes + 4 * (size_t)c, block, 4);
            }
            panel += codes + 128;
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

static void pack_f32_panel(const kinput_t *input, qtype_t qtype, const uint8_t *rows,
                           size_t row_bytes, uint32_t k_total, uint32_t k_base, uint32_t n_columns,
                           float *row, float *panel)
{
    for (uint32_t c = 0; c < n_columns; c++) {
        qtype_dequantize_row(qtype, rows + c * row_bytes, k_total, row);
        for (uint32_t l = 0; l < input->n_leaves; l++) {
            const kleaf_t *leaf = &input->leaves[l];
            for (uint32_t i = 0; i < leaf->len; i++) {
                size_t k = leaf->k_padded + (input->pair_order ? i ^ 1 : i);
                panel[k * PANEL + c] = row[k_base + leaf->k + i];
            }
        }
    }
}

static void pack_thread(void *arg, uint32_t thread, uint32_t n_threads)
{
    const pack_job_t *job = arg;
    const kweight_t *weight = job->weight;
    const kweight_spec_t *spec = job->spec;
    uint32_t k_base = spec->leaf_edges[spec->leaf_first];
    /* Dequantizing is defined in the default mode; the team's threads are in the kernels'. */
    uint32_t mode = _mm_getcsr();
    _mm_setcsr(FPMODE_DEFAULT);
    float *row = MEM_NEW_ARRAY(float, spec->k_total);
    uint32_t first, end;
    pool_slice(weight->n_panels, thread, n_threads, &first, &end);
    for (uint32_t p = first; p < end; p++) {
        const kpart_t *part = weight_part(weight, p);
        uint32_t index = (uint32_t)(part - weight->parts);
        const kweight_part_t *source = &spec->parts[index];
        uint32_t column = (p - part->panel_first) * PANEL;
        uint32_t n = part->n - column < PANEL ? part->n - column : PANEL;
        size_t row_bytes = job->row_bytes[index];
        const uint8_t *rows =
            (const uint8_t *)source->rows + (source->row_first + (size_t)column) * row_bytes;
        uint8_t *panel = part->data + (p - part->panel_first) * part->panel_bytes;
        if (job->codes[index] != NULL)
            pack_codes_panel(part, rows, row_bytes, k_base, n, job->codes[index], panel);
        else if (part->form < FORM_BF16)
            pack_int8_panel(part->input, part, rows, row_bytes, k_base, n, panel);
        else if (part->form == FORM_Z4)
            pack_z4_panel(part->input, rows, row_bytes, k_base, n, panel);
        else if (part->form == FORM_E4)
            pack_e4_panel(part->input, rows, row_bytes, k_base, n, panel);
        else if (part->form != FORM_F32)
            pack_half_panel(part->input, part, rows, row_bytes, k_base, n, panel);
        else
            pack_f32_panel(part->input, (qtype_t)source->qtype, rows, row_bytes, spec->k_total,
                           k_base, n, row, (float *)(void *)panel);
    }
    free(row);
    fpmode_leave(mode);
}

/* The weight's layout for a kind of activation, which is made when a part first needs it. */
static const kinput_t *weight_input(kweight_t *weight, const kweight_spec_t *spec,
                                    kactivation_t kind)
{
    for (uint32_t i = 0; i < weight->n_inputs; i++)
        if (weight->inputs[i].kind == kind)
            return &weight->inputs[i];
    kinput_t *input = &weight->inputs[weight->n_inputs++];
    input_layout(spec, kind, weight->device->mode == KMODE_NATIVE, input);
    return input;
}

static status_t check_pairs(const kweight_spec_t *spec)
{
    for (uint32_t i = 0; i < spec->n_leaves; i++)
        if (spec->leaf_edges[i] % 2 != 0)
            return fail(STATUS_UNSUPPORTED,
                        "weight %s: leaves of type F8S must start at even inputs, not at %u",
                        spec->name, spec->leaf_edges[i]);
    return STATUS_OK;
}

/* Checks one part against its bytes and describes it; adds its panels and columns to the weight. */
static status_t add_part(kdevice_t *device, const kweight_spec_t *spec, uint32_t index,
                         kweight_t *weight, pack_job_t *job)
{
    const kweight_part_t *source = &spec->parts[index];
    kpart_t *part = &weight->parts[index];
    kmultiply_t multiply;
    if (!type_multiply(source->qtype, device->mode, &multiply))
        return fail(STATUS_UNSUPPORTED, "weight %s: type %s cannot be multiplied", spec->name,
                    qtype_name(source->qtype));
    if (multiply.form == FORM_E4)
        TRY(check_pairs(spec));
    part->form = multiply.form;
    part->input = weight_input(weight, spec, multiply.kind);
    job->codes[index] = multiply.codes;
    uint64_t row_bytes, rows_bytes;
    if (!qtype_row_bytes(source->qtype, spec->k_total, &row_bytes))
        return fail(STATUS_INVALID, "weight %s: rows of %u values are not whole %s blocks",
                    spec->name, spec->k_total, qtype_name(source->qtype));
    if (!checked_mul_u64(row_bytes, (uint64_t)source->row_first + source->n_rows, &rows_bytes) ||
        rows_bytes > source->bytes)
        return fail(STATUS_INVALID, "weight %s: rows up to %llu of %llu bytes each, but %zu bytes",
                    spec->name, (unsigned long long)source->row_first + source->n_rows,
                    (unsigned long long)row_bytes, source->bytes);
    if (source->n_rows > KWEIGHT_N_MAX - weight->n)
        return fail(STATUS_INVALID, "weight %s: more than %d output columns", spec->name,
                    KWEIGHT_N_MAX);
    part->column = weight->n;
    part->n = source->n_rows;
    part->panel_first = weight->n_panels;
    part->n_panels = (source->n_rows + PANEL - 1) / PANEL;
    weight->n += part->n;
    weight->n_panels += part->n_panels;
    job->row_bytes[index] = row_bytes;
    return STATUS_OK;
}

/* Puts the layouts side by side. */
static void place_inputs(kweight_t *weight)
{
    for (uint32_t i = 0; i < weight->n_inputs; i++) {
        for (uint32_t p = 0; p < weight->n_parts; p++)
            if (weight->parts[p].input == &weight->inputs[i])
                weight->parts[p].input_offset = weight->row_bytes;
        weight->row_bytes += weight->inputs[i].row_bytes;
    }
    /* Rows a multiple of 4 KiB apart would share L1 sets. */
    if (weight->row_bytes % 4096 == 0 && weight->row_bytes != 0)
        weight->row_bytes += 64;
}

/* Writes the steps that leave the sum of leaves [first, end) on top. */
static void node_steps(kweight_t *weight, uint32_t first, uint32_t end)
{
    if (end - first == 1) {
        weight->steps[weight->n_steps++] = STEP_LEAF;
        return;
    }
    uint32_t middle = first + (end - first + 1) / 2;
    node_steps(weight, first, middle);
    node_steps(weight, middle, end);
    if (end - middle == 1)
        weight->steps[weight->n_steps - 1] = STEP_LEAF_ADD;
    else
        weight->steps[weight->n_steps++] = STEP_ADD;
}

static void write_steps(kweight_t *weight, const kweight_spec_t *spec)
{
    tree_run_t cover[TREE_COVER_MAX];
    tree_run_t run = {(uint16_t)spec->leaf_first, (uint16_t)spec->leaf_end};
    if (spec->leaves_apart) {
        weight->n_partials = spec->leaf_end - spec->leaf_first;
        for (uint32_t i = 0; i < weight->n_partials; i++) {
            weight->steps[weight->n_steps++] = STEP_LEAF;
            weight->steps[weight->n_steps++] = STEP_OUT;
        }
        return;
    }
    weight->n_partials = tree_cover(spec->n_leaves, run, cover);
    for (uint32_t i = 0; i < weight->n_partials; i++) {
        node_steps(weight, cover[i].first, cover[i].end);
        weight->steps[weight->n_steps++] = STEP_OUT;
    }
}

static void measure_panels(kweight_t *weight)
{
    for (uint32_t i = 0; i < weight->n_parts; i++) {
        kpart_t *part = &weight->parts[i];
        part->panel_bytes = form_panel_bytes(part->form, part->input);
        weight->memory_bytes += (size_t)part->panel_bytes * part->n_panels;
    }
}

void weight_place(kweight_t *weight, void *memory)
{
    uint8_t *at = memory;
    weight->memory = memory;
    for (uint32_t i = 0; i < weight->n_parts; i++) {
        weight->parts[i].data = at;
        at += (size_t)weight->parts[i].panel_bytes * weight->parts[i].n_panels;
    }
}

static status_t prepare(kdevice_t *device, const kweight_spec_t *spec, pack_job_t *job,
                        kweight_t **own_out)
{
    if (spec->n_parts < 1 || spec->n_parts > KWEIGHT_PARTS_MAX)
        return fail(STATUS_INVALID, "weight %s: %u parts, 1 to %d are possible", spec->name,
                    spec->n_parts, KWEIGHT_PARTS_MAX);
    TRY(check_edges(spec));
    kweight_t *weight = MEM_NEW(kweight_t);
    weight->device = device;
    weight->n_parts = spec->n_parts;
    *job = (pack_job_t){.weight = weight, .spec = spec};
    status_t status = STATUS_OK;
    for (uint32_t i = 0; i < spec->n_parts && status == STATUS_OK; i++)
        status = add_part(device, spec, i, weight, job);
    if (status == STATUS_OK) {
        place_inputs(weight);
        write_steps(weight, spec);
        measure_panels(weight);
    }
    if (status != STATUS_OK) {
        weight_release(weight);
        return status;
    }
    *own_out = weight;
    return STATUS_OK;
}

status_t weight_prepare(kdevice_t *device, const kweight_spec_t *spec, kweight_t **own_out)
{
    pack_job_t job;
    return prepare(device, spec, &job, own_out);
}

status_t weight_pack(kdevice_t *device, const kweight_spec_t *spec, kweight_t **own_out)
{
    pack_job_t job;
    kweight_t *weight;
    TRY(prepare(device, spec, &job, &weight));
    if (weight->memory_bytes > 0) {
        void *memory = map_pages(weight->memory_bytes);
        if (memory == NULL) {
            size_t bytes = weight->memory_bytes;
            weight_release(weight);
            return fail(STATUS_NO_MEMORY, "weight %s: no memory for %zu packed bytes", spec->name,
                        bytes);
        }
        weight_place(weight, memory);
        pool_run(device->pool, pack_thread, &job);
    }
    *own_out = weight;
    return STATUS_OK;
}

void weight_release(kweight_t *take_weight)
{
    if (take_weight == NULL)
        return;
    if (!take_weight->borrowed)
        unmap_pages(take_weight->memory, take_weight->memory_bytes);
    for (uint32_t i = 0; i < take_weight->n_inputs; i++)
        input_release(&take_weight->inputs[i]);
    free(take_weight);
}

kweight_info_t weight_info(const kweight_t *weight)
{
    return (kweight_info_t){
        .activation = weight->n_inputs > 1 ? KACTIVATION_MIXED : weight->inputs[0].kind,
        .n = weight->n,
        .k = weight->inputs[0].k,
        .n_partials = weight->n_partials,
        .packed_bytes = weight->memory_bytes,
        .input_row_bytes = weight->row_bytes,
    };
}

bool weight_quantize(const klevel_t *level, const kweight_t *weight, const float *x,
                     uint8_t *row_out)
{
    bool bad = false;
    for (uint32_t i = 0; i < weight->n_inputs; i++) {
        bad |= level->quantize(&weight->inputs[i], x, row_out);
        row_out += weight->inputs[i].row_bytes;
    }
    return bad;
}

const kpart_t *weight_part(const kweight_t *weight, uint32_t panel)
{
    for (uint32_t i = weight->n_parts; i-- > 1;)
        if (panel >= weight->parts[i].panel_first)
            return &weight->parts[i];
    return &weight->parts[0];
}
