/* See cluster_file.h. */
#include "cli/cluster_file.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"

/* mkdir -p. */
static status_t make_directories(const char *path)
{
    char *copy = mem_strdup(path);
    for (char *at = copy + 1;; at++) {
        if (*at != '/' && *at != 0)
            continue;
        char end = *at;
        *at = 0;
        if (mkdir(copy, 0755) != 0 && errno != EEXIST) {
            status_t status = fail(STATUS_IO, "cannot make the directory %s: %s", copy, strerror(errno));
            free(copy);
            return status;
        }
        *at = end;
        if (end == 0)
            break;
    }
    free(copy);
    return STATUS_OK;
}

/* Where the data directory is to be. */
static status_t choose_data_dir(const char *data, char **own_out)
{
    const char *home = getenv("HOME");
    const char *state = getenv("XDG_STATE_HOME");
    if (data != NULL && data[0] != 0)
        *own_out = mem_strdup(data);
    else if (state != NULL && state[0] == '/')
        *own_out = mem_format("%s/shoal", state);
    else if (home != NULL && home[0] == '/')
        *own_out = mem_format("%s/.local/state/shoal", home);
    else
        return fail(STATUS_INVALID, "HOME is not set; give --data DIR");
    return STATUS_OK;
}

status_t cluster_data_dir(const char *data, char **own_out)
{
    char *wanted;
    TRY(choose_data_dir(data, &wanted));
    status_t status = make_directories(wanted);
    char real[PATH_MAX];
    if (status == STATUS_OK && realpath(wanted, real) == NULL)
        status = fail(STATUS_IO, "cannot use %s: %s", wanted, strerror(errno));
    free(wanted);
    if (status == STATUS_OK)
        *own_out = mem_strdup(real);
    return status;
}

status_t cluster_data_dir_find(const char *data, char **own_out)
{
    char *wanted;
    TRY(choose_data_dir(data, &wanted));
    char real[PATH_MAX];
    status_t status = STATUS_OK;
    if (realpath(wanted, real) != NULL)
        *own_out = mem_strdup(real);
    else if (errno != ENOENT)
        status = fail(STATUS_IO, "cannot use %s: %s", wanted, strerror(errno));
    else if (data != NULL && data[0] != 0)
        status = fail(STATUS_NOT_FOUND, "--data: %s is no cluster's directory: it does not exist",
                      wanted);
    else
        status = fail(STATUS_UNREACHABLE,
                      "no cluster is up in %s; start one with `shoal up`, or give --endpoint", wanted);
    free(wanted);
    return status;
}

status_t cluster_file_read(const char *data_dir, json_t **own_out)
{
    char *path = mem_format("%s/cluster.json", data_dir);
    json_error_t error;
    status_t status = STATUS_OK;
    json_t *content = NULL;
    if (access(path, F_OK) != 0)
        status = fail(STATUS_UNREACHABLE, "no cluster is up in %s; start one with `shoal up`",
                      data_dir);
    else if ((content = json_load_file(path, 0, &error)) == NULL || !json_is_object(content))
        status = fail(STATUS_INVALID, "%s line %d: %s; remove it and run `shoal up` again", path,
                      content ? 1 : error.line, content ? "not an object" : error.text);
    free(path);
    if (status == STATUS_OK)
        *own_out = content;
    else
        json_decref(content);
    return status;
}

status_t cluster_file_write(const char *data_dir, const json_t *content)
{
    char *path = mem_format("%s/cluster.json", data_dir);
    char *fresh = mem_format("%s/cluster.json.new", data_dir);
    status_t status = STATUS_OK;
    if (json_dump_file(content, fresh, JSON_INDENT(2)) != 0 || rename(fresh, path) != 0)
        status = fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    free(path);
    free(fresh);
    return status;
}

static status_t split_endpoints(const char *list, char *own_out[ENDPOINTS_MAX], size_t *n_out)
{
    size_t n = 0;
    for (const char *at = list; *at != 0;) {
        size_t length = strcspn(at, ",");
        if (length > 0 && n < ENDPOINTS_MAX)
            own_out[n++] = mem_strndup(at, length);
        at += length + (at[length] == ',');
    }
    if (n == 0)
        return fail(STATUS_INVALID, "--endpoint: \"%s\" names no coordinator; write HOST:PORT", list);
    *n_out = n;
    return STATUS_OK;
}

status_t cluster_endpoints(const cluster_options_t *where, char *own_out[ENDPOINTS_MAX], size_t *n_out)
{
    if (where->endpoint != NULL && where->endpoint[0] != 0)
        return split_endpoints(where->endpoint, own_out, n_out);
    char *dir;
    TRY(cluster_data_dir_find(where->data, &dir));
    json_t *content;
    status_t status = cluster_file_read(dir, &content);
    if (status == STATUS_OK) {
        const json_t *list = json_object_get(content, "coordinators");
        size_t n = 0;
        for (size_t i = 0; i < json_array_size(list) && n < ENDPOINTS_MAX; i++)
            if (json_is_string(json_array_get(list, i)))
                own_out[n++] = mem_strdup(json_string_value(json_array_get(list, i)));
        *n_out = n;
        if (n == 0)
            status = fail(STATUS_NOT_FOUND, "%s/cluster.json names no coordinator; run `shoal up`", dir);
        json_decref(content);
    } else if (status == STATUS_UNREACHABLE) {
        status = fail(status, "no cluster is up in %s; start one with `shoal up`, or give --endpoint",
                      dir);
    }
    free(dir);
    return status;
}
