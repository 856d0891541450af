/* An embedding of packed 4-bit values whose rows end inside a block gives the bytes of the same
 * values stored as halves: it is looked up as it is stored, and takes that much memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "tests/unit/engine/eval_run.h"
#include "tests/unit/model/safetensors_draft.h"

enum { HIDDEN = 96, FFN = 64, KV = 48, VOCAB = 320 };

static const char CONFIG[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":96,"
    "\"intermediate_size\":64,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
    "\"num_key_value_heads\":1,\"vocab_size\":320,\"max_position_embeddings\":64,"
    "\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"tie_word_embeddings\":false,"
    "\"torch_dtype\":\"float16\"%s}";
static const char PACKED[] =
    ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":"
    "\"pack-quantized\",\"config_groups\":{\"g\":{\"weights\":{\"num_bits\":4,"
    "\"strategy\":\"channel\",\"group_size\":null}}}}";

static uint32_t code_at(uint32_t row, uint32_t k)
{
    return (row * 2654435761u + k * 40503u) >> 7 & 15;
}

/* (code - 8) / 16 as a half: exact. */
static uint16_t half_of(uint32_t code)
{
    static const uint16_t halves[] = {0xb800, 0xb700, 0xb600, 0xb500, 0xb400, 0xb200, 0xb000, 0xac00,
                                      0x0000, 0x2c00, 0x3000, 0x3200, 0x3400, 0x3500, 0x3600, 0x3700};
    return halves[code];
}

static void add_matrix(st_draft_t *draft, const char *name, uint32_t rows, uint32_t columns)
{
    float *values = MEM_NEW_ARRAY(float, rows *columns);
    char shape[32], whole[64];
    for (uint32_t i = 0; i < rows * columns; i++)
        values[i] = columns == 1 ? 1.0f : (float)(i * 2654435761u >> 16 & 255) / 640.0f - 0.2f;
    snprintf(shape, sizeof shape, columns == 1 ? "[%u]" : "[%u,%u]", rows, columns);
    snprintf(whole, sizeof whole, "%s.weight", name);
    st_add(draft, whole, "F32", shape, values, (size_t)rows * columns * sizeof *values);
    free(values);
}

static void add_embedding(st_draft_t *draft, bool packed)
{
    static uint32_t words[VOCAB][HIDDEN / 8];
    static uint16_t halves[VOCAB][HIDDEN], scales[VOCAB];
    memset(words, 0, sizeof words);
    for (uint32_t row = 0; row < VOCAB; row++) {
        scales[row] = 0x2c00; /* 1/16 */
        for (uint32_t k = 0; k < HIDDEN; k++) {
            words[row][k / 8] |= code_at(row, k) << k % 8 * 4;
            halves[row][k] = half_of(code_at(row, k));
        }
    }
    if (!packed) {
        st_add(draft, "model.embed_tokens.weight", "F16", "[320,96]", halves, sizeof halves);
        return;
    }
    int64_t shape[2] = {VOCAB, HIDDEN};
    st_add(draft, "model.embed_tokens.weight_packed", "I32", "[320,12]", words, sizeof words);
    st_add(draft, "model.embed_tokens.weight_shape", "I64", "[2]", shape, sizeof shape);
    st_add(draft, "model.embed_tokens.weight_scale", "F16", "[320,1]", scales, sizeof scales);
}

static uint64_t logits(bool packed, const json_t *ids)
{
    st_draft_t draft = {0};
    char *folder = folder_new(), *config = mem_format(CONFIG, packed ? PACKED : "");
    char *tokenizer = eval_golden("qwen2-ct-w4a16/tokenizer.json");
    json_t *words = json_load_file(tokenizer, 0, NULL);
    char *text = json_dumps(words, 0);
#define LAYER "model.layers.0."
    add_embedding(&draft, packed);
    add_matrix(&draft, "model.norm", HIDDEN, 1);
    add_matrix(&draft, "lm_head", VOCAB, HIDDEN);
    add_matrix(&draft, LAYER "input_layernorm", HIDDEN, 1);
    add_matrix(&draft, LAYER "post_attention_layernorm", HIDDEN, 1);
    add_matrix(&draft, LAYER "self_attn.q_proj", HIDDEN, HIDDEN);
    add_matrix(&draft, LAYER "self_attn.k_proj", KV, HIDDEN);
    add_matrix(&draft, LAYER "self_attn.v_proj", KV, HIDDEN);
    add_matrix(&draft, LAYER "self_attn.o_proj", HIDDEN, HIDDEN);
    add_matrix(&draft, LAYER "mlp.gate_proj", FFN, HIDDEN);
    add_matrix(&draft, LAYER "mlp.up_proj", FFN, HIDDEN);
    add_matrix(&draft, LAYER "mlp.down_proj", HIDDEN, FFN);
    folder_write_draft(folder, "model.safetensors", &draft);
    folder_write_text(folder, "config.json", config);
    folder_write_text(folder, "tokenizer.json", text);
    eval_result_t result;
    const eval_args_t args = {.model = folder, .ids = ids, .threads = 1};
    eval_run(&args, &result);
    uint64_t hash = eval_hash_rows(&result);
    eval_release(&result);
    folder_remove(folder);
    json_decref(words);
    free(text);
    free(config);
    free(tokenizer);
    return hash;
}

static void test_a_packed_embedding_gives_the_bytes_of_the_same_halves(void **state)
{
    (void)state;
    json_t *ids = json_pack("[[i,i,i,i],[i,i]]", 3, 319, 200, 7, 0, 318);
    assert_int_equal(logits(true, ids), logits(false, ids));
    json_decref(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_packed_embedding_gives_the_bytes_of_the_same_halves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
