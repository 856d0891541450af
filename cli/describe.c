/* See describe.h. */
#include "cli/describe.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli/output.h"

static const char *scaled(double value, double base, const char *const *units, char *text)
{
    size_t i = 0;
    while (value >= base && units[i + 1] != NULL) {
        value /= base;
        i++;
    }
    snprintf(text, DESCRIBE_TEXT_SIZE, i == 0 ? "%.0f%s" : "%.4g%s", value, units[i]);
    return text;
}

const char *describe_count(uint64_t n, char text[DESCRIBE_TEXT_SIZE])
{
    static const char *const units[] = {"", " k", " M", " B", " T", NULL};
    return scaled((double)n, 1000, units, text);
}

const char *describe_bytes(uint64_t n, char text[DESCRIBE_TEXT_SIZE])
{
    static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB", NULL};
    return scaled((double)n, 1024, units, text);
}

static void set_integer(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static const char *score_name(model_score_t score)
{
    switch (score) {
    case MODEL_SCORE_SOFTMAX: return "softmax";
    case MODEL_SCORE_SOFTMAX_CHOSEN: return "softmax of the chosen";
    case MODEL_SCORE_SIGMOID: return "sigmoid";
    case MODEL_SCORE_SQRT_SOFTPLUS: return "sqrt softplus";
    }
    return "unknown";
}

static void describe_experts(json_t *report, const model_config_t *config)
{
    const model_experts_t *experts = &config->experts;
    uint64_t n_layers = 0;
    if (experts->n == 0)
        return;
    for (uint32_t i = 0; i < config->n_layers; i++)
        n_layers += config->layers[i].ffn == MODEL_FFN_EXPERTS;
    json_t *object = json_object();
    set_integer(object, "n", experts->n);
    set_integer(object, "used", experts->n_used);
    set_integer(object, "ffn", experts->ffn);
    set_integer(object, "shared_ffn", experts->shared_ffn);
    set_integer(object, "layers", n_layers);
    set_integer(object, "groups", experts->n_groups);
    json_object_set_new(object, "score", json_string(score_name(experts->score)));
    json_object_set_new(report, "experts", object);
}

void describe_config(json_t *report, const model_config_t *config)
{
    json_object_set_new(report, "architecture", json_string(config->architecture));
    set_integer(report, "layers", config->n_layers);
    set_integer(report, "hidden", config->hidden);
    set_integer(report, "heads", config->n_heads);
    set_integer(report, "kv_heads", config->n_kv_heads);
    set_integer(report, "head_dim", config->head_dim);
    if (config->latent.kv_rank > 0) {
        set_integer(report, "kv_rank", config->latent.kv_rank);
        set_integer(report, "rope_dim", config->latent.rope_dim);
        set_integer(report, "value_dim", config->latent.value_dim);
    }
    if (config->ffn > 0)
        set_integer(report, "ffn", config->ffn);
    describe_experts(report, config);
    set_integer(report, "vocab", config->vocab);
    set_integer(report, "context", config->context_train);
    json_object_set_new(report, "tied_embeddings", json_boolean(config->tied_embeddings));
}

static json_t *types_of(const footprint_t *footprint)
{
    json_t *types = json_array();
    for (uint32_t i = 0; i < footprint->n_types; i++) {
        const footprint_type_t *type = &footprint->types[i];
        char bits[DESCRIBE_TEXT_SIZE];
        snprintf(bits, sizeof bits, "%.2f", 8.0 * (double)type->bytes / (double)type->values);
        json_array_append_new(types, json_pack("{s:s,s:I,s:I,s:I,s:s}", "type", type->name,
                                               "tensors", (json_int_t)type->n_tensors, "values",
                                               (json_int_t)type->values, "bytes",
                                               (json_int_t)type->bytes, "bits_per_value", bits));
    }
    return types;
}

static json_t *caches_of(const footprint_t *footprint)
{
    json_t *caches = json_array();
    for (uint32_t i = 0; i < footprint->n_caches; i++) {
        const footprint_cache_t *cache = &footprint->caches[i];
        json_t *row = json_pack("{s:s,s:I,s:I}", "cache", cache->kind, "layers",
                                (json_int_t)cache->n_layers, "bytes_per_token_and_layer",
                                (json_int_t)cache->bytes_per_token);
        if (cache->window > 0)
            set_integer(row, "window", cache->window);
        if (cache->rate > 0)
            set_integer(row, "positions_per_entry", cache->rate);
        if (cache->indexed)
            json_object_set_new(row, "indexed", json_true());
        json_array_append_new(caches, row);
    }
    return caches;
}

void describe_footprint(json_t *report, const footprint_t *footprint)
{
    set_integer(report, "parameters", footprint->parameters);
    if (footprint->active_parameters > 0)
        set_integer(report, "active_parameters", footprint->active_parameters);
    set_integer(report, "weight_bytes", footprint->bytes);
    if (footprint->kv_bytes_per_token > 0)
        set_integer(report, "kv_bytes_per_token", footprint->kv_bytes_per_token);
    if (footprint->kv_window > 0)
        set_integer(report, "kv_window", footprint->kv_window);
    if (footprint->kv_code_bytes_per_token > 0)
        set_integer(report, "kv_code_bytes_per_token", footprint->kv_code_bytes_per_token);
    json_object_set_new(report, "types", types_of(footprint));
    if (footprint->n_caches > 0)
        json_object_set_new(report, "caches", caches_of(footprint));
}

/* --- lines --- */

void describe_line(const char *name, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("%-18s ", name);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    vprintf(format, args);
#pragma GCC diagnostic pop
    va_end(args);
    putchar('\n');
}

static long long integer(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static void print_experts(const json_t *experts)
{
    if (experts == NULL)
        return;
    char shared[64] = "";
    if (integer(experts, "shared_ffn") > 0)
        snprintf(shared, sizeof shared, ", a shared one of %lld", integer(experts, "shared_ffn"));
    describe_line("experts", "%lld, %lld a token, ffn %lld%s, in %lld layers, chosen by %s",
                  integer(experts, "n"), integer(experts, "used"), integer(experts, "ffn"), shared,
                  integer(experts, "layers"),
                  json_string_value(json_object_get(experts, "score")));
}

static void print_config(const json_t *report)
{
    if (json_object_get(report, "layers") == NULL)
        return;
    describe_line("layers", "%lld of hidden size %lld", integer(report, "layers"),
                  integer(report, "hidden"));
    if (json_object_get(report, "kv_rank") != NULL)
        describe_line("heads", "%lld of %lld (latent: kv rank %lld, rope %lld, values %lld)",
                      integer(report, "heads"), integer(report, "head_dim"),
                      integer(report, "kv_rank"), integer(report, "rope_dim"),
                      integer(report, "value_dim"));
    else
        describe_line("heads", "%lld of %lld, %lld for keys and values", integer(report, "heads"),
                      integer(report, "head_dim"), integer(report, "kv_heads"));
    if (json_object_get(report, "ffn") != NULL)
        describe_line("ffn", "%lld", integer(report, "ffn"));
    print_experts(json_object_get(report, "experts"));
    describe_line("vocabulary", "%lld%s", integer(report, "vocab"),
                  json_is_true(json_object_get(report, "tied_embeddings"))
                      ? ", head tied to the embedding" : "");
    describe_line("context", "%lld", integer(report, "context"));
}

void describe_print(const json_t *report)
{
    char text[DESCRIBE_TEXT_SIZE], active[DESCRIBE_TEXT_SIZE];
    const char *architecture = json_string_value(json_object_get(report, "architecture"));
    describe_line("architecture", "%s", architecture != NULL ? architecture : "unknown");
    if (json_object_get(report, "active_parameters") != NULL)
        describe_line("parameters", "%s, %s a token",
                      describe_count((uint64_t)integer(report, "parameters"), text),
                      describe_count((uint64_t)integer(report, "active_parameters"), active));
    else if (json_object_get(report, "parameters") != NULL)
        describe_line("parameters", "%s",
                      describe_count((uint64_t)integer(report, "parameters"), text));
    print_config(report);
    if (json_object_get(report, "weight_bytes") != NULL)
        describe_line("weights", "%s",
                      describe_bytes((uint64_t)integer(report, "weight_bytes"), text));
    if (json_object_get(report, "kv_bytes_per_token") != NULL)
        describe_line("KV cache", "%lld bytes a token in BF16%s",
                      integer(report, "kv_bytes_per_token"),
                      json_object_get(report, "kv_window") != NULL
                          ? "; what lies behind every layer's window is given back" : "");
    if (json_object_get(report, "kv_code_bytes_per_token") != NULL)
        describe_line("", "%lld with --kv int8 or fp8",
                      integer(report, "kv_code_bytes_per_token"));
}
