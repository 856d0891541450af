/* A model without its weights. See model_outline.h. */
#include "common/model/model_outline.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/model_files.h"
#include "common/model/model_internal.h"
#include "common/model/source_outline.h"

/* --- tensors --- */

static bool says(const model_t *model, const char *key)
{
    return json_is_true(json_object_get(source_config(model->source), key));
}

/* Whether a tensor that may be absent would be there. */
static bool is_there(const model_t *model, model_role_t role)
{
    switch (role) {
    case MODEL_OUTPUT: return !model->config.tied_embeddings;
    case MODEL_ATTN_Q_BIAS:
    case MODEL_ATTN_K_BIAS:
    case MODEL_ATTN_V_BIAS:
    case MODEL_ATTN_OUTPUT_BIAS: return says(model, "attention_bias");
    case MODEL_FFN_GATE_BIAS:
    case MODEL_FFN_UP_BIAS:
    case MODEL_FFN_DOWN_BIAS: return says(model, "mlp_bias");
    default: return false;
    }
}

/* Roles that quantizers leave alone beside the vectors. */
static bool stays_plain(model_role_t role)
{
    switch (role) {
    case MODEL_TOKEN_EMBD:
    case MODEL_OUTPUT:
    case MODEL_ROUTER:
    case MODEL_SHARED_ROUTER:
    case MODEL_INDEX_WEIGHTS:
    case MODEL_COMPRESS_KV:
    case MODEL_COMPRESS_GATE:
    case MODEL_INDEX_COMPRESS_KV:
    case MODEL_INDEX_COMPRESS_GATE:
    case MODEL_HEAD_MIX:
    case MODEL_ATTN_MIX:
    case MODEL_FFN_MIX: return true;
    default: return false;
    }
}

static qtype_t type_of(const source_outline_types_t *types, const arch_tensor_t *wanted,
                       uint64_t columns)
{
    switch (wanted->role) {
    /* Kept in F32 by all who publish such models. */
    case MODEL_ROUTER_CORRECTION:
    case MODEL_COMPRESS_POSITION:
    case MODEL_INDEX_COMPRESS_POSITION:
    case MODEL_HEAD_MIX:
    case MODEL_ATTN_MIX:
    case MODEL_FFN_MIX: return QTYPE_F32;
    case MODEL_INDEX_WEIGHTS: return wanted->when == ARCH_INDEXED ? QTYPE_F32 : types->plain;
    default: break;
    }
    if (wanted->table)
        return QTYPE_I64;
    if (wanted->vector || stays_plain(wanted->role))
        return types->plain;
    return source_outline_matrix(types, wanted->role >= MODEL_EXPERT_GATE, columns);
}

static status_t set_size(model_t *model, model_tensor_t *view)
{
    if (!qtype_row_bytes((uint32_t)view->type, view->columns, &view->row_bytes))
        return fail(STATUS_INVALID, "%s: rows of %llu values of %s do not make whole blocks of %s",
                    source_path(model->source), (unsigned long long)view->columns, view->name,
                    qtype_name((uint32_t)view->type));
    view->bytes = model_held_bytes(view);
    return STATUS_OK;
}

static status_t outline_tensor(model_t *model, const source_outline_types_t *types,
                               const arch_tensor_t *wanted, uint32_t layer)
{
    const model_config_t *config = &model->config;
    model_tensor_t view = {
        .name = wanted->hf,
        .cut = wanted->cut,
        .rows = arch_side(config, wanted->rows),
        .columns = arch_side(config, wanted->columns),
    };
    view.type = type_of(types, wanted, view.columns);
    if (!wanted->each_expert)
        view.rows *= arch_side(config, wanted->planes);
    if (wanted->role >= MODEL_EXPERT_GATE && !wanted->each_expert)
        view.rows /= config->experts.n; /* the view is of one expert */
    TRY(set_size(model, &view));
    model->tensors[(size_t)layer * MODEL_N_ROLES + wanted->role] = view;
    return STATUS_OK;
}

static status_t outline_tensors(model_t *model)
{
    const model_config_t *config = &model->config;
    source_outline_types_t types;
    TRY(source_outline_types(model->source, &types));
    model->tensors = MEM_NEW_ARRAY(model_tensor_t, (size_t)config->n_layers * MODEL_N_ROLES);
    for (size_t g = 0; g < ARCH_GROUPS_MAX && model->arch->groups[g] != NULL; g++)
        for (size_t i = 0; i < model->arch->groups[g]->n; i++) {
            const arch_tensor_t *wanted = &model->arch->groups[g]->tensors[i];
            if (wanted->hf == NULL || (wanted->optional && !is_there(model, wanted->role)))
                continue;
            uint32_t n_layers = wanted->when == ARCH_ONCE ? 1 : config->n_layers;
            for (uint32_t layer = 0; layer < n_layers; layer++)
                if (arch_layer_has(config, layer, wanted->when))
                    TRY(outline_tensor(model, &types, wanted, layer));
        }
    model_tensor_t *output = &model->tensors[MODEL_OUTPUT];
    if (config->tied_embeddings) {
        *output = model->tensors[MODEL_TOKEN_EMBD];
        output->cut = MODEL_CUT_ROWS_VOCAB;
    }
    return STATUS_OK;
}

/* --- opening --- */

static bool has_file(const char *folder, const char *name)
{
    struct stat info;
    char *path = mem_format("%s/%s", folder, name);
    bool there = stat(path, &info) == 0;
    free(path);
    return there;
}

bool model_outline_only(const char *path)
{
    struct stat info;
    size_t n = strlen(path);
    if (n >= 5 && strcmp(path + n - 5, ".json") == 0)
        return true;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode) && !has_file(path, MODEL_SINGLE_NAME) &&
           !has_file(path, MODEL_INDEX_NAME);
}

/* The folder's name for "…/config.json", else the file's without ".json". */
static char *name_of(const char *path)
{
    static const char usual[] = "/config.json";
    size_t n = strlen(path), end = n;
    if (n > sizeof usual - 1 && strcmp(path + n - (sizeof usual - 1), usual) == 0)
        end = n - (sizeof usual - 1);
    else if (n > 5 && strcmp(path + n - 5, ".json") == 0)
        end = n - 5;
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    return mem_strndup(path + begin, end - begin);
}

static status_t read_model(model_t *model)
{
    TRY(model_find_arch(model));
    TRY(model_read_config(model, source_path(model->source)));
    TRY(model_read_vocab(model));
    TRY(model_read_special(model));
    return outline_tensors(model);
}

static status_t open_outline(source_t *take_source, model_t **own_out)
{
    model_t *model = MEM_NEW(model_t);
    model->source = take_source;
    model->name = name_of(source_path(take_source));
    status_t status = read_model(model);
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    *own_out = model;
    return STATUS_OK;
}

status_t model_outline_open(const char *path, model_t **own_out)
{
    source_t *source;
    TRY(source_outline_open(path, &source));
    return open_outline(source, own_out);
}

status_t model_outline_open_bytes(const char *path, const void *config, size_t n,
                                  model_t **own_out)
{
    source_t *source;
    TRY(source_outline_open_bytes(path, config, n, &source));
    return open_outline(source, own_out);
}

/* --- quantizing --- */

static bool is_plain(qtype_t type)
{
    return type == QTYPE_F32 || type == QTYPE_F16 || type == QTYPE_BF16;
}

static bool quantize(model_tensor_t *view, const char *name, model_role_t role)
{
    qtype_t type;
    uint64_t row_bytes;
    /* A matrix whose columns are no whole blocks stays as it is. */
    if (view->name == NULL || !is_plain(view->type) || !model_quantize_type(name, role, &type) ||
        !qtype_row_bytes((uint32_t)type, view->columns, &row_bytes))
        return false;
    view->type = type;
    view->row_bytes = row_bytes;
    view->bytes = model_held_bytes(view);
    return true;
}

status_t model_outline_quantize(model_t *model, const char *name)
{
    uint64_t n_changed = 0;
    TRY(model_check_quantize(name));
    for (uint32_t layer = 0; layer < model->config.n_layers; layer++)
        for (int role = MODEL_ATTN_NORM; role < MODEL_N_ROLES; role++)
            n_changed += quantize(&model->tensors[(size_t)layer * MODEL_N_ROLES + (size_t)role],
                                  name, (model_role_t)role);
    if (n_changed == 0)
        return fail(STATUS_UNSUPPORTED, "%s: no matrix of F32, F16 or BF16 whose rows are whole "
                    "blocks of \"%s\"; a model that is quantized already is left as it is",
                    model->name, name);
    (void)quantize(&model->tensors[MODEL_OUTPUT], name, MODEL_OUTPUT);
    return STATUS_OK;
}
