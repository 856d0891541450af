/* See hf_config.h. Gemma 3 from 4B on is published so: the text part under "text_config", with only
 * what differs from the defaults of its code. */
#include "common/model/hf_config.h"

#include <string.h>

/* Of transformers' Gemma3TextConfig; what the reader of gemma3_text has defaults for is not here. */
static const struct {
    const char *key;
    json_int_t value;
} gemma3_defaults[] = {
    {"vocab_size", 262208},       {"hidden_size", 2304},        {"intermediate_size", 9216},
    {"num_hidden_layers", 26},    {"num_attention_heads", 8},   {"num_key_value_heads", 4},
    {"head_dim", 256},            {"max_position_embeddings", 131072}, {"bos_token_id", 2},
};
static const double gemma3_norm_eps = 1e-6;

static bool is_null(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value == NULL || json_is_null(value);
}

static void set_defaults(json_t *config)
{
    for (size_t i = 0; i < sizeof gemma3_defaults / sizeof *gemma3_defaults; i++)
        if (is_null(config, gemma3_defaults[i].key))
            CHECK(json_object_set_new(config, gemma3_defaults[i].key,
                                      json_integer(gemma3_defaults[i].value)) == 0);
    if (is_null(config, "rms_norm_eps"))
        CHECK(json_object_set_new(config, "rms_norm_eps", json_real(gemma3_norm_eps)) == 0);
}

/* The whole model's word counts where the text part has one too: the ids that end a text, and how
 * the weights are stored. */
static bool is_of_whole(const char *key)
{
    static const char *const keys[] = {"eos_token_id", "bos_token_id", "pad_token_id",
                                       "quantization_config", "tie_word_embeddings"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

static bool is_of_other_part(const char *key)
{
    return strcmp(key, "text_config") == 0 || strcmp(key, "vision_config") == 0 ||
           strcmp(key, "model_type") == 0 || strcmp(key, "architectures") == 0;
}

status_t hf_config_flatten(const char *where, json_t **config, bool *nested_out)
{
    const char *type = NULL, *text_type = "gemma3_text";
    const json_t *text;
    *nested_out = false;
    TRY(json_may_text(*config, where, "model_type", &type, NULL));
    if (type == NULL || strcmp(type, "gemma3") != 0)
        return STATUS_OK;
    TRY(json_get_object(*config, where, "text_config", &text));
    TRY(json_may_text(text, where, "model_type", &text_type, NULL));
    if (strcmp(text_type, "gemma3_text") != 0)
        return fail(STATUS_UNSUPPORTED, "%s: text_config: model_type \"%.32s\"; gemma3_text is what "
                    "a gemma3 has", where, text_type);
    json_t *flat = json_copy((json_t *)(uintptr_t)text);
    CHECK(flat != NULL);
    const char *key;
    json_t *value;
    json_object_foreach(*config, key, value)
        if (!is_of_other_part(key) && !json_is_null(value) &&
            (is_null(flat, key) || is_of_whole(key)))
            CHECK(json_object_set(flat, key, value) == 0);
    CHECK(json_object_set_new(flat, "model_type", json_string("gemma3_text")) == 0);
    set_defaults(flat);
    json_decref(*config);
    *config = flat;
    *nested_out = true;
    return STATUS_OK;
}

static const char *after(const char *name, const char *prefix)
{
    size_t n = strlen(prefix);
    return strncmp(name, prefix, n) == 0 ? name + n : NULL;
}

const char *hf_config_text_name(arena_t *arena, const char *name)
{
    static const char *const others[] = {"vision_tower.", "multi_modal_projector.",
                                         "model.vision_tower.", "model.multi_modal_projector."};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (after(name, others[i]) != NULL)
            return NULL;
    const char *rest = after(name, "language_model.");
    if (rest != NULL)
        return rest; /* as published: "language_model.model.layers…" */
    rest = after(name, "model.language_model.");
    if (rest == NULL)
        return name;
    /* As newer versions write it: "model.language_model.layers…". */
    size_t n = strlen("model.") + strlen(rest) + 1;
    char *made = ARENA_NEW_ARRAY(arena, char, n);
    memcpy(made, "model.", 6);
    memcpy(made + 6, rest, n - 6);
    return made;
}
