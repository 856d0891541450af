/* See up_models.h. */
#include "cli/up_models.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/model_files.h"

enum { NAMES_MAX = 100 };

/* The models folder of the local cluster that is meant; NULL when another one is. */
static char *local_folder(const cluster_options_t *where)
{
    char *data_dir = NULL, *folder = NULL;
    json_t *content = NULL;
    const char *endpoint = getenv("SHOAL_ENDPOINT");
    if (where->endpoint || (endpoint && endpoint[0]))
        return NULL;
    if (cluster_data_dir_find(where->data, &data_dir) == STATUS_OK &&
        cluster_file_read(data_dir, &content) == STATUS_OK)
        folder = mem_format("%s/models", data_dir);
    json_decref(content);
    free(data_dir);
    return folder;
}

static bool is_same_file(const char *a, const char *b)
{
    struct stat one, other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev &&
           one.st_ino == other.st_ino;
}

static bool could_be_model(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && (S_ISREG(info.st_mode) || model_files_are_in(path));
}

/* A link under the model's own name, or with a number when another model has that name already. */
static status_t put_link(const char *folder, const char *path)
{
    const char *base = strrchr(path, '/') + 1, *ending = model_files_are_in(path) ? "" : ".gguf";
    size_t stem = strlen(base);
    if (stem > 5 && strcmp(base + stem - 5, ".gguf") == 0)
        stem -= 5;
    for (int i = 1; i <= NAMES_MAX; i++) {
        char number[16] = "";
        if (i > 1)
            snprintf(number, sizeof number, "-%d", i);
        char *link = mem_format("%s/%.*s%s%s", folder, (int)stem, base, number, ending);
        bool done = is_same_file(link, path) || symlink(path, link) == 0;
        int error = errno;
        free(link);
        if (done)
            return STATUS_OK;
        if (error != EEXIST)
            return fail(STATUS_IO, "cannot put a link to %s into %s: %s", path, folder,
                        strerror(error));
    }
    return fail(STATUS_CONFLICT, "%s holds %d models called %s; remove those that are not used",
                folder, NAMES_MAX, base);
}

status_t up_offer_model(const cluster_options_t *where, const char *path, char **own_path_out)
{
    char *folder = local_folder(where), *real = folder ? model_file_real(path) : NULL;
    status_t status = STATUS_OK;
    /* A split model has one link, to its first file, by whichever of its files it was named. */
    char *home = NULL;
    if (real && gguf_parts(real, &home) > 1) {
        free(real);
        real = gguf_part_beside(home, 1);
    }
    free(home);
    /* What is not here, or no model, is the coordinator's to refuse: it may know it by another
     * name. */
    if (real && could_be_model(real))
        status = put_link(folder, real);
    if (status == STATUS_OK)
        *own_path_out = mem_strdup(real ? real : path);
    free(real);
    free(folder);
    return status;
}
