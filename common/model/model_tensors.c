/* Finding the tensors that the architecture lists, with the shapes that the configuration implies,
 * and refusing those that nothing asks for. See model.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/model_internal.h"

typedef struct {
    model_t *model;
    bool *used; /* by place in the source's list */
    bool gguf;
    bool biased; /* the configuration says that attention has biases */
} finder_t;

typedef struct {
    uint64_t columns, rows, planes;
} wanted_shape_t;

static wanted_shape_t shape_of(const finder_t *finder, const arch_tensor_t *wanted)
{
    const model_config_t *config = &finder->model->config;
    wanted_shape_t shape = {
        .columns = arch_side(config, wanted->columns),
        .rows = arch_side(config, wanted->rows),
        .planes = arch_side(config, wanted->planes),
    };
    if (wanted->each_expert && !finder->gguf)
        shape.planes = 1;
    return shape;
}

/* Vectors are few and are read by every token: a value that is not finite would only show as a step
 * error far from its cause. */
static status_t check_values(const model_t *model, const source_tensor_t *found, bool positive)
{
    float *values = MEM_NEW_ARRAY(float, found->columns);
    uint8_t *row = mem_new(found->row_bytes, 1);
    status_t status = STATUS_OK;
    for (uint64_t r = 0; status == STATUS_OK && r < found->rows; r++) {
        status = source_read_rows(found, r, 1, row);
        if (status == STATUS_OK)
            qtype_dequantize_row(found->type, row, found->columns, values);
        for (uint64_t i = 0; status == STATUS_OK && i < found->columns; i++)
            if (!isfinite(values[i]) || (positive && values[i] <= 0))
                status = fail(STATUS_INVALID, "%s: tensor %s: element %llu is %g; a finite%s "
                              "number would be right", source_path(model->source), found->name,
                              (unsigned long long)(r * found->columns + i), (double)values[i],
                              positive ? " positive" : "");
    }
    free(row);
    free(values);
    return status;
}

static status_t wrong_shape(const char *path, const source_tensor_t *found,
                            const wanted_shape_t *shape)
{
    char implied[80];
    if (shape->planes > 1)
        snprintf(implied, sizeof implied, "[%llu, %llu, %llu]", (unsigned long long)shape->columns,
                 (unsigned long long)shape->rows, (unsigned long long)shape->planes);
    else
        snprintf(implied, sizeof implied, "[%llu, %llu]", (unsigned long long)shape->columns,
                 (unsigned long long)shape->rows);
    return fail(STATUS_INVALID,
                "%s: tensor %s has shape [%llu, %llu, %llu, %llu] in %u dimensions; the "
                "configuration implies %s", path, found->name, (unsigned long long)found->dims[0],
                (unsigned long long)found->dims[1], (unsigned long long)found->dims[2],
                (unsigned long long)found->dims[3], found->n_dims, implied);
}

static status_t check_tensor(const finder_t *finder, const arch_tensor_t *wanted,
                             const source_tensor_t *found)
{
    const char *path = source_path(finder->model->source);
    wanted_shape_t shape = shape_of(finder, wanted);
    if (found->dims[0] != shape.columns || found->dims[1] != shape.rows ||
        found->dims[2] != shape.planes || found->dims[3] != 1)
        return wrong_shape(path, found, &shape);
    bool plain = found->type == QTYPE_F32 || found->type == QTYPE_F16 || found->type == QTYPE_BF16;
    if (wanted->vector && !plain)
        return fail(STATUS_UNSUPPORTED, "%s: tensor %s is %s; F32, F16 and BF16 are supported "
                    "there", path, found->name, qtype_name(found->type));
    const qtype_info_t *info = qtype_info(found->type);
    if (wanted->table) {
        if (found->type != QTYPE_I64 && found->type != QTYPE_I32)
            return fail(STATUS_UNSUPPORTED, "%s: tensor %s is %s; a table of ids is I64 or I32",
                        path, found->name, qtype_name(found->type));
        return STATUS_OK;
    }
    if (info == NULL || !info->is_weight)
        return fail(STATUS_UNSUPPORTED, "%s: tensor %s is %s, which cannot be a weight", path,
                    found->name, qtype_name(found->type));
    if (wanted->vector)
        return check_values(finder->model, found, wanted->role == MODEL_ROPE_FACTORS);
    return STATUS_OK;
}

/* The whole tensor, or for roles of experts the first one's part of it. */
static model_tensor_t view_of(const finder_t *finder, const arch_tensor_t *wanted,
                              const source_tensor_t *found)
{
    model_tensor_t view = {
        .name = found->name, .type = found->type, .cut = wanted->cut, .rows = found->rows,
        .columns = found->columns, .row_bytes = found->row_bytes, .data = found->data,
        .source = found,
    };
    if (wanted->role >= MODEL_EXPERT_GATE && !(wanted->each_expert && !finder->gguf))
        view.rows = found->rows / finder->model->config.experts.n;
    view.bytes = model_held_bytes(&view);
    return view;
}

static void name_tensor(const char *pattern, uint32_t layer, uint32_t expert, char *out,
                        size_t size)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(out, size, pattern, layer, expert);
#pragma GCC diagnostic pop
}

static status_t find_tensor(finder_t *finder, const arch_tensor_t *wanted, uint32_t layer,
                            uint32_t expert)
{
    model_t *model = finder->model;
    char name[256];
    name_tensor(finder->gguf ? wanted->gguf : wanted->hf, layer, expert, name, sizeof name);
    const source_tensor_t *found = source_tensor(model->source, name);
    wanted_shape_t shape = shape_of(finder, wanted);
    bool attention_bias =
        wanted->role == MODEL_ATTN_Q_BIAS || wanted->role == MODEL_ATTN_K_BIAS ||
        wanted->role == MODEL_ATTN_V_BIAS || wanted->role == MODEL_ATTN_OUTPUT_BIAS;
    if (found == NULL && wanted->optional && !(attention_bias && finder->biased))
        return STATUS_OK;
    if (found == NULL)
        return fail(STATUS_INVALID, "%s: tensor %s [%llu, %llu] is missing; the configuration says "
                    "%u layers", source_path(model->source), name,
                    (unsigned long long)shape.columns,
                    (unsigned long long)(shape.rows * shape.planes), model->config.n_layers);
    TRY(check_tensor(finder, wanted, found));
    finder->used[found - source_tensor_at(model->source, 0)] = true;
    if (expert == 0)
        model->tensors[(size_t)layer * MODEL_N_ROLES + wanted->role] =
            view_of(finder, wanted, found);
    if (wanted->each_expert && !finder->gguf) {
        size_t row =
            (size_t)layer * MODEL_N_EXPERT_ROLES + (size_t)(wanted->role - MODEL_EXPERT_GATE);
        model->experts[row * model->config.experts.n + expert] = found;
    }
    return STATUS_OK;
}

static status_t find_in_layers(finder_t *finder, const arch_tensor_t *wanted)
{
    const model_config_t *config = &finder->model->config;
    if ((finder->gguf ? wanted->gguf : wanted->hf) == NULL)
        return STATUS_OK;
    uint32_t n_experts = wanted->each_expert && !finder->gguf ? config->experts.n : 1;
    uint32_t n_layers = wanted->when == ARCH_ONCE ? 1 : config->n_layers;
    for (uint32_t layer = 0; layer < n_layers; layer++)
        for (uint32_t e = 0; e < n_experts && arch_layer_has(config, layer, wanted->when); e++)
            TRY(find_tensor(finder, wanted, layer, e));
    return STATUS_OK;
}

/* The architectures whose code reads "attention_bias"; the others have biases or have none. */
static bool says_biased(const model_t *model)
{
    const json_t *config = source_config(model->source);
    const char *type = json_string_value(json_object_get(config, "model_type"));
    return type != NULL && json_is_true(json_object_get(config, "attention_bias")) &&
           (strcmp(type, "llama") == 0 || strncmp(type, "qwen3", 5) == 0);
}

static status_t read_n_draft(const model_t *model, uint32_t *out)
{
    arch_reader_t reader = {
        .source = model->source, .gguf = source_gguf(model->source),
        .config = source_config(model->source), .prefix = model->arch->gguf,
        .where = source_path(model->source),
    };
    *out = 0;
    return arch_u32_or(&reader, "nextn_predict_layers", "num_nextn_predict_layers", 0,
                       MODEL_LAYERS_MAX, out);
}

/* Frequencies that old versions of transformers stored; they follow from the configuration. */
static bool is_inv_freq(const char *name)
{
    static const char end[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name);
    return n >= sizeof end - 1 && strcmp(name + n - (sizeof end - 1), end) == 0;
}

static status_t refuse_unused(const finder_t *finder)
{
    const model_t *model = finder->model;
    const arch_t *arch = model->arch;
    uint32_t n_draft;
    TRY(read_n_draft(model, &n_draft));
    for (size_t i = 0; i < source_n_tensors(model->source); i++) {
        const char *name = source_tensor_at(model->source, i)->name;
        if (finder->used[i] || is_inv_freq(name) ||
            (arch->ignores != NULL && arch->ignores(model->config.n_layers, n_draft, name)))
            continue;
        return fail(STATUS_UNSUPPORTED, "%s: tensor %s is no part of architecture %s with %u "
                    "layers; leaving it out would change the text", source_path(model->source),
                    name, arch->name, model->config.n_layers);
    }
    return STATUS_OK;
}

/* A directory says whether the head is the embedding, and then a head beside it is the same; a GGUF
 * shows it by having none. */
static status_t tie_embeddings(const finder_t *finder)
{
    model_t *model = finder->model;
    model_tensor_t *output = &model->tensors[MODEL_OUTPUT];
    if (output->name == NULL && !finder->gguf && !model->config.tied_embeddings)
        return fail(STATUS_INVALID, "%s: tensor lm_head.weight is missing, and "
                    "\"tie_word_embeddings\" is false", source_path(model->source));
    model->config.tied_embeddings = output->name == NULL || model->config.tied_embeddings;
    if (model->config.tied_embeddings) {
        *output = model->tensors[MODEL_TOKEN_EMBD];
        output->cut = MODEL_CUT_ROWS_VOCAB;
    }
    return STATUS_OK;
}

status_t model_find_tensors(model_t *model)
{
    finder_t finder = {.model = model, .gguf = source_gguf(model->source) != NULL,
                       .biased = says_biased(model)};
    const model_config_t *config = &model->config;
    /* Layers are bounded by MODEL_LAYERS_MAX and experts by MODEL_EXPERTS_MAX, not by the files:
     * three megabytes here, and 33 for the experts of a directory, at most. */
    model->tensors = MEM_NEW_ARRAY(model_tensor_t, (size_t)config->n_layers * MODEL_N_ROLES);
    if (!finder.gguf && config->experts.n > 0)
        model->experts = (const source_tensor_t **)mem_new(
            (size_t)config->n_layers * MODEL_N_EXPERT_ROLES * config->experts.n,
            sizeof *model->experts);
    finder.used = MEM_NEW_ARRAY(bool, source_n_tensors(model->source));
    status_t status = STATUS_OK;
    for (size_t g = 0; g < ARCH_GROUPS_MAX && model->arch->groups[g] != NULL; g++)
        for (size_t i = 0; i < model->arch->groups[g]->n && status == STATUS_OK; i++)
            status = find_in_layers(&finder, &model->arch->groups[g]->tensors[i]);
    if (status == STATUS_OK)
        status = refuse_unused(&finder);
    if (status == STATUS_OK)
        status = tie_embeddings(&finder);
    free(finder.used);
    return status;
}
