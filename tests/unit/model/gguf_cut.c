/* See gguf_cut.h. */
#include "tests/unit/model/gguf_cut.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "tests/unit/model/gguf_draft.h"

enum { ALIGNMENT = 32, HEADER = 24 };

static uint64_t u64_at(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t u32_at(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t scalar_bytes(uint32_t kind)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    CHECK(kind < sizeof bytes && bytes[kind] > 0);
    return bytes[kind];
}

/* The bytes of all keys, as they lie behind the header of a right file. */
static uint64_t keys_bytes(const uint8_t *file)
{
    const uint8_t *at = file + HEADER;
    for (uint64_t i = 0, n = u64_at(file + 16); i < n; i++) {
        at += 8 + u64_at(at);
        uint32_t kind = u32_at(at), element = kind == GGUF_ARRAY ? u32_at(at + 4) : kind;
        uint64_t count = kind == GGUF_ARRAY ? u64_at(at + 8) : 1;
        at += kind == GGUF_ARRAY ? 16 : 4;
        for (uint64_t e = 0; e < count; e++)
            at += element == GGUF_TEXT ? 8 + u64_at(at) : scalar_bytes(element);
    }
    return (uint64_t)(at - file) - HEADER;
}

static void put_text(buffer_t *out, const char *text)
{
    draft_put_u64(out, strlen(text));
    buffer_append_text(out, text);
}

static void put_key(buffer_t *out, const char *key, uint32_t kind, uint32_t value)
{
    put_text(out, key);
    draft_put_u32(out, kind);
    buffer_append(out, &value, kind == GGUF_U16 ? 2 : 4);
}

static void pad(buffer_t *out)
{
    static const uint8_t zeros[ALIGNMENT];
    if (out->size % ALIGNMENT != 0)
        buffer_append(out, zeros, ALIGNMENT - out->size % ALIGNMENT);
}

static void put_tensors(buffer_t *out, const gguf_t *from, size_t begin, size_t end)
{
    uint64_t offset = 0;
    for (size_t i = begin; i < end; i++) {
        const gguf_tensor_t *tensor = gguf_tensor_at(from, i);
        put_text(out, tensor->name);
        draft_put_u32(out, tensor->n_dims);
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            draft_put_u64(out, tensor->dims[d]);
        draft_put_u32(out, (uint32_t)tensor->type);
        draft_put_u64(out, offset);
        offset += (tensor->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    for (size_t i = begin; i < end; i++) {
        pad(out);
        buffer_append(out, gguf_tensor_at(from, i)->data, (size_t)gguf_tensor_at(from, i)->bytes);
    }
    pad(out);
}

char *gguf_cut_path(const char *folder, const char *stem, uint32_t part, uint32_t n)
{
    return mem_format("%s/%s-%05u-of-%05u.gguf", folder, stem, part, n);
}

static void write_part(const gguf_t *from, const char *path, uint32_t part, uint32_t n,
                       size_t begin, size_t end)
{
    const uint8_t *file = gguf_file_at(from, 0).bytes;
    buffer_t out = {0};
    buffer_append_text(&out, "GGUF");
    draft_put_u32(&out, 3);
    draft_put_u64(&out, end - begin);
    draft_put_u64(&out, 3 + (part == 0 ? u64_at(file + 16) : 0));
    if (part == 0)
        buffer_append(&out, file + HEADER, (size_t)keys_bytes(file));
    put_key(&out, "split.no", GGUF_U16, part);
    put_key(&out, "split.tensors.count", GGUF_I32, (uint32_t)gguf_n_tensors(from));
    put_key(&out, "split.count", GGUF_U16, n);
    put_tensors(&out, from, begin, end);
    FILE *stream = fopen(path, "wb");
    CHECK(stream != NULL && fwrite(out.data, 1, out.size, stream) == out.size);
    CHECK(fclose(stream) == 0);
    buffer_release(&out);
}

void gguf_cut(const char *from, const char *folder, const char *stem, uint32_t n, bool bare_first)
{
    gguf_t *gguf;
    CHECK(gguf_open(from, &gguf) == STATUS_OK && gguf_alignment(gguf) == ALIGNMENT);
    size_t n_tensors = gguf_n_tensors(gguf), n_full = bare_first ? n - 1 : n;
    for (uint32_t part = 0; part < n; part++) {
        size_t full = bare_first ? part - (part > 0) : part;
        size_t begin = n_tensors * full / n_full, end = n_tensors * (full + 1) / n_full;
        char *path = gguf_cut_path(folder, stem, part + 1, n);
        write_part(gguf, path, part, n, begin, bare_first && part == 0 ? begin : end);
        free(path);
    }
    gguf_close(gguf);
}

void gguf_cut_patch(const char *path, const char *key, const void *value, size_t n)
{
    FILE *stream = fopen(path, "r+b");
    CHECK(stream != NULL);
    uint8_t *bytes = MEM_NEW_ARRAY(uint8_t, 1 << 16);
    size_t size = fread(bytes, 1, 1 << 16, stream);
    uint8_t *at = memmem(bytes, size, key, strlen(key));
    CHECK(at != NULL);
    CHECK(fseek(stream, (long)(at - bytes) + (long)strlen(key) + 4, SEEK_SET) == 0);
    CHECK(fwrite(value, 1, n, stream) == n && fclose(stream) == 0);
    free(bytes);
}
