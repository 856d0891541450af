/* Any bytes as a model. What opens is then read as the loader and the planner would read it: every
 * key, every row of every tensor. The mutator starts from right files now and then, because random
 * bytes do not get past the magic. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/model.h"
#include "common/model/plan.h"
#include "tests/unit/model/gguf_draft.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t n_max);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t n_max, unsigned seed)
{
    if (n < 24 || seed % 64 == 0) {
        buffer_t bytes = {0};
        draft_t *draft = draft_llama();
        draft_write(draft, &bytes);
        n = bytes.size < n_max ? bytes.size : n_max;
        memcpy(data, bytes.data, n);
        buffer_release(&bytes);
        draft_free(draft);
    }
    /* Two of three changes hit the structure, which ends long before the weights do. */
    size_t head = n < 1600 ? n : 1600;
    if (seed % 3 != 0 && head < n) {
        LLVMFuzzerMutate(data, head, head);
        return n;
    }
    return LLVMFuzzerMutate(data, n, n_max);
}

static void read_keys(const gguf_t *gguf)
{
    static const char *const keys[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"};
    volatile uint64_t sum = 0;
    for (size_t k = 0; k < 2; k++) {
        const gguf_value_t *value = gguf_find(gguf, keys[k]);
        if (value == NULL || value->kind != GGUF_ARRAY)
            continue;
        for (uint64_t i = 0; i < value->count; i++) {
            if (value->element == GGUF_TEXT) {
                gguf_text_t text = gguf_array_text(value, i);
                for (size_t j = 0; j < text.size; j++)
                    sum = sum + (uint8_t)text.data[j];
            } else if (value->element == GGUF_I32) {
                sum = sum + (uint64_t)gguf_array_integer(value, i);
            }
        }
    }
}

static void read_tensors(const model_t *model)
{
    const model_config_t *config = model_config(model);
    for (uint32_t layer = 0; layer < config->n_layers; layer++)
        for (int role = 0; role < MODEL_N_ROLES; role++) {
            const model_tensor_t *tensor = model_tensor(model, (model_role_t)role, layer);
            if (tensor == NULL)
                continue;
            float *row = MEM_NEW_ARRAY(float, tensor->columns);
            qtype_dequantize_row(tensor->type, tensor->data, tensor->columns, row);
            qtype_dequantize_row(tensor->type,
                                 tensor->data + (tensor->rows - 1) * tensor->row_bytes,
                                 tensor->columns, row);
            free(row);
        }
}

static void plan(const model_t *model)
{
    plan_sizes_t sizes;
    plan_sizes(model, &sizes);
    plan_shape_t shape = {.tp = 3, .stages = 1, .context_max = 1};
    uint64_t memory[3] = {1ull << 40, 1ull << 40, 1ull << 40}, tokens;
    if (plan_fit(&sizes, &shape, memory, &tokens) == STATUS_OK)
        CHECK(tokens >= plan_kv_tokens_needed(&sizes.config, &shape));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    /* A copy of its own length, so that a read past the end is seen. */
    uint8_t *bytes = mem_new(n, 1);
    memcpy(bytes, data, n);
    gguf_t *gguf;
    if (gguf_open_bytes("fuzz", bytes, n, &gguf) == STATUS_OK) {
        read_keys(gguf);
        gguf_close(gguf);
        model_t *model;
        if (model_open_bytes("fuzz", bytes, n, &model) == STATUS_OK) {
            read_tensors(model);
            plan(model);
            model_close(model);
        }
    }
    free(bytes);
    return 0;
}
