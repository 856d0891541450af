/* Digests of models and texts, and the cache that saves hashing a model at each start. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/model.h"
#include "common/model/model_files.h"

enum { CACHE_BYTES_MAX = 1024 };
static const char prefix[] = "sha256:";

void model_text_identity(const model_identity_t *identity, char hex_out[DIGEST_HEX_SIZE])
{
    char version[16];
    snprintf(version, sizeof version, "%u", identity->numerics_version);
    const char *fields[] = {
        "shoal text identity 1", identity->model_digest, identity->activations,
        identity->kv_type,       version,                identity->backend,
        identity->adapter,
    };
    digest_t *digest = digest_start();
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        digest_add_field(digest, fields[i], strlen(fields[i]));
    /* A further field only where there is one, so that what is not quantized keeps its identity. */
    if (identity->quantize && identity->quantize[0])
        digest_add_field(digest, identity->quantize, strlen(identity->quantize));
    digest_finish(digest, hex_out);
}

static bool is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static status_t check_file_inside(const char *dir, const char *path)
{
    char *real_dir = realpath(dir, NULL);
    char *real_path = real_dir ? realpath(path, NULL) : NULL;
    status_t status = STATUS_OK;
    if (real_path == NULL) {
        const char *missing = real_dir ? path : dir;
        status = fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot resolve: %s",
                      missing, strerror(errno));
    } else {
        size_t n = strlen(real_dir);
        if (n > 0 && real_dir[n - 1] == '/') /* only the root folder */
            n--;
        if (strncmp(real_dir, real_path, n) != 0 || real_path[n] != '/')
            status = fail(STATUS_REFUSED, "%s: leads to %s, outside the model folder %s", path,
                          real_path, dir);
    }
    free(real_dir);
    free(real_path);
    return status;
}

static status_t check_parts_inside(const char *dir, const char *path)
{
    char *home;
    uint32_t n = gguf_parts(path, &home);
    status_t status = STATUS_OK;
    for (uint32_t i = 1; n > 1 && i <= n && status == STATUS_OK; i++) {
        char *part = gguf_part_beside(home, i);
        status = check_file_inside(dir, part);
        free(part);
    }
    free(home);
    return status;
}

status_t model_check_inside(const char *dir, const char *path)
{
    TRY(check_file_inside(dir, path));
    if (!is_folder(path))
        return check_parts_inside(dir, path);
    model_files_t files = {0};
    status_t status = model_files_list(path, &files);
    for (size_t i = 0; i < files.n && status == STATUS_OK; i++) {
        char *file = mem_format("%s/%s", path, files.names[i]);
        status = check_file_inside(dir, file);
        free(file);
    }
    model_files_release(&files);
    return status;
}

/* --- the cache --- */

static char *cache_file(const char *cache_dir, const char *path)
{
    char *real_path = realpath(path, NULL);
    char hex[DIGEST_HEX_SIZE];
    const char *key = real_path ? real_path : path;
    digest_of_bytes(key, strlen(key), hex);
    free(real_path);
    return mem_format("%s/%.32s.digest", cache_dir, hex);
}

/* What must be unchanged for the cached digest to hold. The change time is in it because the
 * modification time can be set by hand. */
static char *stamp_of(const struct stat *info)
{
    return mem_format("shoal-digest 1 dev %llu inode %llu size %lld mtime %lld.%09ld ctime "
                      "%lld.%09ld\n",
                      (unsigned long long)info->st_dev, (unsigned long long)info->st_ino,
                      (long long)info->st_size, (long long)info->st_mtim.tv_sec,
                      info->st_mtim.tv_nsec, (long long)info->st_ctim.tv_sec,
                      info->st_ctim.tv_nsec);
}

/* A cache file is the stamp, the digest, and a digest over these two lines: torn or edited files
 * are not believed. */
static char *cache_content(const char *stamp, const char *digest)
{
    char *body = mem_format("%s%s\n", stamp, digest);
    char check[DIGEST_HEX_SIZE];
    digest_of_bytes(body, strlen(body), check);
    char *content = mem_format("%s%s\n", body, check);
    free(body);
    return content;
}

static bool read_cache(const char *file, const char *stamp, char digest_out[MODEL_DIGEST_SIZE])
{
    char text[CACHE_BYTES_MAX];
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    size_t stamp_size = strlen(stamp);
    if (n < (ssize_t)(stamp_size + MODEL_DIGEST_SIZE))
        return false;
    text[n] = 0;
    char digest[MODEL_DIGEST_SIZE];
    memcpy(digest, text + stamp_size, MODEL_DIGEST_SIZE - 1);
    digest[MODEL_DIGEST_SIZE - 1] = 0;
    char *expected = cache_content(stamp, digest);
    bool right = strcmp(expected, text) == 0;
    free(expected);
    if (right)
        memcpy(digest_out, digest, MODEL_DIGEST_SIZE);
    return right;
}

/* By renaming, so that a reader sees a whole file or none. Failing costs the next start its
 * time. */
static void write_cache(const char *file, const char *stamp, const char *digest)
{
    char *content = cache_content(stamp, digest);
    char *fresh = mem_format("%s.%ld.new", file, (long)getpid());
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd >= 0) {
        size_t size = strlen(content);
        bool written = write(fd, content, size) == (ssize_t)size;
        written = close(fd) == 0 && written;
        if (!written || rename(fresh, file) != 0)
            unlink(fresh);
    }
    free(fresh);
    free(content);
}

static status_t stat_model(const char *path, struct stat *out)
{
    if (stat(path, out) != 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot stat: %s", path,
                    strerror(errno));
    return STATUS_OK;
}

static status_t compute(const char *path, const char *stamp, char digest_out[MODEL_DIGEST_SIZE])
{
    char hex[DIGEST_HEX_SIZE];
    TRY(digest_of_file(path, hex));
    struct stat after;
    TRY(stat_model(path, &after));
    char *stamp_after = stamp_of(&after);
    bool same = strcmp(stamp, stamp_after) == 0;
    free(stamp_after);
    if (!same)
        return fail(STATUS_IO, "%s: the file changed while it was read; models are placed by "
                    "renaming", path);
    snprintf(digest_out, MODEL_DIGEST_SIZE, "%s%s", prefix, hex);
    return STATUS_OK;
}

static status_t digest_of_one(const char *path, const char *cache_dir,
                              char digest_out[MODEL_DIGEST_SIZE])
{
    struct stat before;
    TRY(stat_model(path, &before));
    char *stamp = stamp_of(&before);
    char *file = cache_dir ? cache_file(cache_dir, path) : NULL;
    status_t status = STATUS_OK;
    if (file == NULL || !read_cache(file, stamp, digest_out)) {
        status = compute(path, stamp, digest_out);
        if (status == STATUS_OK && file != NULL)
            write_cache(file, stamp, digest_out);
    }
    free(stamp);
    free(file);
    return status;
}

/* The names and digests of a directory's files, in the order of the names. Each file is cached by
 * itself, so that a changed configuration does not cost reading the weights again. */
static status_t digest_of_folder(const char *path, const char *cache_dir,
                                 char digest_out[MODEL_DIGEST_SIZE])
{
    static const char head[] = "shoal model directory 1";
    model_files_t files = {0};
    digest_t *digest = digest_start();
    digest_add_field(digest, head, sizeof head - 1);
    status_t status = model_files_list(path, &files);
    for (size_t i = 0; i < files.n && status == STATUS_OK; i++) {
        char one[MODEL_DIGEST_SIZE];
        char *file = mem_format("%s/%s", path, files.names[i]);
        status = digest_of_one(file, cache_dir, one);
        free(file);
        digest_add_field(digest, files.names[i], strlen(files.names[i]));
        if (status == STATUS_OK)
            digest_add_field(digest, one, strlen(one));
    }
    model_files_release(&files);
    if (status != STATUS_OK) {
        digest_drop(digest);
        return status;
    }
    char hex[DIGEST_HEX_SIZE];
    digest_finish(digest, hex);
    snprintf(digest_out, MODEL_DIGEST_SIZE, "%s%s", prefix, hex);
    return STATUS_OK;
}

/* The digests of a split model's files in their order; their names do not matter. */
static status_t digest_of_parts(const char *home, uint32_t n, const char *cache_dir,
                                char digest_out[MODEL_DIGEST_SIZE])
{
    static const char head[] = "shoal split model 1";
    char hex[DIGEST_HEX_SIZE];
    status_t status = STATUS_OK;
    digest_t *digest = digest_start();
    digest_add_field(digest, head, sizeof head - 1);
    for (uint32_t i = 1; i <= n && status == STATUS_OK; i++) {
        char one[MODEL_DIGEST_SIZE];
        char *part = gguf_part_beside(home, i);
        status = digest_of_one(part, cache_dir, one);
        free(part);
        if (status == STATUS_OK)
            digest_add_field(digest, one, strlen(one));
    }
    if (status != STATUS_OK) {
        digest_drop(digest);
        return status;
    }
    digest_finish(digest, hex);
    snprintf(digest_out, MODEL_DIGEST_SIZE, "%s%s", prefix, hex);
    return STATUS_OK;
}

status_t model_digest(const char *path, const char *cache_dir, char digest_out[MODEL_DIGEST_SIZE])
{
    if (is_folder(path))
        return digest_of_folder(path, cache_dir, digest_out);
    char *home;
    uint32_t n = gguf_parts(path, &home);
    status_t status = n > 1 ? digest_of_parts(home, n, cache_dir, digest_out)
                            : digest_of_one(path, cache_dir, digest_out);
    free(home);
    return status;
}
