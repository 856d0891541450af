/* The model room of the coordinator: opens a deployment's file for its tokenizer, its chat template
 * and its sizes, never for its weights. With --models given files are found inside those folders
 * alone, because a deployment is named by whoever may deploy, not by who owns this machine. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/model/chat.h"
#include "common/model/model.h"
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

static const model_entry_t *entry_of_digest(models_t *models, const char *digest)
{
    const model_entry_t *found = NULL;
    pthread_mutex_lock(&models->lock);
    for (size_t i = 0; i < models->n; i++)
        if (strcmp(models->entries[i]->digest, digest) == 0)
            found = models->entries[i];
    pthread_mutex_unlock(&models->lock);
    return found;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_file(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

/* "smol" or "smol.gguf" for the file smol.gguf. */
static bool names_file(const char *name, const char *file)
{
    size_t n = strlen(name);
    return n && strncmp(name, file, n) == 0 && (!file[n] || strcmp(file + n, ".gguf") == 0);
}

static status_t not_found(const char *models, const char *path, const char *name)
{
    return fail(STATUS_NOT_FOUND,
                "model \"%s\" (\"%s\") is not under this coordinator's --models %s", name, path,
                models);
}

/* One entry of --models: a file stands for itself, a folder for the files in it. */
static char *find_in(const char *models, const char *path, const char *name)
{
    if (is_file(models))
        return names_file(base_name(path), base_name(models)) ||
                       names_file(name, base_name(models))
                   ? mem_strdup(models)
                   : NULL;
    char *tries[4] = {
        path[0] == '/' ? mem_strdup(path) : mem_format("%s/%s", models, path),
        mem_format("%s/%s", models, base_name(path)),
        mem_format("%s/%s.gguf", models, base_name(path)),
        mem_format("%s/%s.gguf", models, base_name(name)),
    };
    char *found = NULL;
    for (size_t i = 0; i < 4; i++) {
        if (!found && is_file(tries[i]) && model_check_inside(models, tries[i]) == STATUS_OK)
            found = tries[i];
        else
            free(tries[i]);
    }
    return found;
}

status_t models_find_file(const shell_t *shell, const char *path, const char *name,
                          char **own_path_out)
{
    const char *models = shell->options.models;
    if (!models) {
        if (!is_file(path))
            return fail(STATUS_NOT_FOUND, "model file %s is not on this coordinator's machine; "
                        "without --models the path must be the one that coordinators see", path);
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

status_t models_encode(const model_entry_t *entry, const request_t *request, token_ids_t *out)
{
    switch (request->kind) {
    case REQUEST_PROMPT:
        return tokenizer_encode(entry->tokenizer, request->prompt, request->prompt_bytes,
                                TOKENIZE_PLAIN, PROMPT_IDS_MAX, out);
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
        for (size_t i = 0; i < request->n_ids; i++)
            token_ids_append(out, request->ids[i]);
        return STATUS_OK;
    }
    return STATUS_INTERNAL;
}

static status_t open_entry(const char *path, const char *digest, model_entry_t **own_out)
{
    model_t *model;
    TRY(model_open(path, &model));
    model_entry_t *entry = MEM_NEW(model_entry_t);
    const gguf_t *gguf = model_gguf(model); /* NULL for a directory, whose files lie beside it */
    status_t status = tokenizer_open(path, &entry->tokenizer);
    if (status == STATUS_OK) {
        status = gguf ? chat_template_from_gguf(gguf, &entry->chat)
                      : chat_template_from_folder(path, NULL, &entry->chat);
        if (status == STATUS_NOT_FOUND)
            status = STATUS_OK; /* then `messages` is refused, and raw prompts still run */
    }
    if (status == STATUS_OK) {
        plan_sizes(model, &entry->sizes);
        entry->context_train = model_config(model)->context_train;
        entry->digest = mem_strdup(digest);
        *own_out = entry;
    } else {
        if (entry->tokenizer)
            tokenizer_release(entry->tokenizer);
        free(entry);
    }
    model_close(model);
    return status;
}

status_t models_entry(shell_t *shell, const char *path, const char *digest,
                      const model_entry_t **out)
{
    models_t *models = shell->models;
    char found[MODEL_DIGEST_SIZE];
    TRY(model_digest(path, shell->options.data, found));
    if (digest[0] && strcmp(digest, found) != 0)
        return fail(STATUS_CONFLICT, "model file %s has digest %s; the deployment wants %s", path,
                    found, digest);
    *out = entry_of_digest(models, found);
    if (*out)
        return STATUS_OK;
    model_entry_t *entry;
    TRY(open_entry(path, found, &entry));
    pthread_mutex_lock(&models->lock);
    /* Two workers may have opened the same file; both entries stay, either is right. */
    MEM_GROW(models->entries, models->capacity, models->n + 1);
    models->entries[models->n++] = entry;
    pthread_mutex_unlock(&models->lock);
    *out = entry;
    return STATUS_OK;
}

/* ---- LOAD_MODEL ---- */

typedef struct {
    char *deployment, *name, *path, *digest, *text;
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
                                .model = {load->deployment, load->digest,
                                          load->entry ? load->entry->tokenizer : NULL,
                                          load->entry ? &load->entry->sizes : NULL, load->text}});
    free(load->deployment);
    free(load->name);
    free(load->path);
    free(load->digest);
    free(load->text);
    free(load);
}

static void do_load(shell_t *shell, void *take_data)
{
    load_t *load = take_data;
    char *path = NULL;
    status_t status = models_find_file(shell, load->path, load->name, &path);
    if (status == STATUS_OK)
        status = models_entry(shell, path, load->digest, &load->entry);
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
    shell_work(shell, do_load, load);
}
