/* See gguf_draft.h. */
#include "tests/unit/model/gguf_draft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/base/qtype.h"
#include "common/base/status.h"

void draft_put_u32(buffer_t *out, uint32_t value)
{
    buffer_append(out, &value, sizeof value);
}

void draft_put_u64(buffer_t *out, uint64_t value)
{
    buffer_append(out, &value, sizeof value);
}

draft_t *draft_new(void)
{
    draft_t *draft = MEM_NEW(draft_t);
    memcpy(draft->magic, "GGUF", 4);
    draft->version = 3;
    draft->alignment = GGUF_ALIGNMENT_DEFAULT;
    draft->n_keys_claimed = draft->n_tensors_claimed = DRAFT_AUTO;
    return draft;
}

void draft_free(draft_t *take_draft)
{
    for (uint32_t i = 0; i < take_draft->n_keys; i++)
        buffer_release(&take_draft->keys[i].payload);
    free(take_draft);
}

draft_key_t *draft_add_key(draft_t *draft, const char *name, uint32_t kind)
{
    CHECK(draft->n_keys < DRAFT_KEYS_MAX);
    draft_key_t *key = &draft->keys[draft->n_keys++];
    *key = (draft_key_t){.kind = kind, .name_size = strlen(name)};
    snprintf(key->name, sizeof key->name, "%s", name);
    return key;
}

static draft_key_t *find_key(draft_t *draft, const char *name)
{
    for (uint32_t i = 0; i < draft->n_keys; i++)
        if (strcmp(draft->keys[i].name, name) == 0)
            return &draft->keys[i];
    return NULL;
}

draft_key_t *draft_key(draft_t *draft, const char *name)
{
    draft_key_t *key = find_key(draft, name);
    CHECK(key != NULL);
    return key;
}

void draft_remove_key(draft_t *draft, const char *name)
{
    draft_key_t *key = draft_key(draft, name);
    buffer_release(&key->payload);
    size_t after = (size_t)(&draft->keys[draft->n_keys] - key - 1);
    memmove(key, key + 1, after * sizeof *key);
    draft->n_keys--;
}

static buffer_t *set(draft_t *draft, const char *name, uint32_t kind)
{
    draft_key_t *key = find_key(draft, name);
    if (key == NULL)
        key = draft_add_key(draft, name, kind);
    key->kind = kind;
    buffer_clear(&key->payload);
    return &key->payload;
}

void draft_set_u32(draft_t *draft, const char *name, uint32_t value)
{
    draft_put_u32(set(draft, name, GGUF_U32), value);
}

void draft_set_i32(draft_t *draft, const char *name, int32_t value)
{
    buffer_append(set(draft, name, GGUF_I32), &value, sizeof value);
}

void draft_set_f32(draft_t *draft, const char *name, float value)
{
    buffer_append(set(draft, name, GGUF_F32), &value, sizeof value);
}

void draft_set_bool(draft_t *draft, const char *name, bool value)
{
    uint8_t byte = value;
    buffer_append(set(draft, name, GGUF_BOOL), &byte, 1);
}

void draft_set_text(draft_t *draft, const char *name, const char *value)
{
    buffer_t *payload = set(draft, name, GGUF_TEXT);
    draft_put_u64(payload, strlen(value));
    buffer_append_text(payload, value);
}

void draft_set_array_head(draft_t *draft, const char *name, uint32_t element, uint64_t n)
{
    buffer_t *payload = set(draft, name, GGUF_ARRAY);
    draft_put_u32(payload, element);
    draft_put_u64(payload, n);
}

void draft_set_texts(draft_t *draft, const char *name, uint64_t n)
{
    draft_set_array_head(draft, name, GGUF_TEXT, n);
    for (uint64_t i = 0; i < n; i++) {
        char text[24];
        int size = snprintf(text, sizeof text, "t%llu", (unsigned long long)i);
        draft_put_u64(&draft_key(draft, name)->payload, (uint64_t)size);
        buffer_append_text(&draft_key(draft, name)->payload, text);
    }
}

void draft_set_i32s(draft_t *draft, const char *name, uint64_t n, int32_t value)
{
    draft_set_array_head(draft, name, GGUF_I32, n);
    for (uint64_t i = 0; i < n; i++)
        buffer_append(&draft_key(draft, name)->payload, &value, sizeof value);
}

draft_tensor_t *draft_add_tensor(draft_t *draft, const char *name, uint32_t type, uint64_t columns,
                                 uint64_t rows)
{
    CHECK(draft->n_tensors < DRAFT_TENSORS_MAX);
    draft_tensor_t *tensor = &draft->tensors[draft->n_tensors++];
    *tensor = (draft_tensor_t){
        .name_size = strlen(name), .n_dims = rows == 1 ? 1 : 2, .dims = {columns, rows},
        .type = type, .offset = DRAFT_AUTO, .bytes = DRAFT_AUTO,
    };
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    return tensor;
}

draft_tensor_t *draft_tensor(draft_t *draft, const char *name)
{
    for (uint32_t i = 0; i < draft->n_tensors; i++)
        if (strcmp(draft->tensors[i].name, name) == 0)
            return &draft->tensors[i];
    CHECK(false && "the tensor exists");
    return NULL;
}

void draft_remove_tensor(draft_t *draft, const char *name)
{
    draft_tensor_t *tensor = draft_tensor(draft, name);
    size_t after = (size_t)(&draft->tensors[draft->n_tensors] - tensor - 1);
    memmove(tensor, tensor + 1, after * sizeof *tensor);
    draft->n_tensors--;
}

static void set_llama_keys(draft_t *draft)
{
    draft_set_text(draft, "general.architecture", "llama");
    draft_set_u32(draft, "llama.block_count", 1);
    draft_set_u32(draft, "llama.context_length", 128);
    draft_set_u32(draft, "llama.embedding_length", 32);
    draft_set_u32(draft, "llama.feed_forward_length", 32);
    draft_set_u32(draft, "llama.attention.head_count", 2);
    draft_set_u32(draft, "llama.attention.head_count_kv", 1);
    draft_set_f32(draft, "llama.rope.freq_base", 10000);
    draft_set_u32(draft, "llama.rope.dimension_count", 16);
    draft_set_f32(draft, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    draft_set_u32(draft, "llama.vocab_size", 8);
    draft_set_text(draft, "tokenizer.ggml.model", "gpt2");
    draft_set_texts(draft, "tokenizer.ggml.tokens", 8);
    draft_set_i32s(draft, "tokenizer.ggml.token_type", 8, 1);
    draft_set_u32(draft, "tokenizer.ggml.bos_token_id", 1);
    draft_set_u32(draft, "tokenizer.ggml.eos_token_id", 2);
    draft_set_bool(draft, "tokenizer.ggml.add_bos_token", false);
    draft_set_text(draft, "tokenizer.chat_template", "{{ messages }}");
}

draft_t *draft_llama(void)
{
    draft_t *draft = draft_new();
    set_llama_keys(draft);
    draft_add_tensor(draft, "token_embd.weight", QTYPE_Q4_0, 32, 8);
    draft_add_tensor(draft, "blk.0.attn_norm.weight", QTYPE_F32, 32, 1);
    draft_add_tensor(draft, "blk.0.attn_q.weight", QTYPE_Q4_0, 32, 32);
    draft_add_tensor(draft, "blk.0.attn_k.weight", QTYPE_Q4_0, 32, 16);
    draft_add_tensor(draft, "blk.0.attn_v.weight", QTYPE_Q4_0, 32, 16);
    draft_add_tensor(draft, "blk.0.attn_output.weight", QTYPE_Q4_0, 32, 32);
    draft_add_tensor(draft, "blk.0.ffn_norm.weight", QTYPE_F32, 32, 1);
    draft_add_tensor(draft, "blk.0.ffn_gate.weight", QTYPE_Q4_0, 32, 32);
    draft_add_tensor(draft, "blk.0.ffn_up.weight", QTYPE_Q4_0, 32, 32);
    draft_add_tensor(draft, "blk.0.ffn_down.weight", QTYPE_Q4_0, 32, 32);
    draft_add_tensor(draft, "output_norm.weight", QTYPE_F32, 32, 1);
    return draft;
}

static uint64_t data_bytes(const draft_tensor_t *tensor)
{
    if (tensor->bytes != DRAFT_AUTO)
        return tensor->bytes;
    uint64_t bytes;
    CHECK(qtype_row_bytes(tensor->type, tensor->dims[0], &bytes));
    for (uint32_t i = 1; i < tensor->n_dims && i < DRAFT_DIMS_MAX; i++)
        bytes *= tensor->dims[i];
    return bytes;
}

static void write_data(const draft_tensor_t *tensor, buffer_t *out)
{
    const float one = 1;
    uint64_t n = data_bytes(tensor);
    if (tensor->type == QTYPE_F32) {
        for (uint64_t i = 0; i < n / sizeof one; i++)
            buffer_append(out, &one, sizeof one);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)(i * 7 % 0x3c);
        buffer_append(out, &byte, 1);
    }
}

static void pad(buffer_t *out, size_t alignment)
{
    while (out->size % alignment != 0)
        buffer_append(out, "", 1);
}

static void write_tensor_list(const draft_t *draft, buffer_t *out)
{
    uint64_t offset = 0;
    for (uint32_t i = 0; i < draft->n_tensors; i++) {
        const draft_tensor_t *tensor = &draft->tensors[i];
        draft_put_u64(out, tensor->name_size);
        buffer_append_text(out, tensor->name);
        draft_put_u32(out, tensor->n_dims);
        for (uint32_t d = 0; d < tensor->n_dims && d < DRAFT_DIMS_MAX; d++)
            draft_put_u64(out, tensor->dims[d]);
        draft_put_u32(out, tensor->type);
        draft_put_u64(out, tensor->offset != DRAFT_AUTO ? tensor->offset : offset);
        offset += data_bytes(tensor);
        offset = (offset + draft->alignment - 1) / draft->alignment * draft->alignment;
    }
}

void draft_write(const draft_t *draft, buffer_t *out)
{
    buffer_append(out, draft->magic, 4);
    draft_put_u32(out, draft->version);
    draft_put_u64(out, draft->n_tensors_claimed != DRAFT_AUTO ? draft->n_tensors_claimed
                                                              : draft->n_tensors);
    draft_put_u64(out, draft->n_keys_claimed != DRAFT_AUTO ? draft->n_keys_claimed : draft->n_keys);
    for (uint32_t i = 0; i < draft->n_keys; i++) {
        draft_put_u64(out, draft->keys[i].name_size);
        buffer_append_text(out, draft->keys[i].name);
        draft_put_u32(out, draft->keys[i].kind);
        buffer_append(out, draft->keys[i].payload.data, draft->keys[i].payload.size);
    }
    write_tensor_list(draft, out);
    for (uint32_t i = 0; i < draft->n_tensors; i++) {
        pad(out, draft->alignment);
        write_data(&draft->tensors[i], out);
    }
}
