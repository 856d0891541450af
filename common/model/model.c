/* Opening a model: files, architecture, configuration, tensors, special ids; and reading rows. See
 * model.h. */
#include "common/model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/model_files.h"
#include "common/model/model_internal.h"

static status_t find_gguf_arch(model_t *model, const gguf_t *gguf)
{
    gguf_text_t name;
    status_t status = gguf_read_text(gguf, "general.architecture", &name);
    if (status != STATUS_OK)
        return status == STATUS_NOT_FOUND ? STATUS_INVALID : status;
    model->arch = arch_find_gguf(name);
    if (model->arch == NULL)
        return fail(STATUS_UNSUPPORTED, "%s: architecture \"%.*s\" is not supported; these are: %s",
                    source_path(model->source), (int)(name.size < 64 ? name.size : 64), name.data,
                    arch_names(false));
    return STATUS_OK;
}

status_t model_find_arch(model_t *model)
{
    const char *path = source_path(model->source), *type = NULL;
    if (source_gguf(model->source) != NULL)
        return find_gguf_arch(model, source_gguf(model->source));
    TRY(json_get_text(source_config(model->source), path, "model_type", &type, NULL));
    model->arch = arch_find_hf(type);
    if (model->arch == NULL)
        return fail(STATUS_UNSUPPORTED, "%s: model_type \"%.64s\" is not supported; these are: %s",
                    path, type, arch_names(true));
    return STATUS_OK;
}

/* A factor that comes as a tensor takes the place of computed ones. */
static status_t take_rope_factors(model_t *model)
{
    const model_tensor_t *tensor = model_tensor(model, MODEL_ROPE_FACTORS, 0);
    if (tensor == NULL)
        return STATUS_OK;
    free(model->rope_factors[0]);
    model->rope_factors[0] = MEM_NEW_ARRAY(float, tensor->columns);
    model->config.ropes[0].factors = true;
    return model_read_f32(tensor, model->rope_factors[0]);
}

status_t model_read_config(model_t *model, const char *where)
{
    arch_reader_t reader = {
        .source = model->source,
        .gguf = source_gguf(model->source),
        .config = source_config(model->source),
        .prefix = model->arch->gguf,
        .where = where,
        .out = &model->config,
    };
    model->config.architecture = model->arch->name;
    status_t status = model->arch->read(&reader);
    memcpy(model->rope_factors, reader.factors, sizeof model->rope_factors);
    return status;
}

static status_t read_config(model_t *model)
{
    const char *path = source_path(model->source);
    char *where = mem_format("%s%s", path, model_gguf(model) != NULL ? "" : "/config.json");
    status_t status = model_read_config(model, where);
    free(where);
    return status;
}

static status_t read_model(model_t *model)
{
    TRY(model_find_arch(model));
    TRY(read_config(model));
    TRY(model_read_vocab(model));
    TRY(model_read_special(model));
    TRY(model_find_tensors(model));
    return take_rope_factors(model);
}

static status_t open_model(source_t *take_source, const char *quantize, model_t **own_out)
{
    model_t *model = MEM_NEW(model_t);
    model->source = take_source;
    model->name = model_files_name(source_path(take_source));
    status_t status = read_model(model);
    if (status == STATUS_OK)
        status = model_quantize(model, quantize);
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    *own_out = model;
    return STATUS_OK;
}

status_t model_open(const char *path, model_t **own_out)
{
    return model_open_quantized(path, "", own_out);
}

status_t model_open_quantized(const char *path, const char *quantize, model_t **own_out)
{
    source_t *source;
    TRY(source_open(path, &source));
    return open_model(source, quantize, own_out);
}

status_t model_open_bytes(const char *path, const void *bytes, size_t n, model_t **own_out)
{
    source_t *source;
    TRY(source_open_gguf_bytes(path, bytes, n, &source));
    return open_model(source, "", own_out);
}

void model_close(model_t *take_model)
{
    if (take_model == NULL)
        return;
    for (size_t i = 0; i < MODEL_ROPES_MAX; i++)
        free(take_model->rope_factors[i]);
    source_close(take_model->source);
    free(take_model->name);
    free(take_model->tensors);
    free(take_model->experts);
    free(take_model->views);
    free(take_model);
}

const model_config_t *model_config(const model_t *model)
{
    return &model->config;
}

const source_t *model_source(const model_t *model)
{
    return model->source;
}

const gguf_t *model_gguf(const model_t *model)
{
    return source_gguf(model->source);
}

const char *model_path(const model_t *model)
{
    return source_path(model->source);
}

const char *model_name(const model_t *model)
{
    return model->name;
}

const model_tensor_t *model_tensor(const model_t *model, model_role_t role, uint32_t layer)
{
    CHECK(role < MODEL_N_ROLES);
    if (role < MODEL_ATTN_NORM)
        layer = 0;
    CHECK(layer < model->config.n_layers);
    const model_tensor_t *tensor = &model->tensors[(size_t)layer * MODEL_N_ROLES + role];
    return tensor->name != NULL ? tensor : NULL;
}

bool model_expert(const model_t *model, model_role_t role, uint32_t layer, uint32_t expert,
                  model_tensor_t *view_out)
{
    CHECK(role >= MODEL_EXPERT_GATE && expert < model->config.experts.n);
    const model_tensor_t *first = model_tensor(model, role, layer);
    if (first == NULL)
        return false;
    model_tensor_t view = *first;
    const source_tensor_t *own = NULL;
    if (model->experts != NULL) {
        size_t row = (size_t)layer * MODEL_N_EXPERT_ROLES + (size_t)(role - MODEL_EXPERT_GATE);
        own = model->experts[row * model->config.experts.n + expert];
    }
    if (own != NULL) {
        view.name = own->name;
        view.type = own->type;
        view.row_bytes = own->row_bytes;
        view.bytes = model_held_bytes(&view);
        view.data = own->data;
        view.source = own;
    } else {
        view.row_first = expert * view.rows;
        if (view.data != NULL)
            view.data = view.source->data + view.row_first * view.row_bytes;
    }
    *view_out = view;
    return true;
}

const float *model_rope_factors(const model_t *model, uint32_t rope)
{
    CHECK(rope < MODEL_ROPES_MAX);
    return model->rope_factors[rope];
}

status_t model_read_rows(const model_tensor_t *tensor, uint64_t row_first, uint64_t n_rows,
                         uint8_t *out)
{
    CHECK(row_first <= tensor->rows && n_rows <= tensor->rows - row_first);
    return source_read_rows(tensor->source, tensor->row_first + row_first, n_rows, out);
}

status_t model_read_f32(const model_tensor_t *tensor, float *out)
{
    uint8_t *row = mem_new(tensor->row_bytes, 1);
    status_t status = STATUS_OK;
    for (uint64_t i = 0; status == STATUS_OK && i < tensor->rows; i++) {
        status = model_read_rows(tensor, i, 1, row);
        if (status == STATUS_OK)
            qtype_dequantize_row(tensor->type, row, tensor->columns, out + i * tensor->columns);
    }
    free(row);
    return status;
}

const model_special_ids_t *model_special_ids(const model_t *model)
{
    return &model->special;
}

gguf_text_t model_chat_template(const model_t *model)
{
    return model->chat_template;
}
