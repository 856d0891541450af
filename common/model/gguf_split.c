/* Models that are split into several GGUF files: their names, and that the files found are together
 * one model. The first file has all keys, the others only those about the split; some have the
 * first file without tensors. See gguf.h. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/model/gguf_internal.h"

static const char key_no[] = "split.no", key_count[] = "split.count",
                  key_tensors[] = "split.tensors.count";
#define ENDING "-00000-of-00000.gguf"
enum { ENDING_BYTES = sizeof ENDING - 1, DIGITS = 5, LINKS_MAX = 8 };

/* --- names --- */

static bool read_digits(const char *text, uint32_t *out)
{
    *out = 0;
    for (size_t i = 0; i < DIGITS; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *out = *out * 10 + (uint32_t)(text[i] - '0');
    }
    return true;
}

bool gguf_part_name(const char *path, gguf_part_name_t *out)
{
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    size_t n = strlen(name);
    gguf_part_name_t found;
    if (n <= ENDING_BYTES)
        return false;
    const char *end = name + n - ENDING_BYTES;
    if (end[0] != '-' || strncmp(end + 1 + DIGITS, "-of-", 4) != 0 ||
        strcmp(end + ENDING_BYTES - 5, ".gguf") != 0 || !read_digits(end + 1, &found.part) ||
        !read_digits(end + 5 + DIGITS, &found.count) || found.part == 0 ||
        found.part > found.count || found.count > GGUF_FILES_MAX)
        return false;
    found.stem = (size_t)(end - path);
    if (out != NULL)
        *out = found;
    return true;
}

char *gguf_part_beside(const char *home, uint32_t part)
{
    gguf_part_name_t name;
    CHECK(gguf_part_name(home, &name) && part > 0 && part <= name.count);
    return mem_format("%.*s-%05u-of-%05u.gguf", (int)name.stem, home, part, name.count);
}

/* Where a link leads, by one step; NULL when it is none. */
static char *follow(const char *path)
{
    char target[PATH_MAX];
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n <= 0)
        return NULL;
    target[n] = 0;
    const char *slash = strrchr(path, '/');
    if (target[0] == '/' || slash == NULL)
        return mem_strdup(target);
    return mem_format("%.*s/%s", (int)(slash - path), path, target);
}

static bool has_others(const char *path)
{
    gguf_part_name_t name;
    bool has = gguf_part_name(path, &name);
    for (uint32_t i = 1; has && i <= name.count; i++) {
        char *part = gguf_part_beside(path, i);
        has = i == name.part || access(part, F_OK) == 0;
        free(part);
    }
    return has;
}

/* NULL when neither the path nor what it leads to is named like a part. */
static char *find_home(const char *path)
{
    char *at = mem_strdup(path), *first = NULL;
    for (int i = 0; at != NULL && i < LINKS_MAX && !has_others(at); i++) {
        char *next = follow(at);
        if (first == NULL && gguf_part_name(at, NULL))
            first = at;
        else
            free(at);
        at = next;
    }
    if (at == NULL || !has_others(at)) { /* of one whose others are missing the first place is told */
        free(at);
        return first;
    }
    free(first);
    return at;
}

uint32_t gguf_parts(const char *path, char **own_home_out)
{
    gguf_part_name_t name;
    *own_home_out = find_home(path);
    if (*own_home_out != NULL && gguf_part_name(*own_home_out, &name) && name.count > 1)
        return name.count;
    free(*own_home_out);
    *own_home_out = NULL;
    return 1;
}

/* --- what a file says of itself --- */

typedef struct {
    uint32_t no, count, n_tensors; /* no from 0; n_tensors of all files */
} split_t;

bool gguf_is_part(const gguf_t *gguf)
{
    uint32_t count;
    const gguf_value_t *value = gguf_find(gguf, key_count);
    /* A count that is none is told when it is read again. */
    return value != NULL && gguf_read_u32(gguf, key_count, 0, 1, &count) != STATUS_OK;
}

static status_t read_key(const gguf_t *gguf, const char *key, uint32_t min, uint32_t max,
                         uint32_t *out)
{
    if (gguf_find(gguf, key) == NULL)
        return fail(STATUS_INVALID, "%s: key %s is missing; it is a file of no split model, or of "
                    "another one", gguf->label, key);
    return gguf_read_u32(gguf, key, min, max, out);
}

static status_t read_split(const gguf_t *gguf, split_t *out)
{
    TRY(read_key(gguf, key_count, 1, GGUF_FILES_MAX, &out->count));
    TRY(read_key(gguf, key_no, 0, out->count - 1, &out->no));
    return read_key(gguf, key_tensors, 0, GGUF_TENSORS_MAX, &out->n_tensors);
}

/* --- one model --- */

static bool same_value(const gguf_value_t *a, const gguf_value_t *b)
{
    if (a->kind != b->kind || a->count != b->count)
        return false;
    if (a->kind == GGUF_TEXT)
        return a->bytes == b->bytes && memcmp(a->data, b->data, (size_t)a->bytes) == 0;
    if (a->kind != GGUF_ARRAY)
        return memcmp(a->data, b->data, gguf_kind_bytes(a->kind)) == 0;
    if (a->element != b->element)
        return false;
    if (a->element != GGUF_TEXT)
        return memcmp(a->data, b->data, (size_t)(a->count * gguf_kind_bytes(a->element))) == 0;
    for (uint64_t i = 0; i < a->count; i++) {
        gguf_text_t left = gguf_array_text(a, i), right = gguf_array_text(b, i);
        if (left.size != right.size || memcmp(left.data, right.data, left.size) != 0)
            return false;
    }
    return true;
}

/* A key that a later file has as well must say the same. How a file aligns its data is its own. */
static status_t check_keys(const gguf_t *first, const gguf_t *part)
{
    for (size_t i = 0; i < part->n_values; i++) {
        const gguf_value_t *value = &part->values[i];
        if (gguf_text_is(value->key, key_no) || gguf_text_is(value->key, "general.alignment"))
            continue;
        gguf_shown_t key = gguf_show(value->key.data, value->key.size);
        char *name = mem_strndup(value->key.data, value->key.size);
        const gguf_value_t *other = gguf_find(first, name);
        free(name);
        if (other != NULL && !same_value(value, other))
            return fail(STATUS_INVALID, "%s: key %s is not what it is in the first file, %s: a file "
                        "of another model", part->label, key.text, first->label);
    }
    return STATUS_OK;
}

static status_t check_part(const gguf_t *part, const split_t *model, uint32_t no)
{
    split_t own;
    TRY(read_split(part, &own));
    if (own.count != model->count || own.no != no)
        return fail(STATUS_INVALID, "%s: by its keys it is file %u of %u; %u of %u would be right",
                    part->label, own.no + 1, own.count, no + 1, model->count);
    if (own.n_tensors != model->n_tensors)
        return fail(STATUS_INVALID, "%s: %s is %u, and %u in the file that was opened: a file of "
                    "another model", part->label, key_tensors, own.n_tensors, model->n_tensors);
    return STATUS_OK;
}

/* Fills the empty places of `parts` with what stands beside `home`. */
static status_t open_others(const gguf_t *opened, const char *home, const split_t *model,
                            gguf_t **parts)
{
    for (uint32_t i = 0; i < model->count; i++) {
        if (parts[i] != NULL)
            continue;
        char *path = gguf_part_beside(home, i + 1);
        status_t status = gguf_open_file(path, &parts[i]);
        if (status == STATUS_NOT_FOUND)
            status = fail(STATUS_INVALID, "%s: file %u of %u of this model, %s, is not there",
                          opened->label, i + 1, model->count, strrchr(path, '/') != NULL
                              ? strrchr(path, '/') + 1 : path);
        free(path);
        TRY(status);
        TRY(check_part(parts[i], model, i));
    }
    return STATUS_OK;
}

static int compare_names(const void *left, const void *right)
{
    return strcmp((*(gguf_tensor_t *const *)left)->name, (*(gguf_tensor_t *const *)right)->name);
}

/* The first file's list becomes that of all files. */
static status_t join_tensors(gguf_t *const *parts, const split_t *model)
{
    gguf_t *first = parts[0];
    size_t n = 0;
    for (uint32_t i = 0; i < model->count; i++)
        n += parts[i]->n_tensors;
    if (n != model->n_tensors)
        return fail(STATUS_INVALID, "%s: its %u files have %zu tensors; %s says %u", first->label,
                    model->count, n, key_tensors, model->n_tensors);
    gguf_tensor_t *tensors = ARENA_NEW_ARRAY(&first->arena, gguf_tensor_t, n);
    gguf_tensor_t **by_name = ARENA_NEW_ARRAY(&first->arena, gguf_tensor_t *, n);
    size_t at = 0;
    for (uint32_t p = 0; p < model->count; p++)
        for (size_t i = 0; i < parts[p]->n_tensors; i++, at++) {
            tensors[at] = parts[p]->tensors[i];
            by_name[at] = &tensors[at];
        }
    if (n > 0)
        qsort(by_name, n, sizeof *by_name, compare_names);
    for (size_t i = 1; i < n; i++)
        if (strcmp(by_name[i - 1]->name, by_name[i]->name) == 0)
            return fail(STATUS_INVALID, "%s: tensor %s is in two files of this model",
                        first->label, by_name[i]->name);
    first->tensors = tensors;
    first->by_name = by_name;
    first->n_tensors = n;
    return STATUS_OK;
}

/* The name must say what the keys say: the others are found by it. */
static status_t check_name(const gguf_t *opened, const char *home, const split_t *model)
{
    gguf_part_name_t name;
    if (home != NULL && gguf_part_name(home, &name) && name.count == model->count &&
        name.part == model->no + 1)
        return STATUS_OK;
    return fail(STATUS_INVALID, "%s: by its keys it is file %u of %u, so its name must end in "
                "-%05u-of-%05u.gguf", opened->label, model->no + 1, model->count, model->no + 1,
                model->count);
}

status_t gguf_open_parts(gguf_t *take_part, gguf_t **own_out)
{
    split_t model = {0};
    gguf_t **parts = NULL;
    char *home = find_home(take_part->path);
    status_t status = read_split(take_part, &model);
    if (status == STATUS_OK)
        status = check_name(take_part, home, &model);
    if (status != STATUS_OK) {
        free(home);
        gguf_close(take_part);
        return status;
    }
    parts = MEM_NEW_ARRAY(gguf_t *, model.count);
    parts[model.no] = take_part;
    status = open_others(take_part, home, &model, parts);
    free(home);
    for (uint32_t i = 1; i < model.count && status == STATUS_OK; i++)
        status = check_keys(parts[0], parts[i]);
    if (status == STATUS_OK)
        status = join_tensors(parts, &model);
    if (status != STATUS_OK) {
        for (uint32_t i = 0; i < model.count; i++)
            gguf_close(parts[i]);
        free(parts);
        return status;
    }
    gguf_t *first = parts[0];
    first->n_more = model.count - 1;
    first->more = MEM_NEW_ARRAY(gguf_t *, first->n_more);
    memcpy(first->more, parts + 1, first->n_more * sizeof *parts);
    free(parts);
    *own_out = first;
    return STATUS_OK;
}
