/* The files of a Hugging Face directory that make a tokenizer, and what tokenizer_config.json and
 * generation_config.json say about it: which tokens begin, end and pad. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/model/gguf.h"
#include "common/model/tokenizer_json.h"

enum { CONFIG_BYTES_MAX = 16 << 20, TOKENIZER_BYTES_MAX = 128 << 20, ENDS_MAX = 64 };

/* How vocabularies write the tokens after which nothing more comes; files name one of them as eos,
 * a chat model also stops at the base model's, and the other way round. */
static const char *const end_texts[] = {
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>",
    "<EOT>", "<end_of_turn>", "<|return|>", "<|call|>",
};

typedef struct {
    uint32_t ids[ENDS_MAX];
    size_t n;
} ends_t;

/* "<s>" or {"content": "<s>", …}; absent or null: TOKENIZER_NO_ID. */
static status_t find_named(const tokenizer_t *tokenizer, const json_t *config, const char *key,
                           uint32_t *out)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value))
        value = json_object_get(value, "content");
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_string(value))
        return fail(STATUS_INVALID, "tokenizer_config.json: \"%s\" must be a token's text", key);
    /* A name that the vocabulary lacks is common (pad tokens of training); it names no id. */
    *out = tokenizer_find(tokenizer, json_string_value(value), json_string_length(value));
    return STATUS_OK;
}

static status_t add_end(const tokenizer_t *tokenizer, const json_t *value, ends_t *ends)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= (long long)tokenizer->n_tokens)
        return fail(STATUS_INVALID, "generation_config.json: an eos_token_id is no id of the "
                    "vocabulary (0 to %u)", tokenizer->n_tokens - 1);
    if (ends->n == ENDS_MAX)
        return fail(STATUS_INVALID, "generation_config.json: more than %d eos_token_id", ENDS_MAX);
    ends->ids[ends->n++] = (uint32_t)json_integer_value(value);
    return STATUS_OK;
}

static status_t read_generation(const tokenizer_t *tokenizer, const json_t *config, ends_t *ends)
{
    const json_t *value = json_object_get(config, "eos_token_id");
    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    if (!json_is_array(value))
        return add_end(tokenizer, value, ends);
    for (size_t i = 0; i < json_array_size(value); i++)
        TRY(add_end(tokenizer, json_array_get(value, i), ends));
    return STATUS_OK;
}

/* add_bos_token and add_eos_token count where tokenizer.json has no template of its own. */
static status_t read_additions(tokenizer_t *tokenizer, const json_t *config, uint32_t bos_id,
                               uint32_t eos_id)
{
    bool add_bos = false, add_eos = false;
    TRY(json_may_bool(config, "tokenizer_config.json", "add_bos_token", &add_bos));
    TRY(json_may_bool(config, "tokenizer_config.json", "add_eos_token", &add_eos));
    if (tokenizer->prefix.n > 0 || tokenizer->suffix.n > 0)
        return STATUS_OK;
    if (add_bos && bos_id != TOKENIZER_NO_ID)
        token_ids_append(&tokenizer->prefix, bos_id);
    if (add_eos && eos_id != TOKENIZER_NO_ID)
        token_ids_append(&tokenizer->suffix, eos_id);
    return STATUS_OK;
}

static status_t put_names(tokenizer_t *tokenizer, const json_t *config, const json_t *generation)
{
    uint32_t bos = TOKENIZER_NO_ID, eos = TOKENIZER_NO_ID, pad = TOKENIZER_NO_ID;
    uint32_t unknown = tokenizer->model_unknown_id;
    ends_t ends = {.n = 0};
    TRY(find_named(tokenizer, config, "bos_token", &bos));
    TRY(find_named(tokenizer, config, "eos_token", &eos));
    TRY(find_named(tokenizer, config, "pad_token", &pad));
    TRY(find_named(tokenizer, config, "unk_token", &unknown));
    TRY(read_generation(tokenizer, generation, &ends));
    for (size_t i = 0; i < sizeof end_texts / sizeof *end_texts; i++) {
        uint32_t id = tokenizer_find(tokenizer, end_texts[i], strlen(end_texts[i]));
        if (id != TOKENIZER_NO_ID && tokenizer->kinds[id] == TOKEN_CONTROL && ends.n < ENDS_MAX)
            ends.ids[ends.n++] = id;
    }
    TRY(read_additions(tokenizer, config, bos, eos));
    return tokenizer_put_named_ids(tokenizer, bos, eos, pad, unknown, ends.ids, ends.n);
}

status_t tokenizer_json_names(tokenizer_t *tokenizer, const tokenizer_text_t *config_json,
                              const tokenizer_text_t *generation_json)
{
    json_t *config = NULL, *generation = NULL;
    json_limits_t limits = {.bytes_max = CONFIG_BYTES_MAX};
    status_t status = STATUS_OK;
    if (config_json != NULL)
        status = json_read_object("tokenizer_config.json", config_json->data, config_json->size,
                                  &limits, &config);
    if (status == STATUS_OK && generation_json != NULL)
        status = json_read_object("generation_config.json", generation_json->data,
                                  generation_json->size, &limits, &generation);
    if (status == STATUS_OK)
        status = put_names(tokenizer, config, generation);
    json_decref(config);
    json_decref(generation);
    return status;
}

/* --- Files -------------------------------------------------------------------------------------*/

static status_t read_whole(const char *path, int fd, size_t bytes_max, buffer_t *out)
{
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        return fail(STATUS_INVALID, "%s is no regular file", path);
    for (;;) {
        char chunk[65536];
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n == 0)
            return STATUS_OK;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        buffer_append(out, chunk, (size_t)n);
        if (out->size > bytes_max)
            return fail(STATUS_INVALID, "%s has more than %zu bytes", path, bytes_max);
    }
}

static status_t read_path(const char *directory, const char *file, size_t bytes_max, buffer_t *out)
{
    char *path = mem_format("%s/%s", directory, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    status_t status;
    if (fd < 0)
        status = fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot open %s: %s", path,
                      strerror(errno));
    else
        status = read_whole(path, fd, bytes_max, out);
    if (fd >= 0)
        close(fd);
    free(path);
    return status;
}

status_t tokenizer_open_directory(const char *path, tokenizer_t **own_out)
{
    buffer_t tokenizer = {0}, config = {0}, generation = {0};
    bool has_config = true, has_generation = true;
    status_t status = read_path(path, "tokenizer.json", TOKENIZER_BYTES_MAX, &tokenizer);
    if (status == STATUS_NOT_FOUND)
        status = fail(STATUS_NOT_FOUND, "%s has no tokenizer.json; a tokenizer.model alone must be "
                      "converted first", path);
    if (status == STATUS_OK) {
        status = read_path(path, "tokenizer_config.json", CONFIG_BYTES_MAX, &config);
        has_config = status == STATUS_OK;
        status = status == STATUS_NOT_FOUND ? STATUS_OK : status;
    }
    if (status == STATUS_OK) {
        status = read_path(path, "generation_config.json", CONFIG_BYTES_MAX, &generation);
        if (status == STATUS_NOT_FOUND) /* then the model's own says what ends a text */
            status = read_path(path, "config.json", CONFIG_BYTES_MAX, &generation);
        has_generation = status == STATUS_OK;
        status = status == STATUS_NOT_FOUND ? STATUS_OK : status;
    }
    if (status == STATUS_OK) {
        tokenizer_text_t texts[] = {{buffer_text(&tokenizer), tokenizer.size},
                                    {buffer_text(&config), config.size},
                                    {buffer_text(&generation), generation.size}};
        char *name = mem_format("%s/tokenizer.json", path);
        status = tokenizer_from_json(name, &texts[0], has_config ? &texts[1] : NULL,
                                     has_generation ? &texts[2] : NULL, own_out);
        free(name);
    }
    buffer_release(&tokenizer);
    buffer_release(&config);
    buffer_release(&generation);
    return status;
}

status_t tokenizer_open(const char *path, tokenizer_t **own_out)
{
    struct stat info;
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode))
        return tokenizer_open_directory(path, own_out);
    const char *file = strrchr(path, '/');
    if (strcmp(file == NULL ? path : file + 1, "tokenizer.json") == 0) {
        char *directory = file == NULL ? mem_strdup(".") : mem_strndup(path, (size_t)(file - path));
        status_t status = tokenizer_open_directory(*directory == 0 ? "/" : directory, own_out);
        free(directory);
        return status;
    }
    gguf_t *gguf;
    TRY(gguf_open(path, &gguf));
    status_t status = tokenizer_from_gguf(gguf, own_out);
    gguf_close(gguf);
    return status;
}
