/* Making a seal and checking a whole model against it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/manifest_internal.h"

enum { READ_BYTES = 256 * 1024, PROBLEM_BYTES = 256 };

/* --- the files of a model --- */

typedef struct {
    char *folder;
    char *seal; /* the seal's own path */
    size_t n, capacity;
    char **names; /* ascending */
} files_t;

static int text_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void files_release(files_t *files)
{
    for (size_t i = 0; i < files->n; i++)
        free(files->names[i]);
    free(files->names);
    free(files->folder);
    free(files->seal);
}

static void add_name(files_t *files, const char *name)
{
    MEM_GROW(files->names, files->capacity, files->n + 1);
    files->names[files->n++] = mem_strdup(name);
}

static bool is_folder(int dir_fd, const char *name)
{
    struct stat info;
    return fstatat(dir_fd, name, &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode);
}

static status_t list_folder(const char *path, files_t *files)
{
    files->folder = mem_strdup(path);
    DIR *dir = opendir(path);
    if (dir == NULL)
        return fail(STATUS_IO, "%s: cannot list: %s", path, strerror(errno));
    status_t status = STATUS_OK;
    for (struct dirent *entry; status == STATUS_OK && (entry = readdir(dir)) != NULL;) {
        const char *name = entry->d_name;
        if (name[0] == '.' || strcmp(name, "manifest.sha256") == 0 ||
            strcmp(name, "manifest.sha256.sig") == 0 || is_folder(dirfd(dir), name))
            continue;
        if (!manifest_name_is_good(name, strlen(name)))
            status = fail(STATUS_INVALID, "%s: a file's name has control characters", path);
        else if (files->n == MANIFEST_FILES_MAX)
            status = fail(STATUS_INVALID, "%s: more than %d files", path, MANIFEST_FILES_MAX);
        else
            add_name(files, name);
    }
    closedir(dir);
    if (files->n > 0)
        qsort(files->names, files->n, sizeof *files->names, text_order);
    return status;
}

static status_t list_file(const char *path, files_t *files)
{
    char *for_folder = mem_strdup(path), *for_name = mem_strdup(path);
    free(files->folder);
    files->folder = mem_strdup(dirname(for_folder));
    const char *name = basename(for_name);
    status_t status = STATUS_OK;
    if (manifest_name_is_good(name, strlen(name)))
        add_name(files, name);
    else
        status = fail(STATUS_INVALID, "%s: a hidden file or one with control characters in its "
                      "name cannot be sealed", path);
    free(for_folder);
    free(for_name);
    return status;
}

static status_t list_files(const char *path, files_t *files)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s", path,
                    strerror(errno));
    files->seal = manifest_path(path);
    if (S_ISDIR(info.st_mode))
        return list_folder(path, files);
    char *home;
    uint32_t n_parts = gguf_parts(path, &home);
    status_t status = n_parts == 1 ? list_file(path, files) : STATUS_OK;
    for (uint32_t i = 1; n_parts > 1 && i <= n_parts && status == STATUS_OK; i++) {
        char *part = gguf_part_beside(home, i); /* ascending by their names */
        status = list_file(part, files);
        free(part);
    }
    free(home);
    return status;
}

/* --- hashing --- */

typedef struct {
    char digest[DIGEST_HEX_SIZE];
    uint64_t bytes;
    buffer_t chunks; /* chunk lines */
} hashed_t;

static void end_chunk(digest_t *take_chunk, hashed_t *hashed)
{
    char hex[DIGEST_HEX_SIZE];
    digest_finish(take_chunk, hex);
    buffer_format(&hashed->chunks, "#%s\n", hex);
}

static status_t hash_open_file(int fd, const char *path, uint64_t chunk_bytes, hashed_t *hashed)
{
    uint8_t *piece = MEM_NEW_ARRAY(uint8_t, READ_BYTES);
    digest_t *whole = digest_start(), *chunk = NULL;
    status_t status = STATUS_OK;
    for (;;) {
        uint64_t left = chunk_bytes - hashed->bytes % chunk_bytes;
        ssize_t n = read(fd, piece, left < READ_BYTES ? (size_t)left : READ_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = fail(STATUS_IO, "%s: cannot read: %s", path, strerror(errno));
        if (n <= 0)
            break;
        chunk = chunk == NULL ? digest_start() : chunk;
        digest_add(whole, piece, (size_t)n);
        digest_add(chunk, piece, (size_t)n);
        hashed->bytes += (uint64_t)n;
        if (hashed->bytes % chunk_bytes == 0) {
            end_chunk(chunk, hashed);
            chunk = NULL;
        }
    }
    if (chunk != NULL)
        end_chunk(chunk, hashed);
    digest_finish(whole, hashed->digest);
    free(piece);
    return status;
}

/* Words what is wrong with the file itself without its path, which the caller names. */
static status_t hash_file(const files_t *files, const char *name, uint64_t chunk_bytes,
                          hashed_t *hashed)
{
    char *path = mem_format("%s/%s", files->folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    int error = errno;
    struct stat info;
    status_t status = STATUS_OK;
    if (fd < 0 && error == ELOOP)
        status = fail(STATUS_INVALID, "it is a link; a sealed model holds its files itself");
    else if (fd < 0)
        status = fail(error == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s",
                      error == ENOENT ? "it is missing" : strerror(error));
    else if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        status = fail(STATUS_INVALID, "it is no regular file");
    if (status == STATUS_OK)
        status = hash_open_file(fd, path, chunk_bytes, hashed);
    if (fd >= 0)
        close(fd);
    free(path);
    return status;
}

/* --- seal --- */

status_t manifest_write_file(const char *path, const void *bytes, size_t n)
{
    char *fresh = mem_format("%s.%ld.new", path, (long)getpid());
    int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    bool good = fd >= 0;
    for (size_t at = 0; good && at < n;) {
        ssize_t written = write(fd, (const uint8_t *)bytes + at, n - at);
        if (written < 0 && errno == EINTR)
            continue;
        good = written > 0;
        at += good ? (size_t)written : 0;
    }
    good = good && fsync(fd) == 0;
    int error = errno;
    if (fd >= 0)
        close(fd);
    if (good && rename(fresh, path) != 0) {
        good = false;
        error = errno;
    }
    if (!good && fd >= 0)
        unlink(fresh);
    free(fresh);
    if (!good)
        return fail(STATUS_IO, "%s: cannot write: %s", path, strerror(error));
    return STATUS_OK;
}

static status_t add_file(const files_t *files, const char *name, buffer_t *seal)
{
    hashed_t hashed = {0};
    status_t status = hash_file(files, name, MANIFEST_CHUNK_BYTES, &hashed);
    if (status == STATUS_OK) {
        buffer_format(seal, "%s  %s\n# chunks %d %llu %s\n", hashed.digest, name,
                      MANIFEST_CHUNK_BYTES, (unsigned long long)hashed.bytes, name);
        buffer_append(seal, hashed.chunks.data, hashed.chunks.size);
    } else {
        status = fail_in(status, "%s/%s", files->folder, name);
    }
    buffer_release(&hashed.chunks);
    return status;
}

static status_t write_seal(const files_t *files, const char *key_path, const buffer_t *seal)
{
    uint8_t signature[64];
    char *signature_path = mem_format("%s.sig", files->seal);
    status_t status = STATUS_OK;
    if (key_path != NULL)
        status = manifest_sign(key_path, seal, signature);
    /* The old signature goes first: a seal must never lie beside a signature of another one. */
    if (status == STATUS_OK && unlink(signature_path) != 0 && errno != ENOENT)
        status = fail(STATUS_IO, "%s: cannot remove: %s", signature_path, strerror(errno));
    if (status == STATUS_OK)
        status = manifest_write_file(files->seal, seal->data, seal->size);
    if (status == STATUS_OK && key_path != NULL)
        status = manifest_write_file(signature_path, signature, sizeof signature);
    free(signature_path);
    return status;
}

status_t manifest_seal(const char *model_path, const char *key_path, manifest_file_fn on_file,
                       void *context)
{
    files_t files = {0};
    buffer_t seal = {0};
    status_t status = list_files(model_path, &files);
    if (status == STATUS_OK && files.n == 0)
        status = fail(STATUS_INVALID, "%s: there is no file to seal", model_path);
    buffer_append_text(&seal, "# shoal manifest 1\n");
    for (size_t i = 0; i < files.n && status == STATUS_OK; i++) {
        status = add_file(&files, files.names[i], &seal);
        if (status == STATUS_OK)
            on_file(context, files.names[i], NULL);
    }
    if (status == STATUS_OK)
        status = write_seal(&files, key_path, &seal);
    buffer_release(&seal);
    files_release(&files);
    return status;
}

/* --- verify --- */

/* What is wrong with one file; "" when it is right. */
static status_t compare(const files_t *files, const manifest_entry_t *entry,
                        char problem[PROBLEM_BYTES])
{
    hashed_t hashed = {0};
    problem[0] = 0;
    uint64_t chunk_bytes = entry->has_chunks ? entry->chunk_bytes : MANIFEST_CHUNK_BYTES;
    status_t status = hash_file(files, entry->name, chunk_bytes, &hashed);
    if (status != STATUS_OK) {
        snprintf(problem, PROBLEM_BYTES, "%s", status_text());
    } else if (entry->has_chunks && hashed.bytes != entry->bytes) {
        snprintf(problem, PROBLEM_BYTES, "it has %llu bytes, %llu are sealed",
                 (unsigned long long)hashed.bytes, (unsigned long long)entry->bytes);
    } else if (memcmp(hashed.digest, entry->digest, MANIFEST_HEX) != 0) {
        snprintf(problem, PROBLEM_BYTES, "its SHA-256 is %.16s..., %.16s... is sealed",
                 hashed.digest, entry->digest);
    } else if (entry->has_chunks && hashed.chunks.size > 0 &&
               memcmp(hashed.chunks.data, entry->chunks, hashed.chunks.size) != 0) {
        snprintf(problem, PROBLEM_BYTES, "the seal's chunks contradict its digest");
    }
    buffer_release(&hashed.chunks);
    return status == STATUS_IO ? fail_in(status, "%s/%s", files->folder, entry->name) : STATUS_OK;
}

typedef struct {
    size_t n_wrong;
    char *first; /* of what is wrong */
    manifest_file_fn on_file;
    void *context;
} report_t;

static void tell(report_t *report, const char *name, const char *problem)
{
    if (problem != NULL && report->n_wrong++ == 0)
        report->first = mem_format("%s: %s", name, problem);
    report->on_file(report->context, name, problem);
}

static status_t check_files(const manifest_t *manifest, const files_t *files, report_t *report)
{
    char problem[PROBLEM_BYTES];
    for (size_t i = 0; i < manifest->n_entries; i++) {
        TRY(compare(files, &manifest->entries[i], problem));
        tell(report, manifest->entries[i].name, problem[0] != 0 ? problem : NULL);
    }
    for (size_t i = 0; i < files->n; i++)
        if (manifest_find(manifest, files->names[i]) == NULL)
            tell(report, files->names[i], "it is not sealed");
    return STATUS_OK;
}

status_t manifest_verify(const char *model_path, const char *public_key_path,
                         manifest_file_fn on_file, void *context)
{
    files_t files = {0};
    manifest_t *manifest = NULL;
    report_t report = {.on_file = on_file, .context = context};
    status_t status = list_files(model_path, &files);
    if (status == STATUS_OK && public_key_path != NULL)
        status = manifest_check_signature(model_path, public_key_path);
    if (status == STATUS_OK)
        status = manifest_open(model_path, &manifest);
    if (status == STATUS_OK)
        status = check_files(manifest, &files, &report);
    if (status == STATUS_OK && report.n_wrong > 0)
        status = fail(STATUS_CONFLICT, "%s: %zu %s not as sealed; %s%s", model_path, report.n_wrong,
                      report.n_wrong == 1 ? "file is" : "files are",
                      report.n_wrong == 1 ? "" : "the first: ", report.first);
    free(report.first);
    manifest_close(manifest);
    files_release(&files);
    return status;
}
