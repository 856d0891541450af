/* The vocabulary's size and the special ids, from GGUF keys or from config.json and
 * generation_config.json. See model.h. */
#include "common/model/model_internal.h"

static status_t read_vocab_gguf(model_t *model, const gguf_t *gguf)
{
    uint32_t *vocab = &model->config.vocab;
    const gguf_value_t *tokens = NULL;
    const arch_reader_t reader = {.source = model->source, .gguf = gguf,
                                  .prefix = model->arch->gguf, .out = &model->config,
                                  .where = gguf_path(gguf)};
    if (gguf_find(gguf, "tokenizer.ggml.tokens") != NULL) {
        TRY(gguf_read_array(gguf, "tokenizer.ggml.tokens", GGUF_TEXT, &tokens));
        if (tokens->count == 0 || tokens->count > MODEL_VOCAB_MAX)
            return fail(STATUS_INVALID, "%s: tokenizer.ggml.tokens has %llu elements; 1 to %d "
                        "would be right", gguf_path(gguf), (unsigned long long)tokens->count,
                        MODEL_VOCAB_MAX);
        *vocab = (uint32_t)tokens->count;
        TRY(arch_u32_or(&reader, "vocab_size", NULL, 1, MODEL_VOCAB_MAX, vocab));
    } else {
        TRY(arch_u32(&reader, "vocab_size", NULL, 1, MODEL_VOCAB_MAX, vocab));
    }
    if (tokens != NULL && tokens->count != *vocab)
        return fail(STATUS_INVALID, "%s: %s.vocab_size is %u, but tokenizer.ggml.tokens has %llu "
                    "elements", gguf_path(gguf), model->arch->gguf, *vocab,
                    (unsigned long long)tokens->count);
    return STATUS_OK;
}

status_t model_read_vocab(model_t *model)
{
    const gguf_t *gguf = source_gguf(model->source);
    uint64_t vocab;
    if (gguf != NULL)
        return read_vocab_gguf(model, gguf);
    TRY(json_get_u64(source_config(model->source), source_path(model->source), "vocab_size", 1,
                     MODEL_VOCAB_MAX, &vocab));
    model->config.vocab = (uint32_t)vocab;
    return STATUS_OK;
}

/* Arrays beside the token list must be as long as it, or an id would index past their end. */
static status_t check_token_array(const model_t *model, const char *key, gguf_kind_t element)
{
    const gguf_t *gguf = source_gguf(model->source);
    if (gguf_find(gguf, key) == NULL)
        return STATUS_OK;
    const gguf_value_t *value;
    TRY(gguf_read_array(gguf, key, element, &value));
    if (value->count != model->config.vocab)
        return fail(STATUS_INVALID, "%s: %s has %llu elements; the vocabulary has %u",
                    gguf_path(gguf), key, (unsigned long long)value->count, model->config.vocab);
    return STATUS_OK;
}

static void add_eos(model_special_ids_t *special, uint32_t id)
{
    for (uint32_t i = 0; i < special->n_eos; i++)
        if (special->eos[i] == id)
            return;
    if (special->n_eos < MODEL_EOS_MAX)
        special->eos[special->n_eos++] = id;
}

static status_t read_id(const model_t *model, const char *key, bool *found_out, uint32_t *id_out)
{
    const gguf_t *gguf = source_gguf(model->source);
    *found_out = gguf_find(gguf, key) != NULL;
    if (!*found_out)
        return STATUS_OK;
    return gguf_read_u32(gguf, key, 0, model->config.vocab - 1, id_out);
}

static status_t read_gguf(model_t *model)
{
    static const char *const eos_keys[] = {
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    };
    static const char *const other_keys[] = {
        "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.seperator_token_id", /* spelt so by the format */
    };
    const gguf_t *gguf = source_gguf(model->source);
    model_special_ids_t *special = &model->special;
    bool found;
    uint32_t id;
    TRY(read_id(model, "tokenizer.ggml.bos_token_id", &special->has_bos, &special->bos));
    for (size_t i = 0; i < sizeof eos_keys / sizeof *eos_keys; i++) {
        TRY(read_id(model, eos_keys[i], &found, &id));
        if (found)
            add_eos(special, id);
    }
    for (size_t i = 0; i < sizeof other_keys / sizeof *other_keys; i++)
        TRY(read_id(model, other_keys[i], &found, &id));
    if (gguf_find(gguf, "tokenizer.ggml.add_bos_token") != NULL)
        TRY(gguf_read_bool(gguf, "tokenizer.ggml.add_bos_token", &special->add_bos));
    if (gguf_find(gguf, "tokenizer.chat_template") != NULL)
        TRY(gguf_read_text(gguf, "tokenizer.chat_template", &model->chat_template));
    TRY(check_token_array(model, "tokenizer.ggml.token_type", GGUF_I64));
    return check_token_array(model, "tokenizer.ggml.scores", GGUF_F32);
}

/* One id, or a list of them. */
static status_t read_eos(model_t *model, const json_t *object, const char *where)
{
    const json_t *value = json_object_get(object, "eos_token_id");
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        json_int_t number = json_is_integer(id) ? json_integer_value(id) : -1;
        if (number < 0 || number >= model->config.vocab)
            return fail(STATUS_INVALID, "%s: \"eos_token_id\" must be an id from 0 to %u, or an "
                        "array of those", where, model->config.vocab - 1);
        add_eos(&model->special, (uint32_t)number);
    }
    return STATUS_OK;
}

/* generation_config.json is what people mean; config.json adds what only it has. */
static status_t read_directory(model_t *model)
{
    const char *path = source_path(model->source);
    const json_t *objects[2] = {source_generation_config(model->source),
                                source_config(model->source)};
    model_special_ids_t *special = &model->special;
    for (size_t i = 0; i < 2; i++) {
        uint64_t bos = UINT64_MAX;
        if (objects[i] == NULL)
            continue;
        TRY(read_eos(model, objects[i], path));
        if (!special->has_bos)
            TRY(json_may_u64(objects[i], path, "bos_token_id", 0, model->config.vocab - 1, &bos));
        if (bos != UINT64_MAX) {
            special->has_bos = true;
            special->bos = (uint32_t)bos;
        }
    }
    return STATUS_OK;
}

status_t model_read_special(model_t *model)
{
    return source_gguf(model->source) != NULL ? read_gguf(model) : read_directory(model);
}
