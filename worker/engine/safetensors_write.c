/* The safetensors writer; see safetensors_write.h. */
#include "worker/engine/safetensors_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/buffer.h"
#include "common/base/memory.h"

#define VALUE_BYTES 4u

typedef struct {
    char *name;
    safetensors_type_t type;
    uint32_t n_dims;
    uint64_t dims[2];
    uint64_t n_values;
    uint64_t offset; /* in the data part */
} tensor_t;

struct safetensors {
    tensor_t *tensors;
    size_t n, capacity;
    uint64_t data_bytes, data_at;
    char *path;
    int fd;
};

safetensors_t *safetensors_new(void)
{
    safetensors_t *file = MEM_NEW(safetensors_t);
    file->fd = -1;
    return file;
}

uint32_t safetensors_add(safetensors_t *file, const char *name, safetensors_type_t type,
                         uint32_t n_dims, const uint64_t *dims)
{
    CHECK(file->fd < 0 && (n_dims == 1 || n_dims == 2));
    MEM_GROW(file->tensors, file->capacity, file->n + 1);
    tensor_t *tensor = &file->tensors[file->n];
    *tensor = (tensor_t){.name = mem_strdup(name), .type = type, .n_dims = n_dims, .n_values = 1};
    for (uint32_t i = 0; i < n_dims; i++) {
        tensor->dims[i] = dims[i];
        tensor->n_values *= dims[i];
    }
    tensor->offset = file->data_bytes;
    file->data_bytes += tensor->n_values * VALUE_BYTES;
    return (uint32_t)file->n++;
}

static void write_header(const safetensors_t *file, buffer_t *out)
{
    buffer_append_text(out, "{");
    for (size_t i = 0; i < file->n; i++) {
        const tensor_t *t = &file->tensors[i];
        buffer_format(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", i ? "," : "", t->name,
                      t->type == SAFETENSORS_F32 ? "F32" : "I32", (unsigned long long)t->dims[0]);
        if (t->n_dims == 2)
            buffer_format(out, ",%llu", (unsigned long long)t->dims[1]);
        buffer_format(out, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)t->offset,
                      (unsigned long long)(t->offset + t->n_values * VALUE_BYTES));
    }
    buffer_append_text(out, "}");
    while (out->size % 8 != 0) /* readers map the file: tensors start aligned */
        buffer_append_text(out, " ");
}

static status_t put_at(safetensors_t *file, uint64_t at, const void *bytes, size_t n)
{
    while (n > 0) {
        ssize_t done = pwrite(file->fd, bytes, n, (off_t)at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return fail(STATUS_IO, "%s: cannot write: %s", file->path, strerror(errno));
        bytes = (const uint8_t *)bytes + done;
        at += (uint64_t)done;
        n -= (size_t)done;
    }
    return STATUS_OK;
}

status_t safetensors_create(safetensors_t *file, const char *path)
{
    buffer_t header = {0};
    file->path = mem_strdup(path);
    file->fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    if (file->fd < 0)
        return fail(STATUS_IO, "%s: cannot create: %s", path, strerror(errno));
    write_header(file, &header);
    uint64_t length = header.size;
    file->data_at = sizeof length + length;
    status_t status = put_at(file, 0, &length, sizeof length);
    if (status == STATUS_OK)
        status = put_at(file, sizeof length, header.data, header.size);
    if (status == STATUS_OK && ftruncate(file->fd, (off_t)(file->data_at + file->data_bytes)) != 0)
        status = fail(STATUS_IO, "%s: no room for %llu bytes: %s", path,
                      (unsigned long long)file->data_bytes, strerror(errno));
    buffer_release(&header);
    return status;
}

status_t safetensors_put(safetensors_t *file, uint32_t number, uint64_t first, const void *values,
                         size_t n)
{
    CHECK(number < file->n && file->fd >= 0);
    const tensor_t *tensor = &file->tensors[number];
    CHECK(first <= tensor->n_values && n <= tensor->n_values - first);
    return put_at(file, file->data_at + tensor->offset + first * VALUE_BYTES, values,
                  n * VALUE_BYTES);
}

static status_t release(safetensors_t *file)
{
    status_t status = STATUS_OK;
    if (file->fd >= 0 && close(file->fd) != 0)
        status = fail(STATUS_IO, "%s: cannot write: %s", file->path, strerror(errno));
    for (size_t i = 0; i < file->n; i++)
        free(file->tensors[i].name);
    free(file->tensors);
    free(file->path);
    free(file);
    return status;
}

status_t safetensors_finish(safetensors_t *file)
{
    return release(file);
}

void safetensors_drop(safetensors_t *file)
{
    if (file && release(file) != STATUS_OK)
        return; /* whoever drops it has a better error already */
}
