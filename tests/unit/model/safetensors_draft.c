/* See safetensors_draft.h. */
#include "tests/unit/model/safetensors_draft.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/base/status.h"

void st_add(st_draft_t *draft, const char *name, const char *dtype, const char *shape,
            const void *bytes, size_t n)
{
    size_t begin = draft->data.size;
    buffer_format(&draft->entries, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,"
                  "\"data_offsets\":[%zu,%zu]}",
                  draft->entries.size > 0 ? "," : "", name, dtype, shape, begin, begin + n);
    void *zeros = bytes == NULL ? mem_new(n, 1) : NULL;
    buffer_append(&draft->data, bytes == NULL ? zeros : bytes, n);
    free(zeros);
}

void st_add_text(st_draft_t *draft, const char *text)
{
    if (draft->entries.size > 0)
        buffer_append_text(&draft->entries, ",");
    buffer_append_text(&draft->entries, text);
}

void st_write(st_draft_t *draft, buffer_t *out)
{
    buffer_t header = {0};
    buffer_format(&header, "{%s}", buffer_text(&draft->entries));
    while (header.size % 8 != 0)
        buffer_append_text(&header, " ");
    st_write_header(buffer_text(&header), 0, out);
    buffer_append(out, draft->data.data, draft->data.size);
    buffer_release(&header);
    buffer_release(&draft->entries);
    buffer_release(&draft->data);
}

void st_write_header(const char *header, size_t n_data, buffer_t *out)
{
    uint64_t length = strlen(header);
    void *zeros = mem_new(n_data, 1);
    buffer_append(out, &length, sizeof length);
    buffer_append(out, header, (size_t)length);
    buffer_append(out, zeros, n_data);
    free(zeros);
}

char *folder_new(void)
{
    char *path = mem_strdup("/tmp/shoal-model-XXXXXX");
    CHECK(mkdtemp(path) != NULL);
    return path;
}

void folder_remove(char *take_path)
{
    DIR *dir = opendir(take_path);
    CHECK(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    CHECK(rmdir(take_path) == 0);
    free(take_path);
}

void folder_write(const char *folder, const char *name, const void *bytes, size_t n)
{
    char *path = mem_format("%s/%s", folder, name);
    FILE *file = fopen(path, "wbe");
    CHECK(file != NULL);
    CHECK(n == 0 || fwrite(bytes, 1, n, file) == n);
    CHECK(fclose(file) == 0);
    free(path);
}

void folder_write_text(const char *folder, const char *name, const char *text)
{
    folder_write(folder, name, text, strlen(text));
}

void folder_write_draft(const char *folder, const char *name, st_draft_t *draft)
{
    buffer_t bytes = {0};
    st_write(draft, &bytes);
    folder_write(folder, name, bytes.data, bytes.size);
    buffer_release(&bytes);
}
