/* See model_files.h. */
#include "common/model/model_files.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/gguf.h"

static const char ending[] = ".safetensors";
enum { ENDING_BYTES = sizeof ending - 1, FILES_MAX = 4096 + 16 };

/* Everything of a directory, weights apart, that decides a text here or in another reader of it. */
static const char *const known[] = {
    "added_tokens.json", "chat_template.jinja",     "chat_template.json",
    "config.json",       "generation_config.json",  "merges.txt",
    "tokenizer.json",    "tokenizer.model",         "tokenizer_config.json",
    "vocab.json",        "special_tokens_map.json",
};

bool model_file_is_weights(const char *name)
{
    size_t n = strlen(name);
    return n > ENDING_BYTES && strcmp(name + n - ENDING_BYTES, ending) == 0;
}

bool model_shard_name_is_good(const char *name)
{
    bool good = model_file_is_weights(name) && strlen(name) < 256 && name[0] != '.' &&
                strchr(name, '/') == NULL;
    for (size_t i = 0; good && name[i] != 0; i++)
        good = (unsigned char)name[i] >= 0x20 && name[i] != 0x7f;
    return good;
}

static bool is_there(const char *dir, const char *name)
{
    char *path = mem_format("%s/%s", dir, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

bool model_files_are_in(const char *path)
{
    return is_there(path, "config.json");
}

char *model_files_name(const char *path)
{
    size_t end = strlen(path);
    gguf_part_name_t part;
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    if (gguf_part_name(path, &part) && part.stem > begin)
        end = part.stem;
    else if (end - begin > 5 && strncmp(path + end - 5, ".gguf", 5) == 0)
        end -= 5;
    return mem_strndup(path + begin, end - begin);
}

char *model_file_real(const char *path)
{
    char *home;
    if (gguf_parts(path, &home) == 1)
        return realpath(path, NULL);
    const char *slash = strrchr(home, '/'), *name = slash == NULL ? home : slash + 1;
    char *folder = slash == NULL ? mem_strdup(".") : mem_strndup(home, (size_t)(name - home));
    char *real = realpath(folder, NULL);
    char *joined = real != NULL ? mem_format("%s/%s", real, name) : NULL;
    free(folder);
    free(real);
    free(home);
    if (joined != NULL && access(joined, F_OK) != 0) {
        free(joined);
        joined = NULL;
    }
    return joined;
}

static void add(model_files_t *files, const char *name)
{
    MEM_GROW(files->names, files->capacity, files->n + 1);
    files->names[files->n++] = mem_strdup(name);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct shards of the index. */
static status_t add_shards(const char *path, model_files_t *files)
{
    json_t *index, *seen = json_object();
    const json_t *map = NULL;
    CHECK(seen != NULL);
    status_t status = json_read_file(path, NULL, &index);
    if (status != STATUS_OK) {
        json_decref(seen);
        return status;
    }
    status = json_get_object(index, path, "weight_map", &map);
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, key, value) {
        const char *name = json_string_value(value);
        if (name == NULL || !model_shard_name_is_good(name) || files->n == FILES_MAX) {
            status = fail(STATUS_INVALID, "%s: tensor %.100s: its shard must be a file of this "
                          "directory that ends in %s", path, key, ending);
            break;
        }
        if (json_object_get(seen, name) == NULL) {
            CHECK(json_object_set_new(seen, name, json_true()) == 0);
            add(files, name);
        }
    }
    json_decref(seen);
    json_decref(index);
    return status;
}

status_t model_files_list(const char *dir, model_files_t *files)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is_there(dir, known[i]))
            add(files, known[i]);
    if (is_there(dir, MODEL_SINGLE_NAME)) {
        add(files, MODEL_SINGLE_NAME);
    } else if (is_there(dir, MODEL_INDEX_NAME)) {
        char *path = mem_format("%s/%s", dir, MODEL_INDEX_NAME);
        status_t status = add_shards(path, files);
        free(path);
        TRY(status);
        add(files, MODEL_INDEX_NAME);
    } else {
        return fail(STATUS_INVALID, "%s: the directory has neither %s nor %s", dir,
                    MODEL_SINGLE_NAME, MODEL_INDEX_NAME);
    }
    qsort(files->names, files->n, sizeof *files->names, by_text);
    return STATUS_OK;
}

void model_files_release(model_files_t *files)
{
    for (size_t i = 0; i < files->n; i++)
        free(files->names[i]);
    free(files->names);
    *files = (model_files_t){0};
}
