/* Families whose GGUF files were not recorded: a directory, whose numbers are checked against the
 * recorded ones elsewhere, is written out as the GGUF that llama.cpp's converter would make of it
 * (its names and keys; norms plus one, gate and up apart), and has to give the same bytes. What that
 * format cannot say is set to what it takes for granted first. That the names are the converter's is
 * known from its source, not shown here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/arch.h"
#include "eval_run.h"
#include "tests/unit/model/gguf_draft.h"

enum { N_PROMPTS = 4, N_GREEDY = 32 };

/* A directory, and the member that a GGUF has no key for with the value that it stands for. */
typedef struct {
    const char *directory, *member;
    double value;
} twin_t;

static const twin_t twins[] = {
    {"gemma2", "query_pre_attn_scalar", 24},
    {"gemma3-text", "sliding_window_pattern", 6},
    {"gpt-oss-bf16", "swiglu_limit", 7},
    {"qwen2-moe", "norm_topk_prob", 0},
};

static void set_u32(draft_t *draft, const char *arch, const char *name, uint32_t value)
{
    char *key = mem_format("%s.%s", arch, name);
    draft_set_u32(draft, key, value);
    free(key);
}

static void set_f32(draft_t *draft, const char *arch, const char *name, float value)
{
    char *key = mem_format("%s.%s", arch, name);
    draft_set_f32(draft, key, value);
    free(key);
}

static void set_text(draft_t *draft, const char *arch, const char *name, const char *value)
{
    char *key = mem_format("%s.%s", arch, name);
    draft_set_text(draft, key, value);
    free(key);
}

static void write_scaling(draft_t *draft, const char *arch, const char *directory)
{
    bool linear = strcmp(directory, "gemma3-text") == 0;
    if (linear || strcmp(directory, "gpt-oss-bf16") == 0) {
        set_text(draft, arch, "rope.scaling.type", linear ? "linear" : "yarn");
        set_f32(draft, arch, "rope.scaling.factor", linear ? 8 : 32);
    }
    if (strcmp(directory, "gpt-oss-bf16") == 0)
        set_u32(draft, arch, "rope.scaling.original_context_length", 64);
}

static void write_keys(draft_t *draft, const model_config_t *config, const char *directory)
{
    const char *arch = config->architecture;
    const model_experts_t *experts = &config->experts;
    draft_set_text(draft, "general.architecture", arch);
    set_u32(draft, arch, "block_count", config->n_layers);
    set_u32(draft, arch, "embedding_length", config->hidden);
    set_u32(draft, arch, "feed_forward_length", config->ffn);
    set_u32(draft, arch, "context_length", config->context_train);
    set_u32(draft, arch, "vocab_size", config->vocab);
    set_u32(draft, arch, "attention.head_count", config->n_heads);
    set_u32(draft, arch, "attention.head_count_kv", config->n_kv_heads);
    set_u32(draft, arch, "attention.key_length", config->head_dim);
    set_u32(draft, arch, "attention.value_length", config->head_dim);
    set_f32(draft, arch, "attention.layer_norm_rms_epsilon", config->norm_eps);
    set_f32(draft, arch, "rope.freq_base", config->ropes[0].base);
    for (uint32_t i = 0; i < config->n_layers; i++)
        if (config->layers[i].window > 0)
            set_u32(draft, arch, "attention.sliding_window", config->layers[i].window);
    if (config->attention_softcap > 0)
        set_f32(draft, arch, "attn_logit_softcapping", config->attention_softcap);
    if (config->logit_softcap > 0)
        set_f32(draft, arch, "final_logit_softcapping", config->logit_softcap);
    write_scaling(draft, arch, directory);
    if (experts->n == 0)
        return;
    set_u32(draft, arch, "expert_count", experts->n);
    set_u32(draft, arch, "expert_used_count", experts->n_used);
    set_u32(draft, arch, "expert_feed_forward_length", experts->ffn);
    if (experts->shared_ffn > 0)
        set_u32(draft, arch, "expert_shared_feed_forward_length", experts->shared_ffn);
}

/* Every other row of gate_up, from the first or the second. */
static bool read_interleaved(const model_t *model, model_role_t role, uint32_t layer, uint32_t e,
                             float *out)
{
    bool bias = role == MODEL_EXPERT_GATE_BIAS || role == MODEL_EXPERT_UP_BIAS;
    bool up = role == MODEL_EXPERT_UP || role == MODEL_EXPERT_UP_BIAS;
    model_tensor_t both;
    if (role == MODEL_EXPERT_DOWN || role == MODEL_EXPERT_DOWN_BIAS ||
        !model_expert(model, bias ? MODEL_EXPERT_GATE_UP_BIAS : MODEL_EXPERT_GATE_UP, layer, e,
                      &both))
        return false;
    uint64_t n = both.rows * both.columns, unit = bias ? 1 : both.columns;
    float *values = MEM_NEW_ARRAY(float, n);
    assert_int_equal(model_read_f32(&both, values), STATUS_OK);
    for (uint64_t i = 0; i < n / unit / 2; i++)
        memcpy(out + i * unit, values + (2 * i + (up ? 1 : 0)) * unit, unit * sizeof *out);
    free(values);
    return true;
}

/* All values of a tensor of the GGUF, from the directory's model. */
static void read_values(const model_t *model, const arch_tensor_t *wanted, uint32_t layer,
                        float *out, uint64_t n)
{
    const model_config_t *config = model_config(model);
    const model_tensor_t *one = model_tensor(model, wanted->role, layer);
    if (wanted->role < MODEL_EXPERT_GATE) {
        assert_int_equal(model_read_f32(one, out), STATUS_OK);
        for (uint64_t i = 0; config->norm_plus_one && wanted->vector && i < n; i++)
            out[i] += 1;
        return;
    }
    for (uint32_t e = 0; e < config->experts.n; e++) {
        float *at = out + e * (n / config->experts.n);
        model_tensor_t expert;
        if (read_interleaved(model, wanted->role, layer, e, at))
            continue;
        assert_true(model_expert(model, wanted->role, layer, e, &expert));
        assert_int_equal(model_read_f32(&expert, at), STATUS_OK);
    }
}

/* False when the file has no such tensor. */
static bool name_of(const model_t *model, const arch_tensor_t *wanted, uint32_t layer, char *out,
                    size_t size)
{
    const model_config_t *config = model_config(model);
    bool interleaved = config->experts.interleaved && wanted->role >= MODEL_EXPERT_GATE;
    if (wanted->gguf == NULL || (wanted->hf == NULL && !interleaved) ||
        !arch_layer_has(config, layer, wanted->when) ||
        (wanted->optional && model_tensor(model, wanted->role, layer) == NULL) ||
        (wanted->role == MODEL_OUTPUT && config->tied_embeddings))
        return false;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(out, size, wanted->gguf, layer);
#pragma GCC diagnostic pop
    return true;
}

static void add_tensor(draft_t *draft, const model_t *model, const arch_tensor_t *wanted,
                       uint32_t layer)
{
    const model_config_t *config = model_config(model);
    char name[96];
    if (!name_of(model, wanted, layer, name, sizeof name))
        return;
    draft_tensor_t *tensor =
        draft_add_tensor(draft, name, QTYPE_F32, arch_side(config, wanted->columns),
                         arch_side(config, wanted->rows));
    if (wanted->planes != ARCH_ONE) {
        tensor->n_dims = 3;
        tensor->dims[2] = arch_side(config, wanted->planes);
    }
}

/* The draft's data has no meaning; this puts the values in their places. */
static void fill_tensor(const gguf_t *gguf, uint8_t *bytes, const model_t *model,
                        const arch_tensor_t *wanted, uint32_t layer)
{
    char name[96];
    if (!name_of(model, wanted, layer, name, sizeof name))
        return;
    const gguf_tensor_t *tensor = gguf_tensor(gguf, name);
    assert_non_null(tensor);
    float *values = MEM_NEW_ARRAY(float, tensor->bytes / sizeof(float));
    read_values(model, wanted, layer, values, tensor->bytes / sizeof(float));
    memcpy(bytes + (tensor->data - bytes), values, tensor->bytes);
    free(values);
}

/* Both passes over all tensors: with `gguf` NULL they are added, else filled. */
static void walk(draft_t *draft, const gguf_t *gguf, uint8_t *bytes, const model_t *model)
{
    const model_config_t *config = model_config(model);
    const arch_t *arch = arch_find_gguf(
        (gguf_text_t){config->architecture, strlen(config->architecture)});
    assert_non_null(arch);
    for (size_t g = 0; g < ARCH_GROUPS_MAX && arch->groups[g]; g++)
        for (size_t i = 0; i < arch->groups[g]->n; i++) {
            const arch_tensor_t *wanted = &arch->groups[g]->tensors[i];
            uint32_t n_layers = wanted->when == ARCH_ONCE ? 1 : config->n_layers;
            for (uint32_t layer = 0; layer < n_layers; layer++) {
                if (gguf == NULL)
                    add_tensor(draft, model, wanted, layer);
                else
                    fill_tensor(gguf, bytes, model, wanted, layer);
            }
        }
}

static void write_twin(const twin_t *twin, const char *from, const char *path)
{
    model_t *model;
    gguf_t *gguf;
    draft_t *draft = draft_new();
    buffer_t bytes = {0};
    assert_int_equal(model_open(from, &model), STATUS_OK);
    write_keys(draft, model_config(model), twin->directory);
    walk(draft, NULL, NULL, model);
    draft_write(draft, &bytes);
    assert_int_equal(gguf_open_bytes("twin", bytes.data, bytes.size, &gguf), STATUS_OK);
    walk(draft, gguf, bytes.data, model);
    gguf_close(gguf);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes.data, 1, bytes.size, file), bytes.size);
    assert_int_equal(fclose(file), 0);
    buffer_release(&bytes);
    draft_free(draft);
    model_close(model);
}

static char *part_of(const char *dir, const char *name)
{
    return mem_format("%s/%s", dir, name);
}

static void copy_directory(const twin_t *twin, const char *dir)
{
    char *from = eval_golden(twin->directory), *config = part_of(from, "config.json");
    char *weights = part_of(from, "model.safetensors"), *to = part_of(dir, "config.json");
    char buffer[4096];
    json_t *object = json_load_file(config, 0, NULL);
    assert_non_null(json_object_get(object, twin->member));
    if (!json_is_boolean(json_object_get(object, twin->member)))
        json_object_set_new(object, twin->member,
                            strcmp(twin->member, "sliding_window_pattern") == 0
                                ? json_integer((json_int_t)twin->value)
                                : json_real(twin->value));
    assert_int_equal(json_dump_file(object, to, 0), 0);
    json_decref(object);
    free(to);
    to = part_of(dir, "model.safetensors");
    FILE *in = fopen(weights, "rb"), *out = fopen(to, "wb");
    assert_non_null(in);
    assert_non_null(out);
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, in)) > 0;)
        assert_int_equal(fwrite(buffer, 1, n, out), n);
    fclose(in);
    assert_int_equal(fclose(out), 0);
    free(from);
    free(config);
    free(weights);
    free(to);
}

static void remove_directory(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors", "model.gguf"};
    for (size_t i = 0; i < 3; i++) {
        char *path = part_of(dir, names[i]);
        unlink(path);
        free(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

static void check_twin(void **state)
{
    const twin_t *twin = *state;
    char dir[] = "/tmp/shoal-twin-XXXXXX";
    assert_non_null(mkdtemp(dir));
    copy_directory(twin, dir);
    char *gguf = part_of(dir, "model.gguf"), *path = eval_golden(twin->directory);
    char *golden_path = part_of(path, "golden.json");
    json_t *golden = json_load_file(golden_path, 0, NULL), *ids = json_array();
    const json_t *prompts = json_object_get(golden, "prompts");
    for (size_t i = 0; i < N_PROMPTS; i++)
        json_array_append(ids, json_object_get(json_array_get(prompts, i), "input_ids"));
    eval_result_t one, other;
    eval_args_t args = {.model = dir, .ids = ids, .threads = 1, .greedy = N_GREEDY, .f32 = true};
    eval_run(&args, &one);
    write_twin(twin, dir, gguf);
    args.model = gguf;
    eval_run(&args, &other);
    assert_true(eval_hash_rows(&one) == eval_hash_rows(&other));
    assert_true(eval_hash(&one) == eval_hash(&other));
    eval_release(&one);
    eval_release(&other);
    remove_directory(dir);
    json_decref(ids);
    json_decref(golden);
    free(gguf);
    free(path);
    free(golden_path);
}

int main(void)
{
    enum { N = sizeof twins / sizeof *twins };
    struct CMUnitTest tests[N];
    for (size_t i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){.name = twins[i].directory,
                                       .test_func = check_twin,
                                       .initial_state = (void *)(uintptr_t)&twins[i]};
    return _cmocka_run_group_tests("twins", tests, N, NULL, NULL);
}
