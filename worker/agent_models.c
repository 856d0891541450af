/* Looking for models: see agent_models.h. What is there is read only when two looks in a row found it
 * the same, because a model that is being copied is not one yet; or at once when none of its files
 * has changed for a while, as behind a link that was just made. */
#include "worker/agent_models.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/model.h"
#include "common/model/model_files.h"

struct agent_models {
    char *list, *data_dir;
    int event;
    pthread_t thread;
    bool started;
    uint64_t seen; /* look() of what was read last; the thread's */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Under the mutex. */
    bool closing, fresh;
    agent_host_t found; /* only its models; own */
};

static bool is_gguf(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".gguf") == 0;
}

/* Told each candidate: a GGUF file, or the directory of one model. */
typedef void (*visit_fn)(void *context, const char *path);

/* A split model is offered once, by its first file. */
static bool is_later_part(const char *path)
{
    gguf_part_name_t name;
    if (!gguf_part_name(path, &name) || name.part == 1)
        return false;
    char *first = mem_format("%.*s-%05u-of-%05u.gguf", (int)name.stem, path, 1u, name.count);
    bool later = access(first, F_OK) == 0;
    free(first);
    return later;
}

static bool is_candidate(const char *path, const char *name)
{
    struct stat about;
    if (name[0] == '.' || stat(path, &about) != 0)
        return false;
    if (S_ISDIR(about.st_mode))
        return model_files_are_in(path);
    return is_gguf(name) && !is_later_part(path);
}

static void visit_folder(const char *path, visit_fn visit, void *context)
{
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char one[1024];
        if (snprintf(one, sizeof one, "%s/%s", path, names[i]->d_name) < (int)sizeof one &&
            is_candidate(one, names[i]->d_name))
            visit(context, one);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
}

/* Every candidate under the list, in order. A folder that is named is a model itself when it has a
 * config.json, and else a folder of models. INVALID names the first path that is not there, after
 * all the others were visited. */
static status_t visit_all(const char *list, visit_fn visit, void *context, bool *has_folder_out)
{
    char *words = mem_strdup(list), *rest = words;
    status_t status = STATUS_OK;
    for (char *word; (word = strsep(&rest, ","));) {
        struct stat about;
        if (word[0] == 0)
            continue;
        /* Ranks are started elsewhere than where this was typed. */
        char *path = model_file_real(word);
        if (!path || stat(path, &about) != 0) {
            if (status == STATUS_OK)
                status = fail(STATUS_INVALID, "--models: cannot read %s: %m", word);
        } else if (S_ISDIR(about.st_mode) && !model_files_are_in(path)) {
            *has_folder_out = true;
            visit_folder(path, visit, context);
        } else {
            visit(context, path);
        }
        free(path);
    }
    free(words);
    return status;
}

/* ---- looking ---- */

/* Since a file was changed, renamed or given another time. */
enum { SETTLED_S = 2 };

typedef struct {
    uint64_t sum;
    int64_t youngest_s; /* when the last change of any file was */
} look_t;

static void mix(uint64_t *sum, const void *bytes, size_t n)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < n; i++)
        *sum = (*sum ^ at[i]) * 0x100000001b3u; /* FNV-1a */
}

static void later(look_t *look, int64_t s)
{
    look->youngest_s = s > look->youngest_s ? s : look->youngest_s;
}

static void mix_file(look_t *look, const char *path)
{
    struct stat about;
    uint64_t *sum = &look->sum;
    mix(sum, path, strlen(path) + 1);
    if (stat(path, &about) != 0)
        return;
    const int64_t facts[] = {(int64_t)about.st_dev, (int64_t)about.st_ino, about.st_size,
                             about.st_mtim.tv_sec, about.st_mtim.tv_nsec};
    mix(sum, facts, sizeof facts);
    later(look, about.st_mtim.tv_sec);
    later(look, about.st_ctim.tv_sec);
}

/* Of a directory every file that is not hidden, whether it is part of the model or not: which ones
 * are stands in an index that is too long to be read each second. */
static void mix_model(void *context, const char *path)
{
    look_t *look = context;
    struct dirent **names;
    int n = model_files_are_in(path) ? scandir(path, &names, NULL, alphasort) : -1;
    mix_file(look, path);
    char *home;
    uint32_t n_parts = gguf_parts(path, &home);
    for (uint32_t i = 1; n_parts > 1 && i <= n_parts; i++) {
        char *part = gguf_part_beside(home, i);
        mix_file(look, part);
        free(part);
    }
    free(home);
    for (int i = 0; i < n; i++) {
        char file[4096];
        if (names[i]->d_name[0] != '.' &&
            snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name) < (int)sizeof file)
            mix_file(look, file);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
}

/* A number that changes when a model comes, goes or changes, and whether all have settled. */
static uint64_t look(const agent_models_t *models, bool *settled_out)
{
    look_t now = {.sum = 0xcbf29ce484222325u};
    bool has_folder;
    if (visit_all(models->list, mix_model, &now, &has_folder) != STATUS_OK)
        mix(&now.sum, "-", 1);
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    *settled_out = (int64_t)clock.tv_sec - now.youngest_s > SETTLED_S;
    return now.sum;
}

/* ---- reading ---- */

typedef struct {
    agent_host_t *host;
    const char *data_dir;
} reading_t;

static void add_model(void *context, const char *path)
{
    const reading_t *reading = context;
    agent_host_t *host = reading->host;
    model_t *model;
    agent_model_t one = {0};
    char *real = NULL;
    if (host->n_models == AGENT_MODELS_MAX) {
        log_warn("more than %d models; %s is left out", AGENT_MODELS_MAX, path);
        return;
    }
    /* Opening checks the whole structure: a broken model is named now, not when a plan wants it. */
    status_t status = model_open(path, &model);
    if (status == STATUS_OK) {
        snprintf(one.name, sizeof one.name, "%s", model_name(model));
        one.bytes = source_bytes(model_source(model));
        model_close(model);
        /* A link is a name; the model, and a file's seal beside it, are where it leads. */
        real = model_file_real(path);
        if (!real || strlen(real) >= sizeof one.path)
            status = fail(STATUS_INVALID, "its path cannot be resolved to less than %zu bytes",
                          sizeof one.path);
    }
    if (status == STATUS_OK)
        status = model_digest(real, reading->data_dir, one.digest);
    if (status != STATUS_OK) {
        log_warn("%s is left out: %s", path, status_text());
        free(real);
        return;
    }
    snprintf(one.path, sizeof one.path, "%s", real);
    free(real);
    host->models = mem_resize(host->models, host->n_models + 1, sizeof *host->models);
    host->models[host->n_models++] = one;
}

static status_t read_models(const agent_models_t *models, agent_host_t *host, bool *has_folder_out)
{
    reading_t reading = {host, models->data_dir};
    return visit_all(models->list, add_model, &reading, has_folder_out);
}

static void read_again(agent_models_t *models)
{
    agent_host_t found = {0};
    bool has_folder;
    uint64_t one = 1;
    /* A path that has gone since the start is offered no more, and is no reason to offer
     * nothing. */
    if (read_models(models, &found, &has_folder) != STATUS_OK)
        log_warn("%s", status_text());
    pthread_mutex_lock(&models->mutex);
    agent_host_release(&models->found);
    models->found = found;
    models->fresh = true;
    pthread_mutex_unlock(&models->mutex);
    if (write(models->event, &one, sizeof one) != (ssize_t)sizeof one)
        log_error("cannot tell of new models: %m");
}

/* Returns false when it is time to end. */
static bool pause_a_while(agent_models_t *models)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += AGENT_MODELS_LOOK_MS / 1000;
    pthread_mutex_lock(&models->mutex);
    int status = 0;
    while (!models->closing && status == 0)
        status = pthread_cond_timedwait(&models->changed, &models->mutex, &until);
    bool goes_on = !models->closing;
    pthread_mutex_unlock(&models->mutex);
    return goes_on;
}

static void *watch(void *argument)
{
    agent_models_t *models = argument;
    uint64_t before = models->seen;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* signals are the main thread's */
    while (pause_a_while(models)) {
        bool settled;
        uint64_t now = look(models, &settled);
        if ((now == before || settled) && now != models->seen) {
            models->seen = now;
            read_again(models);
        }
        before = now;
    }
    return NULL;
}

/* ---- the agent's side ---- */

status_t agent_models_open(const char *list, const char *data_dir, agent_host_t *host,
                           agent_models_t **own_out)
{
    agent_models_t *models = MEM_NEW(agent_models_t);
    pthread_condattr_t attributes;
    bool has_folder = false;
    models->list = mem_strdup(list);
    models->data_dir = mem_strdup(data_dir);
    models->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&models->mutex, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&models->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    bool settled;
    models->seen = look(models, &settled); /* before reading: what changes meanwhile is read again */
    status_t status = models->event < 0 ? fail(STATUS_INTERNAL, "cannot make an eventfd: %m")
                                        : read_models(models, host, &has_folder);
    if (status == STATUS_OK && host->n_models == 0 && !has_folder)
        status = fail(STATUS_INVALID, "--models %s: no readable model is there; a GGUF file or a "
                      "directory with a config.json would be one", list);
    if (status == STATUS_OK) {
        models->started = pthread_create(&models->thread, NULL, watch, models) == 0;
        if (!models->started)
            status = fail(STATUS_INTERNAL, "cannot start the thread that looks for models");
    }
    if (status != STATUS_OK) {
        agent_models_close(models);
        return status;
    }
    *own_out = models;
    return STATUS_OK;
}

int agent_models_fd(const agent_models_t *models)
{
    return models->event;
}

bool agent_models_take(agent_models_t *models, agent_host_t *host)
{
    uint64_t drained;
    if (read(models->event, &drained, sizeof drained) < 0)
        return false;
    pthread_mutex_lock(&models->mutex);
    bool fresh = models->fresh;
    if (fresh) {
        agent_host_release(host);
        host->models = models->found.models;
        host->n_models = models->found.n_models;
        models->found.models = NULL;
        models->found.n_models = 0;
        models->fresh = false;
    }
    pthread_mutex_unlock(&models->mutex);
    return fresh;
}

void agent_models_close(agent_models_t *take_models)
{
    agent_models_t *models = take_models;
    if (!models)
        return;
    pthread_mutex_lock(&models->mutex);
    models->closing = true;
    pthread_cond_signal(&models->changed);
    pthread_mutex_unlock(&models->mutex);
    if (models->started)
        pthread_join(models->thread, NULL);
    agent_host_release(&models->found);
    if (models->event >= 0)
        close(models->event);
    pthread_cond_destroy(&models->changed);
    pthread_mutex_destroy(&models->mutex);
    free(models->list);
    free(models->data_dir);
    free(models);
}
