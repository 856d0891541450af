/* The real model as a Hugging Face directory: its GGUF written out as F32 rows in the order of the
 * original checkpoint (halves turn, so rows of q and k change places), with a config.json. It has to
 * give the recorded log-probability of 512 tokens and the recorded text, by other names, other rope
 * pairs and another reader than the GGUF. Skipped, loudly, when the model is not on this machine. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/model.h"
#include "eval_run.h"
#include "worker/engine/safetensors_write.h"

enum { N_PROMPTS = 8, N_GREEDY = 64, TENSORS_MAX = 512 };

typedef struct {
    const model_tensor_t *tensor;
    uint32_t number;  /* in the file written */
    uint32_t n_heads; /* whose rows change places; 0: none */
} copied_t;

static const struct {
    model_role_t role;
    const char *name;
} layer_names[] = {
    {MODEL_ATTN_NORM, "input_layernorm"},         {MODEL_FFN_NORM, "post_attention_layernorm"},
    {MODEL_ATTN_Q, "self_attn.q_proj"},           {MODEL_ATTN_K, "self_attn.k_proj"},
    {MODEL_ATTN_V, "self_attn.v_proj"},           {MODEL_ATTN_OUTPUT, "self_attn.o_proj"},
    {MODEL_FFN_GATE, "mlp.gate_proj"},            {MODEL_FFN_UP, "mlp.up_proj"},
    {MODEL_FFN_DOWN, "mlp.down_proj"},
};
enum { N_LAYER_NAMES = sizeof layer_names / sizeof *layer_names };

static uint32_t add(safetensors_t *file, const char *name, const model_tensor_t *tensor)
{
    uint64_t dims[2] = {tensor->rows, tensor->columns};
    bool vector = tensor->rows == 1;
    return safetensors_add(file, name, SAFETENSORS_F32, vector ? 1 : 2, vector ? dims + 1 : dims);
}

static void write_tensor(safetensors_t *file, const copied_t *copied)
{
    const model_tensor_t *tensor = copied->tensor;
    uint64_t dim = copied->n_heads > 0 ? tensor->rows / copied->n_heads : 0;
    float *row = MEM_NEW_ARRAY(float, tensor->columns);
    for (uint64_t r = 0; r < tensor->rows; r++) {
        uint64_t in_head = dim > 0 ? r % dim : 0, to = r;
        if (dim > 0) /* the GGUF's rows 2i and 2i + 1 are rows i and i + dim/2 */
            to = r - in_head + in_head / 2 + in_head % 2 * (dim / 2);
        qtype_dequantize_row(tensor->type, tensor->data + r * tensor->row_bytes, tensor->columns,
                             row);
        assert_int_equal(safetensors_put(file, copied->number, to * tensor->columns, row,
                                         tensor->columns),
                         STATUS_OK);
    }
    free(row);
}

static void write_config(const model_config_t *config, const char *dir)
{
    char *path = mem_format("%s/config.json", dir);
    json_t *object = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:b}", "model_type", "llama",
        "hidden_size", (int)config->hidden, "intermediate_size", (int)config->ffn,
        "num_hidden_layers", (int)config->n_layers, "num_attention_heads", (int)config->n_heads,
        "num_key_value_heads", (int)config->n_kv_heads, "vocab_size", (int)config->vocab,
        "max_position_embeddings", (int)config->context_train, "rms_norm_eps",
        (double)config->norm_eps, "rope_theta", (double)config->ropes[0].base, "hidden_act", "silu",
        "tie_word_embeddings", config->tied_embeddings);
    assert_non_null(object);
    assert_int_equal(json_dump_file(object, path, 0), 0);
    json_decref(object);
    free(path);
}

static void write_directory(const char *gguf, const char *dir)
{
    copied_t copied[TENSORS_MAX];
    uint32_t n = 0;
    model_t *model;
    assert_int_equal(model_open(gguf, &model), STATUS_OK);
    const model_config_t *config = model_config(model);
    safetensors_t *file = safetensors_new();
    assert_true(config->tied_embeddings && config->n_layers * N_LAYER_NAMES + 2 <= TENSORS_MAX);
    copied[n] = (copied_t){.tensor = model_tensor(model, MODEL_TOKEN_EMBD, 0)};
    copied[n].number = add(file, "model.embed_tokens.weight", copied[n].tensor);
    n++;
    copied[n] = (copied_t){.tensor = model_tensor(model, MODEL_OUTPUT_NORM, 0)};
    copied[n].number = add(file, "model.norm.weight", copied[n].tensor);
    n++;
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        for (size_t i = 0; i < N_LAYER_NAMES; i++) {
            model_role_t role = layer_names[i].role;
            char *name = mem_format("model.layers.%u.%s.weight", layer, layer_names[i].name);
            copied[n].tensor = model_tensor(model, role, layer);
            copied[n].number = add(file, name, copied[n].tensor);
            copied[n++].n_heads = role == MODEL_ATTN_Q   ? config->n_heads
                                  : role == MODEL_ATTN_K ? config->n_kv_heads
                                                         : 0;
            free(name);
        }
    char *path = mem_format("%s/model.safetensors", dir);
    assert_int_equal(safetensors_create(file, path), STATUS_OK);
    for (uint32_t i = 0; i < n; i++)
        write_tensor(file, &copied[i]);
    assert_int_equal(safetensors_finish(file), STATUS_OK);
    write_config(config, dir);
    free(path);
    model_close(model);
}

static void remove_directory(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < 2; i++) {
        char *path = mem_format("%s/%s", dir, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(dir);
}

/* What quantizing at load costs, against the recorded sum of the unquantized weights. No other
 * implementation recorded these; the bounds say that 8 bits cost next to nothing and that 4 bits
 * and e4m3 leave a language model: half a percent, and a fifth, of the log-probability. */
static void check_quantized(const char *dir, const json_t *ppl)
{
    static const struct {
        const char *type;
        double cost_max; /* of the sum's size */
    } cases[] = {{"q8", 0.005}, {"fp8", 0.05}, {"q4", 0.2}};
    double wanted = json_number_value(json_object_get(ppl, "sum_logprob_fp32"));
    json_t *ids = json_array();
    json_array_append(ids, json_object_get(ppl, "input_ids"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        eval_args_t args = {.model = dir, .ids = ids, .f32 = true, .quantize = cases[i].type};
        eval_result_t result;
        eval_run(&args, &result);
        double found = result.prompts[0].sum_logprob;
        print_message("512 tokens, --quantize %s: %.3f; unquantized %.3f\n", cases[i].type, found,
                      wanted);
        assert_true(found != wanted && wanted - found <= cases[i].cost_max * -wanted);
        eval_release(&result);
    }
    json_decref(ids);
}

static void test_the_directory_gives_the_recorded_sum_and_text(void **state)
{
    (void)state;
    char *gguf = eval_real_model(), *path = eval_golden("smollm2-135m-q4_1/golden.json");
    const char *base = getenv("TMPDIR");
    if (!gguf)
        skip();
    json_t *golden = json_load_file(path, 0, NULL), *ids = json_array();
    const json_t *prompts = json_object_get(golden, "prompts");
    const json_t *ppl = json_object_get(golden, "ppl");
    for (size_t i = 0; i < N_PROMPTS; i++)
        json_array_append(ids, json_object_get(json_array_get(prompts, i), "input_ids"));
    json_array_append(ids, json_object_get(ppl, "input_ids"));
    char *dir = mem_format("%s/shoal-smollm2-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(dir));
    write_directory(gguf, dir);
    eval_result_t result;
    eval_args_t args = {.model = dir, .ids = ids, .greedy = N_GREEDY, .f32 = true, .batch = 16};
    eval_run(&args, &result);
    check_quantized(dir, ppl);
    remove_directory(dir);
    for (uint32_t i = 0; i < N_PROMPTS; i++) {
        const json_t *prompt = json_array_get(prompts, i);
        const json_t *greedy = json_object_get(prompt, "greedy_ids");
        json_int_t safe = json_integer_value(json_object_get(prompt, "safe_prefix_gap_ge_0.05"));
        assert_true(safe > 0 && safe <= N_GREEDY);
        for (size_t k = 0; k < (size_t)safe; k++)
            assert_int_equal(result.prompts[i].greedy[k],
                             json_integer_value(json_array_get(greedy, k)));
    }
    double wanted = json_number_value(json_object_get(ppl, "sum_logprob_fp32"));
    double found = result.prompts[N_PROMPTS].sum_logprob;
    print_message("512 tokens: %.3f; recorded %.3f\n", found, wanted);
    assert_true(fabs(found - wanted) <= 0.05);
    eval_release(&result);
    json_decref(ids);
    json_decref(golden);
    free(dir);
    free(path);
    free(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_directory_gives_the_recorded_sum_and_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
