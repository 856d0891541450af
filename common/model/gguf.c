/* Opening, closing and looking up. The structure is checked in gguf_parse.c, values are read in
 * gguf_value.c. See gguf.h. */
#include "common/model/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "common/model/gguf_internal.h"
#include "common/model/mapping.h"

enum { LABEL_BYTES_MAX = 160 }; /* leaves two thirds of a failure text to what is wrong */

gguf_shown_t gguf_show(const char *data, uint64_t size)
{
    gguf_shown_t shown = {0};
    size_t max = sizeof shown.text - 1;
    size_t n = size < max ? (size_t)size : max;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)data[i];
        shown.text[i] = byte < 0x20 || byte == 0x7f ? '?' : (char)byte;
    }
    if (size > max)
        memcpy(shown.text + max - 3, "...", 3);
    return shown;
}

static gguf_t *handle_new(const char *path, const void *bytes, uint64_t size, void *take_mapping)
{
    gguf_t *gguf = MEM_NEW(gguf_t);
    gguf->bytes = bytes;
    gguf->size = size;
    gguf->mapping = take_mapping;
    gguf->path = mem_strdup(path);
    size_t n = strlen(path);
    gguf->label = n <= LABEL_BYTES_MAX ? mem_strdup(path)
                                       : mem_format("...%s", path + n - LABEL_BYTES_MAX);
    return gguf;
}

static status_t parse_or_close(gguf_t *take_gguf, gguf_t **own_out)
{
    status_t status = gguf_parse(take_gguf);
    if (status != STATUS_OK) {
        gguf_close(take_gguf);
        return status;
    }
    *own_out = take_gguf;
    return STATUS_OK;
}

status_t gguf_open_file(const char *path, gguf_t **own_out)
{
    void *mapping;
    uint64_t size;
    TRY(mapping_open(path, "a model is one GGUF file", &mapping, &size));
    return parse_or_close(handle_new(path, mapping, size, mapping), own_out);
}

status_t gguf_open(const char *path, gguf_t **own_out)
{
    gguf_t *gguf;
    TRY(gguf_open_file(path, &gguf));
    if (gguf_is_part(gguf))
        return gguf_open_parts(gguf, own_out);
    /* Digests and seals go by the names, so names and keys must say the same. */
    char *home;
    uint32_t n_parts = gguf_parts(path, &home);
    free(home);
    if (n_parts > 1) {
        status_t status = fail(STATUS_INVALID, "%s: by its name it is one of %u files, and it has no "
                               "key split.count; under another name it is a model", gguf->label,
                               n_parts);
        gguf_close(gguf);
        return status;
    }
    *own_out = gguf;
    return STATUS_OK;
}

status_t gguf_open_bytes(const char *path, const void *bytes, size_t n, gguf_t **own_out)
{
    CHECK((uintptr_t)bytes % 8 == 0);
    gguf_t *gguf;
    TRY(parse_or_close(handle_new(path, bytes, n, NULL), &gguf));
    if (gguf_is_part(gguf)) {
        status_t status = fail(STATUS_INVALID, "%s: by split.count this is one of several files; "
                               "a split model is opened by the path of one of them", gguf->label);
        gguf_close(gguf);
        return status;
    }
    *own_out = gguf;
    return STATUS_OK;
}

void gguf_close(gguf_t *take_gguf)
{
    if (take_gguf == NULL)
        return;
    for (size_t i = 0; i < take_gguf->n_more; i++)
        gguf_close(take_gguf->more[i]);
    free(take_gguf->more);
    mapping_close(take_gguf->mapping, take_gguf->size);
    arena_release(&take_gguf->arena);
    free(take_gguf->path);
    free(take_gguf->label);
    free(take_gguf);
}

const char *gguf_path(const gguf_t *gguf)
{
    return gguf->path;
}

uint64_t gguf_file_bytes(const gguf_t *gguf)
{
    uint64_t sum = gguf->size;
    for (size_t i = 0; i < gguf->n_more; i++)
        sum += gguf->more[i]->size;
    return sum;
}

size_t gguf_n_files(const gguf_t *gguf)
{
    return 1 + gguf->n_more;
}

gguf_file_t gguf_file_at(const gguf_t *gguf, size_t i)
{
    CHECK(i <= gguf->n_more);
    const gguf_t *file = i == 0 ? gguf : gguf->more[i - 1];
    return (gguf_file_t){file->path, file->bytes, file->size};
}

uint32_t gguf_version(const gguf_t *gguf)
{
    return gguf->version;
}

uint32_t gguf_alignment(const gguf_t *gguf)
{
    return gguf->alignment;
}

const gguf_value_t *gguf_find(const gguf_t *gguf, const char *key)
{
    size_t n = strlen(key);
    for (size_t low = 0, high = gguf->n_values; low < high;) {
        size_t middle = low + (high - low) / 2;
        const gguf_value_t *value = gguf->by_key[middle];
        size_t shorter = value->key.size < n ? value->key.size : n;
        int order = memcmp(value->key.data, key, shorter);
        if (order == 0)
            order = (value->key.size > n) - (value->key.size < n);
        if (order == 0)
            return value;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

bool gguf_text_is(gguf_text_t text, const char *other)
{
    return strlen(other) == text.size && memcmp(text.data, other, text.size) == 0;
}

size_t gguf_n_tensors(const gguf_t *gguf)
{
    return gguf->n_tensors;
}

const gguf_tensor_t *gguf_tensor_at(const gguf_t *gguf, size_t i)
{
    CHECK(i < gguf->n_tensors);
    return &gguf->tensors[i];
}

const gguf_tensor_t *gguf_tensor(const gguf_t *gguf, const char *name)
{
    for (size_t low = 0, high = gguf->n_tensors; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(gguf->by_name[middle]->name, name);
        if (order == 0)
            return gguf->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
