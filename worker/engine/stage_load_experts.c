/* Weights of a layer of experts: the router, whole on every rank and in F32; of each expert that
 * the slice has, its rows of gate and up and its leaves of down; and the same of the shared one. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "worker/engine/stage_pack.h"

static status_t load_router(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_tensor_t *tensors[2] = {
        model_tensor(stage->model, MODEL_ROUTER, layer),
        model_tensor(stage->model, MODEL_SHARED_ROUTER, layer),
    };
    TRY(stage_pack_f32(stage, tensors, stage_router_has_gate(stage->shape) ? 2 : 1, &out->router));
    TRY(stage_pack_bias(stage, model_tensor(stage->model, MODEL_ROUTER_BIAS, layer),
                        &out->router_bias));
    return stage_pack_bias(stage, model_tensor(stage->model, MODEL_ROUTER_CORRECTION, layer),
                           &out->router_correction);
}

/* The experts of every token, as the kernels take them: u32. */
static status_t load_table(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    const model_tensor_t *table = model_tensor(stage->model, MODEL_ROUTER_TABLE, layer);
    const kernel_ops_t *ops = stage->ops;
    if (table == NULL)
        return STATUS_OK;
    size_t n = table->rows * table->columns, width = table->type == QTYPE_I64 ? 8 : 4;
    uint8_t *stored = mem_new(table->bytes, 1);
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, n);
    status_t status = stage_verify(stage, table, 0, table->rows);
    if (status == STATUS_OK)
        status = model_read_rows(table, 0, table->rows, stored);
    for (size_t i = 0; status == STATUS_OK && i < n; i++) {
        uint64_t id = 0;
        memcpy(&id, stored + i * width, width); /* little-endian, as the machines are */
        if (id >= stage->shape->experts.n)
            status = fail(STATUS_INVALID, "%s: tensor %s: element %zu is expert %llu of %u",
                          model_path(stage->model), table->name, i, (unsigned long long)id,
                          stage->shape->experts.n);
        ids[i] = (uint32_t)id;
    }
    if (status == STATUS_OK)
        status = ops->buffer_new(stage->device, n * sizeof *ids, &out->router_table);
    if (status == STATUS_OK)
        status = ops->copy_in(stage->queue, stage_at(out->router_table, 0), ids, n * sizeof *ids);
    free(stored);
    free(ids);
    return status;
}

/* Rows [first, first + count) of gate and of up; where the two lie in turns, of both at once. */
static status_t load_gate_up(stage_t *stage, uint32_t layer, uint32_t expert, kweight_t **own_out)
{
    plan_run_t run = stage->slice.expert_ffn;
    model_tensor_t gate, up;
    stage_rows_t rows[2] = {{&gate, run.first, run.count}, {&up, run.first, run.count}};
    if (stage->shape->experts.interleaved) {
        CHECK(model_expert(stage->model, MODEL_EXPERT_GATE_UP, layer, expert, &gate));
        rows[0] = (stage_rows_t){&gate, 2 * run.first, 2 * run.count};
        return stage_pack_whole(stage, rows, 1, own_out);
    }
    CHECK(model_expert(stage->model, MODEL_EXPERT_GATE, layer, expert, &gate));
    CHECK(model_expert(stage->model, MODEL_EXPERT_UP, layer, expert, &up));
    return stage_pack_whole(stage, rows, 2, own_out);
}

static status_t load_down(stage_t *stage, uint32_t layer, uint32_t expert, kweight_t **own_out)
{
    plan_leaves_t leaves;
    model_tensor_t down;
    CHECK(model_expert(stage->model, MODEL_EXPERT_DOWN, layer, expert, &down));
    plan_leaf_edges_expert(stage->shape->experts.ffn, &leaves);
    const stage_rows_t rows = {&down, 0, down.rows};
    return stage_pack(stage, &rows, 1, &leaves, stage->slice.expert_leaves, true, own_out);
}

/* One expert's biases behind those of the others. False when the model has none. */
static status_t read_bias(const stage_t *stage, model_role_t role, uint32_t layer, uint32_t expert,
                          plan_run_t run, float *out, bool *found_out)
{
    model_tensor_t bias;
    *found_out = model_expert(stage->model, role, layer, expert, &bias);
    if (!*found_out)
        return STATUS_OK;
    float *whole = MEM_NEW_ARRAY(float, bias.columns);
    status_t status = stage_read_f32(stage, &bias, whole);
    memcpy(out, whole + run.first, run.count * sizeof *out);
    free(whole);
    return status;
}

static status_t load_gate_up_bias(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    plan_run_t run = stage->slice.expert_ffn;
    plan_run_t both = {2 * run.first, 2 * run.count};
    size_t n = 2 * (size_t)run.count;
    float *values = MEM_NEW_ARRAY(float, out->n_experts * n + 1);
    status_t status = STATUS_OK;
    bool found = true;
    for (uint32_t i = 0; status == STATUS_OK && found && i < out->n_experts; i++) {
        uint32_t expert = stage->slice.experts.first + i;
        float *at = values + i * n;
        if (stage->shape->experts.interleaved) {
            status = read_bias(stage, MODEL_EXPERT_GATE_UP_BIAS, layer, expert, both, at, &found);
        } else {
            status = read_bias(stage, MODEL_EXPERT_GATE_BIAS, layer, expert, run, at, &found);
            if (status == STATUS_OK && found)
                status = read_bias(stage, MODEL_EXPERT_UP_BIAS, layer, expert, run, at + n / 2,
                                   &found);
        }
    }
    if (status == STATUS_OK && found)
        status = stage_pack_values(stage, values, out->n_experts * n, &out->expert_gate_up_bias);
    free(values);
    return status;
}

/* It enters once: with element 0 of K. Leaf 0 would not do, which is empty where K is small, and a
 * slice of nothing but empty leaves runs no experts. */
static status_t load_down_bias(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    size_t n = stage->shape->hidden;
    if (stage->slice.expert_ffn.first != 0)
        return STATUS_OK;
    float *values = MEM_NEW_ARRAY(float, out->n_experts * n + 1);
    status_t status = STATUS_OK;
    bool found = true;
    for (uint32_t i = 0; status == STATUS_OK && found && i < out->n_experts; i++)
        status = read_bias(stage, MODEL_EXPERT_DOWN_BIAS, layer, stage->slice.experts.first + i,
                           (plan_run_t){0, (uint32_t)n}, values + i * n, &found);
    if (status == STATUS_OK && found)
        status = stage_pack_values(stage, values, out->n_experts * n, &out->expert_down_bias);
    free(values);
    return status;
}

static kref_t ref_of(kbuffer_t *buffer)
{
    return (kref_t){buffer, 0};
}

/* Names the first tensor that is stored in another type than the same tensor of this rank's first
 * expert. The kernels, which need one kind of input for all, know experts by number alone. */
static status_t name_odd_expert(const stage_t *stage, uint32_t layer)
{
    static const model_role_t apart[] = {MODEL_EXPERT_GATE, MODEL_EXPERT_UP, MODEL_EXPERT_DOWN};
    static const model_role_t turns[] = {MODEL_EXPERT_GATE_UP, MODEL_EXPERT_DOWN};
    bool interleaved = stage->shape->experts.interleaved;
    const model_role_t *roles = interleaved ? turns : apart;
    plan_run_t run = stage->slice.experts;
    for (uint32_t i = 1; i < run.count; i++)
        for (size_t k = 0; k < (interleaved ? 2 : 3); k++) {
            model_tensor_t first, found;
            CHECK(model_expert(stage->model, roles[k], layer, run.first, &first));
            CHECK(model_expert(stage->model, roles[k], layer, run.first + i, &found));
            if (found.type != first.type)
                return fail_in(STATUS_UNSUPPORTED, "%s: tensor %s is %s, and %s is %s",
                               model_path(stage->model), found.name,
                               qtype_name((uint32_t)found.type), first.name,
                               qtype_name((uint32_t)first.type));
        }
    return fail_in(STATUS_UNSUPPORTED, "%s: layer %u", model_path(stage->model), layer);
}

static status_t load_routed(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    plan_run_t run = stage->slice.experts;
    if (run.count == 0 || stage->slice.expert_ffn.count == 0)
        return STATUS_OK;
    out->expert_gate_up = (kweight_t **)mem_new(run.count, sizeof *out->expert_gate_up);
    out->expert_down = (kweight_t **)mem_new(run.count, sizeof *out->expert_down);
    out->n_experts = run.count;
    uint32_t *ids = MEM_NEW_ARRAY(uint32_t, run.count);
    status_t status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < run.count; i++) {
        ids[i] = run.first + i;
        status = load_gate_up(stage, layer, ids[i], &out->expert_gate_up[i]);
        if (status == STATUS_OK)
            status = load_down(stage, layer, ids[i], &out->expert_down[i]);
    }
    if (status == STATUS_OK)
        status = load_gate_up_bias(stage, layer, out);
    if (status == STATUS_OK)
        status = load_down_bias(stage, layer, out);
    kexperts_spec_t spec = {
        .hidden = stage->shape->hidden,
        .n = stage->slice.expert_ffn.count,
        .n_experts = run.count,
        .ids = ids,
        .gate_up = (const kweight_t *const *)out->expert_gate_up,
        .down = (const kweight_t *const *)out->expert_down,
        .gate_up_bias = ref_of(out->expert_gate_up_bias),
        .down_bias = ref_of(out->expert_down_bias),
        .activate = stage->activate,
        .rows_max = stage->rows_max,
        .top_k_max = stage->shape->experts.n_used,
    };
    spec.activate.interleaved = stage->shape->experts.interleaved;
    if (status == STATUS_OK) {
        status = stage->ops->experts_open(stage->device, &spec, &out->experts);
        if (status == STATUS_UNSUPPORTED)
            status = name_odd_expert(stage, layer);
    }
    free(ids);
    return status;
}

static status_t load_shared(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    static const uint32_t id = 0;
    plan_run_t run = stage->slice.shared_ffn;
    plan_leaves_t leaves;
    if (run.count == 0)
        return STATUS_OK;
    const stage_rows_t gate_up[2] = {
        {model_tensor(stage->model, MODEL_SHARED_GATE, layer), run.first, run.count},
        {model_tensor(stage->model, MODEL_SHARED_UP, layer), run.first, run.count},
    };
    const model_tensor_t *down = model_tensor(stage->model, MODEL_SHARED_DOWN, layer);
    const stage_rows_t down_rows = {down, 0, down->rows};
    TRY(stage_pack_whole(stage, gate_up, 2, &out->shared_gate_up));
    plan_leaf_edges_expert(stage->shape->experts.shared_ffn, &leaves);
    TRY(stage_pack(stage, &down_rows, 1, &leaves, stage->slice.shared_leaves, true,
                   &out->shared_down));
    const kweight_t *const gate_ups[1] = {out->shared_gate_up};
    const kweight_t *const downs[1] = {out->shared_down};
    kexperts_spec_t spec = {
        .hidden = stage->shape->hidden,
        .n = run.count,
        .n_experts = 1,
        .ids = &id,
        .gate_up = gate_ups,
        .down = downs,
        .activate = stage->activate,
        .rows_max = stage->rows_max,
        .top_k_max = 1,
    };
    return stage->ops->experts_open(stage->device, &spec, &out->shared);
}

status_t stage_load_experts(stage_t *stage, uint32_t layer, stage_layer_t *out)
{
    TRY(load_router(stage, layer, out));
    TRY(load_table(stage, layer, out));
    TRY(load_routed(stage, layer, out));
    return load_shared(stage, layer, out);
}
