/* Finds the chat template in a Hugging Face folder. A file chat_template.jinja wins over what
 * tokenizer_config.json says, as in transformers; chat_template.json is how processors of images
 * keep theirs. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/json.h"
#include "common/base/memory.h"
#include "common/model/chat_internal.h"

/* What the folder says; texts are borrowed from the documents. */
typedef struct {
    char *file;         /* chat_template.jinja, NULL: none */
    size_t file_bytes;
    json_t *config;     /* tokenizer_config.json, NULL: none */
    json_t *processor;  /* chat_template.json, NULL: none */
    const json_t *sources; /* chat_template of one of them: a text, or a list of named ones */
} folder_t;

static status_t read_all(int file, const char *path, char *out, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t got = read(file, out + at, n - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail(STATUS_IO, "%s: %s", path, got == 0 ? "ended early" : strerror(errno));
        at += (size_t)got;
    }
    return STATUS_OK;
}

/* STATUS_NOT_FOUND when there is no such file. */
static status_t read_file(const char *path, char **own_out, size_t *n_out)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return fail(errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s",
                    path, strerror(errno));
    struct stat info;
    status_t status = STATUS_OK;
    char *text = NULL;
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode))
        status = fail(STATUS_INVALID, "%s is not a regular file", path);
    else if (info.st_size > CHAT_TEMPLATE_BYTES_MAX)
        status = fail(STATUS_INVALID, "%s has %lld bytes; a chat template has at most %d", path,
                      (long long)info.st_size, CHAT_TEMPLATE_BYTES_MAX);
    if (status == STATUS_OK) {
        text = mem_new((size_t)info.st_size + 1, 1);
        status = read_all(file, path, text, (size_t)info.st_size);
    }
    close(file);
    if (status != STATUS_OK) {
        free(text);
        return status;
    }
    *own_out = text;
    *n_out = (size_t)info.st_size;
    return STATUS_OK;
}

/* A document of the folder, or NULL when it is not there. */
static status_t read_document(const char *folder, const char *name, json_t **own_out)
{
    char *path = mem_format("%s/%s", folder, name);
    status_t status = json_read_file(path, NULL, own_out);
    free(path);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

static status_t read_folder(const char *path, folder_t *folder)
{
    char *file = mem_format("%s/chat_template.jinja", path);
    status_t status = read_file(file, &folder->file, &folder->file_bytes);
    free(file);
    if (status != STATUS_NOT_FOUND)
        TRY(status);
    TRY(read_document(path, "chat_template.json", &folder->processor));
    TRY(read_document(path, "tokenizer_config.json", &folder->config));
    folder->sources = json_object_get(folder->processor, "chat_template");
    if (folder->sources == NULL || json_is_null(folder->sources))
        folder->sources = json_object_get(folder->config, "chat_template");
    return STATUS_OK;
}

/* The text of one of several named templates, or NULL. */
static const json_t *named_source(const json_t *sources, const char *name)
{
    for (size_t i = 0; i < json_array_size(sources); i++) {
        const json_t *entry = json_array_get(sources, i);
        const char *own = json_string_value(json_object_get(entry, "name"));
        if (own != NULL && strcmp(own, name) == 0)
            return json_object_get(entry, "template");
    }
    return json_is_object(sources) ? json_object_get(sources, name) : NULL;
}

static status_t compile(const json_t *source, const char *path, chat_template_t **own_out)
{
    if (!json_is_string(source))
        return fail(STATUS_INVALID, "%s: chat_template must be a text or a list of {name, "
                                    "template}", path);
    return chat_template_create(json_string_value(source), json_string_length(source), path,
                                own_out);
}

/* A token is a text or an object with its text as `content`. */
static const char *token_of(const json_t *config, const char *key)
{
    const json_t *token = json_object_get(config, key);
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

static status_t choose(const folder_t *folder, const char *path, const char *name,
                       chat_template_t **own_out, chat_template_t **own_tools_out)
{
    bool named = json_is_array(folder->sources) || json_is_object(folder->sources);
    if (folder->file != NULL && (name == NULL || strcmp(name, "default") == 0))
        return chat_template_create(folder->file, folder->file_bytes, path, own_out);
    if (!named && name != NULL && strcmp(name, "default") != 0)
        return fail(STATUS_NOT_FOUND, "%s has no chat template named \"%s\"", path, name);
    if (folder->sources == NULL || json_is_null(folder->sources))
        return fail(STATUS_NOT_FOUND, "%s has no chat template; give one or send a raw prompt",
                    path);
    if (!named)
        return compile(folder->sources, path, own_out);
    const json_t *source = named_source(folder->sources, name == NULL ? "default" : name);
    const json_t *for_tools = name == NULL ? named_source(folder->sources, "tool_use") : NULL;
    if (source == NULL)
        return fail(STATUS_NOT_FOUND, "%s has no chat template named \"%s\"", path,
                    name == NULL ? "default" : name);
    TRY(compile(source, path, own_out));
    return for_tools == NULL ? STATUS_OK : compile(for_tools, path, own_tools_out);
}

status_t chat_template_from_folder(const char *path, const char *name, chat_template_t **own_out)
{
    folder_t folder = {0};
    chat_template_t *template = NULL, *for_tools = NULL;
    status_t status = read_folder(path, &folder);
    if (status == STATUS_OK)
        status = choose(&folder, path, name, &template, &for_tools);
    if (status == STATUS_OK) {
        chat_template_complete(template, token_of(folder.config, "bos_token"),
                               token_of(folder.config, "eos_token"), for_tools);
        *own_out = template;
    } else {
        chat_template_release(template);
    }
    json_decref(folder.config);
    json_decref(folder.processor);
    free(folder.file);
    return status;
}
