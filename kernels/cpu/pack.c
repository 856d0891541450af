/* Makes a weight from rows of a model file: its parts, inputs, steps and panels (pack_panel.c).
 * Panels are independent, so the threads of the device share them out. */
#include <stdlib.h>
#include <string.h>

#include "common/base/checked.h"
#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "kernels/cpu/form_run.h"
#include "kernels/cpu/fpmode.h"
#include "kernels/cpu/internal.h"

enum { SPREAD_BYTES_MAX = 2 << 20 };

typedef struct {
    kweight_t *weight;
    const kweight_spec_t *spec;
    size_t row_bytes[KWEIGHT_PARTS_MAX];
    codes_fn codes[KWEIGHT_PARTS_MAX];
} pack_job_t;

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
        kpanel_source_t from = {.qtype = source->qtype,
                                .codes = job->codes[index],
                                .rows = rows,
                                .row_bytes = row_bytes,
                                .n_rows = n,
                                .k_total = spec->k_total,
                                .k_base = k_base,
                                .row = row};
        panel_write(part, &from, panel);
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
    part->run = multiply.run;
    part->bf16_scales = multiply.bf16_scales;
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
        weight->steps[weight->n_steps++] = 0;
        return;
    }
    uint32_t middle = first + (end - first + 1) / 2;
    node_steps(weight, first, middle);
    node_steps(weight, middle, end);
    weight->steps[weight->n_steps - 1]++;
}

static void write_steps(kweight_t *weight, const kweight_spec_t *spec)
{
    tree_run_t cover[TREE_COVER_MAX];
    tree_run_t run = {(uint16_t)spec->leaf_first, (uint16_t)spec->leaf_end};
    if (spec->leaves_apart) {
        weight->n_partials = spec->leaf_end - spec->leaf_first;
        for (uint32_t i = 0; i < weight->n_partials; i++)
            weight->steps[weight->n_steps++] = STEP_OUT;
        return;
    }
    weight->n_partials = tree_cover(spec->n_leaves, run, cover);
    bool merged = leaves_summed(spec) < spec->leaf_end - spec->leaf_first;
    for (uint32_t i = 0; i < weight->n_partials; i++) {
        node_steps(weight, cover[i].first, merged ? cover[i].first + 1u : cover[i].end);
        weight->steps[weight->n_steps - 1] |= STEP_OUT;
    }
}

static uint64_t wide_panel_bytes(const kpart_t *part)
{
    const kinput_t *input = part->input;
    uint64_t bytes = (uint64_t)input->k_padded * PANEL;
    for (uint32_t l = 0; l < input->n_leaves; l++) {
        const kleaf_t *leaf = &input->leaves[l];
        bytes += part->shared_scales ? wide_scale_bytes(leaf) : 0;
        for (uint32_t k = 0; k < leaf->len && !part->shared_scales; bytes += PANEL * 4)
            k += wide_segment(leaf, k);
    }
    return bytes;
}

static uint64_t scales_apart_panel_bytes(const kpart_t *part)
{
    uint64_t sum = 0;
    for (uint32_t l = 0; l < part->input->n_leaves; l++) {
        const kleaf_t *leaf = &part->input->leaves[l];
        sum += FORM_HAS_RUNS(part->form) ? run_leaf_bytes(part, leaf) : tail_leaf_bytes(part, leaf);
    }
    return sum;
}

static uint64_t form_panel_bytes(const kpart_t *part)
{
    kform_t form = part->form;
    const kinput_t *input = part->input;
    uint64_t k = input->k_padded, scale_bytes = FORM_IS_WIDE(form) ? PANEL * 4 : PANEL * 2;
    if (FORM_SCALES_APART(form))
        return scales_apart_panel_bytes(part);
    if (form < FORM_BF16)
        return k * PANEL / (FORM_HAS_BYTES(form) ? 1 : 2) +
               input->n_segs * scale_bytes * (FORM_HAS_MINIMUMS(form) ? 2 : 1) +
               input->n_segs * FORM_UPPER_BYTES(form);
    switch (form) {
    case FORM_BF16:
    case FORM_F16:
        return k * PANEL * 2;
    case FORM_E4:
        return wide_panel_bytes(part);
    default:
        return k * PANEL * 4;
    }
}

/* Whether every panel of the weight's E4 parts has one scale for each 128 of K, as files with blocks
 * of 128 x 128 have unless a panel lies across two of them. */
static bool shares_scales(const pack_job_t *job)
{
    const kweight_spec_t *spec = job->spec;
    uint32_t first = spec->leaf_edges[spec->leaf_first] / WIDE_SEGMENT_K;
    uint32_t end = (spec->leaf_edges[spec->leaf_end] + WIDE_SEGMENT_K - 1) / WIDE_SEGMENT_K;
    for (uint32_t i = 0; i < spec->n_parts; i++) {
        const kweight_part_t *source = &spec->parts[i];
        if (job->weight->parts[i].form != FORM_E4)
            continue;
        const uint8_t *row = (const uint8_t *)source->rows + source->row_first * job->row_bytes[i];
        const uint8_t *of_panel = row;
        for (uint32_t r = 0; r < source->n_rows; r++, row += job->row_bytes[i]) {
            of_panel = r % PANEL == 0 ? row : of_panel;
            for (size_t at = first * sizeof(qtype_f8s_t); at < end * sizeof(qtype_f8s_t);
                 at += sizeof(qtype_f8s_t))
                if (memcmp(row + at, of_panel + at, sizeof(float)) != 0)
                    return false;
        }
    }
    return true;
}

/* Room for the parts' decoded panels. What no second-level cache could hold is not decoded. */
static status_t reserve_spread(kweight_t *weight)
{
    kdevice_t *device = weight->device;
    for (uint32_t i = 0; i < weight->n_parts; i++) {
        kpart_t *part = &weight->parts[i];
        if (device->level == NULL || device->level->spread_bytes == NULL)
            continue;
        size_t bytes = device->level->spread_bytes(part);
        if (bytes == 0 || bytes > SPREAD_BYTES_MAX)
            continue;
        TRY(device_panels_reserve(device, bytes));
        part->spread_bytes = bytes;
    }
    return STATUS_OK;
}

static void measure_panels(kweight_t *weight)
{
    for (uint32_t i = 0; i < weight->n_parts; i++) {
        kpart_t *part = &weight->parts[i];
        part->panel_bytes = form_panel_bytes(part);
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

static status_t prepare(kdevice_t *device, const kweight_spec_t *spec, bool shared_scales,
                        pack_job_t *job, kweight_t **own_out)
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
    for (uint32_t i = 0; i < spec->n_parts; i++)
        weight->parts[i].shared_scales = shared_scales && weight->parts[i].form == FORM_E4;
    if (status == STATUS_OK) {
        place_inputs(weight);
        write_steps(weight, spec);
        measure_panels(weight);
        status = reserve_spread(weight);
    }
    if (status != STATUS_OK) {
        weight_release(weight);
        return status;
    }
    *own_out = weight;
    return STATUS_OK;
}

status_t weight_prepare(kdevice_t *device, const kweight_spec_t *spec, bool shared_scales,
                        kweight_t **own_out)
{
    pack_job_t job;
    return prepare(device, spec, shared_scales, &job, own_out);
}

status_t weight_pack(kdevice_t *device, const kweight_spec_t *spec, kweight_t **own_out)
{
    pack_job_t job;
    kweight_t *weight;
    TRY(prepare(device, spec, true, &job, &weight));
    if (!shares_scales(&job)) {
        weight_release(weight);
        TRY(prepare(device, spec, false, &job, &weight));
    }
    if (weight->memory_bytes > 0) {
        void *memory = map_shared(weight->memory_bytes);
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
        unmap_shared(take_weight->memory, take_weight->memory_bytes);
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
