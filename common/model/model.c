/* Opening a model: structure, architecture, configuration, tensors, special ids. See model.h. */
#include "common/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/arch.h"

struct model {
    gguf_t *gguf;
    char *name;
    model_config_t config;
    model_special_ids_t special;
    gguf_text_t chat_template;
    /* tensors[role] for those that exist once, tensors[role + layer * MODEL_N_ROLES] for the
     * others; one that is absent has no name. */
    model_tensor_t *tensors;
};

static status_t read_vocab(model_t *model, const char *architecture)
{
    const gguf_t *gguf = model->gguf;
    uint32_t *vocab = &model->config.vocab;
    const gguf_value_t *tokens = NULL;
    if (gguf_find(gguf, "tokenizer.ggml.tokens") != NULL) {
        TRY(gguf_read_array(gguf, "tokenizer.ggml.tokens", GGUF_TEXT, &tokens));
        if (tokens->count == 0 || tokens->count > MODEL_VOCAB_MAX)
            return fail(STATUS_INVALID, "%s: tokenizer.ggml.tokens has %llu elements; 1 to %d "
                        "would be right", gguf_path(gguf), (unsigned long long)tokens->count,
                        MODEL_VOCAB_MAX);
        *vocab = (uint32_t)tokens->count;
    }
    status_t status = STATUS_OK;
    if (tokens == NULL)
        status = arch_read_u32(gguf, architecture, "vocab_size", 1, MODEL_VOCAB_MAX, vocab);
    else
        status = arch_read_u32_or(gguf, architecture, "vocab_size", 1, MODEL_VOCAB_MAX, vocab);
    TRY(status);
    if (tokens != NULL && tokens->count != *vocab)
        return fail(STATUS_INVALID, "%s: %s.vocab_size is %u, but tokenizer.ggml.tokens has %llu "
                    "elements", gguf_path(gguf), architecture, *vocab,
                    (unsigned long long)tokens->count);
    return STATUS_OK;
}

/* Arrays beside the token list must be as long as it, or an id would index past their end. */
static status_t check_token_array(const model_t *model, const char *key, gguf_kind_t element)
{
    if (gguf_find(model->gguf, key) == NULL)
        return STATUS_OK;
    const gguf_value_t *value;
    TRY(gguf_read_array(model->gguf, key, element, &value));
    if (value->count != model->config.vocab)
        return fail(STATUS_INVALID, "%s: %s has %llu elements; the vocabulary has %u",
                    gguf_path(model->gguf), key, (unsigned long long)value->count,
                    model->config.vocab);
    return STATUS_OK;
}

static status_t read_id(const model_t *model, const char *key, bool *found_out, uint32_t *id_out)
{
    *found_out = gguf_find(model->gguf, key) != NULL;
    if (!*found_out)
        return STATUS_OK;
    return gguf_read_u32(model->gguf, key, 0, model->config.vocab - 1, id_out);
}

static status_t read_special(model_t *model)
{
    static const char *const eos_keys[] = {
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    };
    static const char *const other_keys[] = {
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.seperator_token_id", /* spelt so by the format */
    };
    model_special_ids_t *special = &model->special;
    bool found;
    uint32_t id;
    TRY(read_id(model, "tokenizer.ggml.bos_token_id", &special->has_bos, &special->bos));
    for (size_t i = 0; i < sizeof eos_keys / sizeof *eos_keys; i++) {
        TRY(read_id(model, eos_keys[i], &found, &id));
        for (uint32_t j = 0; found && j < special->n_eos; j++)
            found = special->eos[j] != id;
        if (found)
            special->eos[special->n_eos++] = id;
    }
    for (size_t i = 0; i < sizeof other_keys / sizeof *other_keys; i++)
        TRY(read_id(model, other_keys[i], &found, &id));
    if (gguf_find(model->gguf, "tokenizer.ggml.add_bos_token") != NULL)
        TRY(gguf_read_bool(model->gguf, "tokenizer.ggml.add_bos_token", &special->add_bos));
    if (gguf_find(model->gguf, "tokenizer.chat_template") != NULL)
        TRY(gguf_read_text(model->gguf, "tokenizer.chat_template", &model->chat_template));
    TRY(check_token_array(model, "tokenizer.ggml.token_type", GGUF_I64));
    return check_token_array(model, "tokenizer.ggml.scores", GGUF_F32);
}

/* Norm weights and rope factors are few and are read by every token: one that is not finite would
 * only show as a step error far from its cause. */
static status_t check_values(const model_t *model, const gguf_tensor_t *tensor, bool positive)
{
    for (uint64_t i = 0; i < tensor->dims[0]; i++) {
        float value;
        memcpy(&value, tensor->data + i * sizeof value, sizeof value);
        if (!isfinite(value) || (positive && value <= 0))
            return fail(STATUS_INVALID, "%s: tensor %s: element %llu is %g; a finite%s number "
                        "would be right", gguf_path(model->gguf), tensor->name,
                        (unsigned long long)i, (double)value, positive ? " positive" : "");
    }
    return STATUS_OK;
}

static status_t check_tensor(const model_t *model, const arch_tensor_t *wanted,
                             const gguf_tensor_t *found)
{
    const char *path = gguf_path(model->gguf);
    uint64_t columns = arch_side(&model->config, wanted->columns);
    uint64_t rows = arch_side(&model->config, wanted->rows);
    bool vector = wanted->rows == ARCH_ONE;
    uint64_t others = found->dims[2] * found->dims[3];
    if (found->dims[0] != columns || found->dims[1] != rows || others != 1 ||
        found->n_dims != (vector ? 1u : 2u))
        return fail(STATUS_INVALID,
                    "%s: tensor %s has shape [%llu, %llu, %llu, %llu] in %u dimensions; the "
                    "configuration implies [%llu, %llu] in %u",
                    path, found->name, (unsigned long long)found->dims[0],
                    (unsigned long long)found->dims[1], (unsigned long long)found->dims[2],
                    (unsigned long long)found->dims[3], found->n_dims,
                    (unsigned long long)columns, (unsigned long long)rows, vector ? 1u : 2u);
    if (wanted->f32_only && found->type != QTYPE_F32)
        return fail(STATUS_UNSUPPORTED, "%s: tensor %s is %s; F32 is supported there", path,
                    found->name, qtype_name(found->type));
    if (!qtype_info(found->type)->is_weight)
        return fail(STATUS_UNSUPPORTED, "%s: tensor %s is %s; weights may be F32, F16, BF16, Q8_0, "
                    "Q4_0 or Q4_1", path, found->name, qtype_name(found->type));
    if (wanted->f32_only)
        return check_values(model, found, wanted->role == MODEL_ROPE_FACTORS);
    return STATUS_OK;
}

static model_tensor_t view_of(const arch_tensor_t *wanted, const gguf_tensor_t *found)
{
    model_tensor_t view = {
        .name = found->name, .type = found->type, .cut = wanted->cut, .n_dims = found->n_dims,
        .rows = found->dims[1], .columns = found->dims[0], .row_bytes = found->row_bytes,
        .bytes = found->bytes, .data = found->data,
    };
    memcpy(view.dims, found->dims, sizeof view.dims);
    return view;
}

static status_t find_tensor(model_t *model, const arch_tensor_t *wanted, uint32_t layer,
                            bool *used)
{
    char name[GGUF_TENSOR_NAME_BYTES_MAX + 1];
    if (wanted->per_layer) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(name, sizeof name, wanted->name, layer);
#pragma GCC diagnostic pop
    } else {
        snprintf(name, sizeof name, "%s", wanted->name);
    }
    const gguf_tensor_t *found = gguf_tensor(model->gguf, name);
    if (found == NULL && wanted->optional)
        return STATUS_OK;
    if (found == NULL)
        return fail(STATUS_INVALID, "%s: tensor %s [%llu, %llu] is missing; the configuration says "
                    "%u layers", gguf_path(model->gguf), name,
                    (unsigned long long)arch_side(&model->config, wanted->columns),
                    (unsigned long long)arch_side(&model->config, wanted->rows),
                    model->config.n_layers);
    TRY(check_tensor(model, wanted, found));
    used[found - gguf_tensor_at(model->gguf, 0)] = true;
    model->tensors[(size_t)layer * MODEL_N_ROLES + wanted->role] = view_of(wanted, found);
    return STATUS_OK;
}

static status_t find_tensors(model_t *model, const arch_t *arch, bool *used)
{
    for (size_t i = 0; i < arch->n_tensors; i++) {
        uint32_t n = arch->tensors[i].per_layer ? model->config.n_layers : 1;
        for (uint32_t layer = 0; layer < n; layer++)
            TRY(find_tensor(model, &arch->tensors[i], layer, used));
    }
    for (size_t i = 0; i < gguf_n_tensors(model->gguf); i++)
        if (!used[i])
            return fail(STATUS_UNSUPPORTED, "%s: tensor %s is no part of architecture %s with %u "
                        "layers; leaving it out would change the text", gguf_path(model->gguf),
                        gguf_tensor_at(model->gguf, i)->name, arch->name, model->config.n_layers);
    model_tensor_t *output = &model->tensors[MODEL_OUTPUT];
    if (output->name == NULL) {
        *output = model->tensors[MODEL_TOKEN_EMBD];
        output->cut = MODEL_CUT_ROWS_VOCAB;
        model->config.tied_embeddings = true;
    }
    model->config.rope_factors = model->tensors[MODEL_ROPE_FACTORS].name != NULL;
    return STATUS_OK;
}

static status_t read_model(model_t *model)
{
    gguf_text_t name;
    status_t status = gguf_read_text(model->gguf, "general.architecture", &name);
    if (status != STATUS_OK)
        return status == STATUS_NOT_FOUND ? STATUS_INVALID : status;
    const arch_t *arch = arch_find(name);
    if (arch == NULL)
        return fail(STATUS_UNSUPPORTED, "%s: architecture \"%.*s\" is not supported; %s is",
                    gguf_path(model->gguf), (int)(name.size < 64 ? name.size : 64), name.data,
                    arch_names());
    model->config.architecture = arch->name;
    TRY(arch->read_config(model->gguf, &model->config));
    TRY(read_vocab(model, arch->name));
    TRY(read_special(model));
    /* n_layers is bounded by MODEL_LAYERS_MAX, not by the file, so this is the one allocation here
     * that a small file can make: half a megabyte at most. */
    model->tensors = MEM_NEW_ARRAY(model_tensor_t, (size_t)model->config.n_layers * MODEL_N_ROLES);
    bool *used = MEM_NEW_ARRAY(bool, gguf_n_tensors(model->gguf));
    status = find_tensors(model, arch, used);
    free(used);
    return status;
}

static char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    size_t n = strlen(base);
    if (n > 5 && strcmp(base + n - 5, ".gguf") == 0)
        n -= 5;
    return mem_strndup(base, n);
}

static status_t open_model(gguf_t *take_gguf, model_t **own_out)
{
    model_t *model = MEM_NEW(model_t);
    model->gguf = take_gguf;
    model->name = name_of(gguf_path(take_gguf));
    status_t status = read_model(model);
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    *own_out = model;
    return STATUS_OK;
}

status_t model_open(const char *path, model_t **own_out)
{
    gguf_t *gguf;
    TRY(gguf_open(path, &gguf));
    return open_model(gguf, own_out);
}

status_t model_open_bytes(const char *path, const void *bytes, size_t n, model_t **own_out)
{
    gguf_t *gguf;
    TRY(gguf_open_bytes(path, bytes, n, &gguf));
    return open_model(gguf, own_out);
}

void model_close(model_t *take_model)
{
    if (take_model == NULL)
        return;
    gguf_close(take_model->gguf);
    free(take_model->name);
    free(take_model->tensors);
    free(take_model);
}

const model_config_t *model_config(const model_t *model)
{
    return &model->config;
}

const gguf_t *model_gguf(const model_t *model)
{
    return model->gguf;
}

const char *model_path(const model_t *model)
{
    return gguf_path(model->gguf);
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

const model_special_ids_t *model_special_ids(const model_t *model)
{
    return &model->special;
}

gguf_text_t model_chat_template(const model_t *model)
{
    return model->chat_template;
}
