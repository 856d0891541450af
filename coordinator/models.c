/* The model room of the coordinator: opens a deployment's model, a GGUF file or a directory, for its
 * tokenizer, its chat template and its sizes, never for its weights. With --models given models are
 * found inside those folders alone, because a deployment is named by whoever may deploy, not by who
 * owns this machine. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/model/chat.h"
#include "common/model/gguf.h"
#include "common/model/model.h"
#include "common/model/model_files.h"
#include "coordinator/shell_state.h"

#define PROMPT_IDS_MAX ((size_t)1 << 20)

struct models {
    pthread_mutex_t lock; /* guards entries; entries themselves never change */
    model_entry_t **entries;
    size_t n, capacity;
};

models_t *models_open(shell_t *shell)
{
    (void)shell;
    models_t *models = MEM_NEW(models_t);
    pthread_mutex_init(&models->lock, NULL);
    return models;
}

void models_close(models_t *take_models)
{
    if (!take_models)
        return;
    for (size_t i = 0; i < take_models->n; i++) {
        model_entry_t *entry = take_models->entries[i];
        chat_template_release(entry->chat);
        tokenizer_release(entry->tokenizer);
        free(entry->digest);
        free(entry->quantize);
        free(entry);
    }
    free(take_models->entries);
    pthread_mutex_destroy(&take_models->lock);
    free(take_models);
}

const model_entry_t *models_of(const shell_t *shell, const tokenizer_t *tokenizer)
{
    const model_entry_t *found = NULL;
    pthread_mutex_lock(&shell->models->lock);
    for (size_t i = 0; tokenizer && i < shell->models->n; i++)
        if (shell->models->entries[i]->tokenizer == tokenizer)
            found = shell->models->entries[i];
    pthread_mutex_unlock(&shell->models->lock);
    return found;
}

static const model_entry_t *find_entry(models_t *models, const char *digest, const char *quantize)
{
    const model_entry_t *found = NULL;
    pthread_mutex_lock(&models->lock);
    for (size_t i = 0; i < models->n; i++)
        if (strcmp(models->entries[i]->digest, digest) == 0 &&
            strcmp(models->entries[i]->quantize, quantize) == 0)
            found = models->entries[i];
    pthread_mutex_unlock(&models->lock);
    return found;
}

/* The last part of a path; of a directory's it may end in slashes. To be freed. */
static char *base_name(const char *path)
{
    size_t end = strlen(path);
    while (end > 0 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    return mem_strndup(path + begin, end - begin);
}

/* A file, or the directory of one model. */
static bool is_model(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return false;
    return S_ISREG(info.st_mode) || (S_ISDIR(info.st_mode) && model_files_are_in(path));
}

/* "smol" or "smol.gguf" for the file smol.gguf; "big" also for big-00001-of-00002.gguf. */
static bool names_model(const char *name, const char *model)
{
    char *plain = model_files_name(model);
    bool names = name[0] && (strcmp(name, model) == 0 || strcmp(name, plain) == 0);
    free(plain);
    return names;
}

static status_t not_found(const char *models, const char *path, const char *name)
{
    return fail(STATUS_NOT_FOUND,
                "model \"%s\" (\"%s\") is not under this coordinator's --models %s: a GGUF file or "
                "a directory with a config.json would be right", name, path, models);
}

/* The first file of a split model of that name, whose own name also says of how many. Of several, the
 * lowest by bytes. To be freed; NULL when there is none. */
static char *find_split(const char *folder, const char *name)
{
    struct dirent **files;
    char *found = NULL;
    int n = scandir(folder, &files, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        gguf_part_name_t part;
        const char *file = files[i]->d_name;
        if (!found && gguf_part_name(file, &part) && part.part == 1 &&
            part.stem == strlen(name) && strncmp(file, name, part.stem) == 0)
            found = mem_format("%s/%s", folder, file);
        free(files[i]);
    }
    if (n >= 0)
        free(files);
    return found;
}

/* In a folder of models: by the path inside it, else by the last part of the path, else by name. */
static char *find_in_folder(const char *folder, const char *path, const char *base,
                            const char *name)
{
    char *tries[] = {
        path[0] == '/' ? mem_strdup(path) : mem_format("%s/%s", folder, path),
        mem_format("%s/%s", folder, base),
        mem_format("%s/%s.gguf", folder, base),
        find_split(folder, base),
        mem_format("%s/%s", folder, name),
        mem_format("%s/%s.gguf", folder, name),
        find_split(folder, name),
    };
    char *found = NULL;
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        if (!found && tries[i] && is_model(tries[i]) &&
            model_check_inside(folder, tries[i]) == STATUS_OK)
            found = tries[i];
        else
            free(tries[i]);
    }
    return found;
}

/* One entry of --models: a model stands for itself, a folder for the models in it. */
static char *find_in(const char *models, const char *path, const char *name)
{
    char *base = base_name(path), *last = base_name(name), *own = base_name(models), *found;
    if (is_model(models))
        found = names_model(base, own) || names_model(last, own) ? mem_strdup(models) : NULL;
    else
        found = find_in_folder(models, path, base, last);
    free(base);
    free(last);
    free(own);
    return found;
}

/* Without --models the path is the operator's word. */
static status_t check_path(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return fail(STATUS_NOT_FOUND, "model %s is not on this coordinator's machine; without "
                    "--models the path must be the one that coordinators see", path);
    if (!is_model(path))
        return fail(STATUS_INVALID, "%s is no model: a GGUF file or a directory with a config.json "
                    "would be right", path);
    return STATUS_OK;
}

status_t models_find_file(const shell_t *shell, const char *path, const char *name,
                          char **own_path_out)
{
    const char *models = shell->options.models;
    if (!models) {
        TRY(check_path(path));
        *own_path_out = mem_strdup(path);
        return STATUS_OK;
    }
    char *list = mem_strdup(models), *rest = list, *found = NULL;
    for (char *one; !found && (one = strsep(&rest, ","));)
        if (*one)
            found = find_in(one, path, name);
    free(list);
    if (!found)
        return not_found(models, path, name);
    *own_path_out = found;
    return STATUS_OK;
}

static void append_ids(token_ids_t *list, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        token_ids_append(list, ids[i]);
}

/* A raw prompt gets what the model wants around one, as Hugging Face's tokenizers do; a chat template
 * writes it itself, and ids are taken as they are. */
static status_t encode_text(const tokenizer_t *tokenizer, const request_t *request,
                            token_ids_t *out)
{
    size_t n_before, n_behind;
    const uint32_t *before = tokenizer_prefix_ids(tokenizer, &n_before);
    const uint32_t *behind = tokenizer_suffix_ids(tokenizer, &n_behind);
    append_ids(out, before, n_before);
    TRY(tokenizer_encode(tokenizer, request->prompt, request->prompt_bytes, TOKENIZE_PLAIN,
                         PROMPT_IDS_MAX, out));
    append_ids(out, behind, n_behind);
    return STATUS_OK;
}

status_t models_encode(const model_entry_t *entry, const request_t *request, token_ids_t *out)
{
    switch (request->kind) {
    case REQUEST_PROMPT:
        return encode_text(entry->tokenizer, request, out);
    case REQUEST_CHAT: {
        if (!entry->chat)
            return fail(STATUS_INVALID,
                        "messages: the model carries no chat template; send a prompt");
        chat_input_t input = {.messages = request->messages,
                              .add_generation_prompt = true,
                              .now_unix_s = (int64_t)(clock_unix_ms() / 1000)};
        return chat_encode(entry->chat, entry->tokenizer, &input, PROMPT_IDS_MAX, out);
    }
    case REQUEST_IDS:
        append_ids(out, request->ids, request->n_ids);
        return STATUS_OK;
    }
    return STATUS_INTERNAL;
}

static status_t open_texts(const model_t *model, model_entry_t *entry)
{
    const gguf_t *gguf = model_gguf(model);
    if (gguf)
        TRY(tokenizer_from_gguf(gguf, &entry->tokenizer));
    else
        TRY(tokenizer_open_directory(model_path(model), &entry->tokenizer));
    tokenizer_widen(entry->tokenizer, model_config(model)->vocab);
    status_t status = gguf ? chat_template_from_gguf(gguf, &entry->chat)
                           : chat_template_from_folder(model_path(model), NULL, &entry->chat);
    /* Without one `messages` is refused, and raw prompts still run. */
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

static status_t open_entry(const char *path, const char *digest, const char *quantize,
                           model_entry_t **own_out)
{
    model_t *model;
    TRY(model_open_quantized(path, quantize, &model));
    model_entry_t *entry = MEM_NEW(model_entry_t);
    status_t status = open_texts(model, entry);
    if (status == STATUS_OK) {
        plan_sizes(model, &entry->sizes);
        entry->context_train = model_config(model)->context_train;
        entry->digest = mem_strdup(digest);
        entry->quantize = mem_strdup(quantize);
        *own_out = entry;
    } else {
        if (entry->tokenizer)
            tokenizer_release(entry->tokenizer);
        free(entry);
    }
    model_close(model);
    return status;
}

status_t models_entry(shell_t *shell, const char *path, const char *digest, const char *quantize,
                      const model_entry_t **out)
{
    models_t *models = shell->models;
    char found[MODEL_DIGEST_SIZE];
    TRY(model_digest(path, shell->options.data, found));
    if (digest[0] && strcmp(digest, found) != 0)
        return fail(STATUS_CONFLICT, "model %s has digest %s; the deployment wants %s", path,
                    found, digest);
    *out = find_entry(models, found, quantize);
    if (*out)
        return STATUS_OK;
    model_entry_t *entry;
    TRY(open_entry(path, found, quantize, &entry));
    pthread_mutex_lock(&models->lock);
    /* Two workers may have opened the same model; both entries stay, either is right. */
    MEM_GROW(models->entries, models->capacity, models->n + 1);
    models->entries[models->n++] = entry;
    pthread_mutex_unlock(&models->lock);
    *out = entry;
    return STATUS_OK;
}

/* ---- LOAD_MODEL ---- */

typedef struct {
    char *deployment, *name, *path, *digest, *quantize, *text;
    const model_entry_t *entry;
} load_t;

static void on_loaded(shell_t *shell, void *take_data)
{
    load_t *load = take_data;
    if (load->entry)
        log_info("deployment %s: tokenizer and template of %s are open", load->deployment,
                 load->name);
    shell_event(shell,
                &(core_event_t){.kind = CORE_EVENT_MODEL,
                                .model = {load->deployment, load->digest, load->quantize,
                                          load->entry ? load->entry->tokenizer : NULL,
                                          load->entry ? &load->entry->sizes : NULL, load->text}});
    free(load->deployment);
    free(load->name);
    free(load->path);
    free(load->digest);
    free(load->quantize);
    free(load->text);
    free(load);
}

static void do_load(shell_t *shell, void *take_data)
{
    load_t *load = take_data;
    char *path = NULL;
    status_t status = models_find_file(shell, load->path, load->name, &path);
    if (status == STATUS_OK)
        status = models_entry(shell, path, load->digest, load->quantize, &load->entry);
    load->text = mem_strdup(status == STATUS_OK ? "" : status_text());
    if (status != STATUS_OK)
        log_error("deployment %s: %s", load->deployment, load->text);
    free(path);
    shell_post(shell, on_loaded, load);
}

void models_load(shell_t *shell, const core_action_t *action)
{
    load_t *load = MEM_NEW(load_t);
    load->deployment = mem_strdup(action->load_model.deployment);
    load->name = mem_strdup(action->load_model.model_name);
    load->path = mem_strdup(action->load_model.path ? action->load_model.path : "");
    load->digest = mem_strdup(action->load_model.digest);
    load->quantize = mem_strdup(action->load_model.quantize);
    shell_work(shell, do_load, load);
}
