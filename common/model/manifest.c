/* The seal as it is read and as ranges are checked against it. See manifest.h. */
#include "common/model/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/manifest_internal.h"

enum { CHUNK_BYTES_MIN = 4096, CHUNK_BYTES_LARGEST = 1 << 30 };

char *manifest_path(const char *model_path)
{
    struct stat info;
    bool is_folder = stat(model_path, &info) == 0 && S_ISDIR(info.st_mode);
    gguf_part_name_t name;
    char *home = NULL;
    if (!is_folder && gguf_parts(model_path, &home) > 1 && gguf_part_name(home, &name)) {
        char *path = mem_format("%.*s.gguf.sha256", (int)name.stem, home);
        free(home);
        return path;
    }
    free(home);
    return mem_format(is_folder ? "%s/manifest.sha256" : "%s.sha256", model_path);
}

bool manifest_name_is_good(const char *name, size_t n)
{
    bool good = n > 0 && n < 256 && name[0] != '.' && memchr(name, '/', n) == NULL;
    for (size_t i = 0; good && i < n; i++)
        good = (unsigned char)name[i] >= 0x20 && name[i] != 0x7f && name[i] != '\\';
    return good;
}

status_t manifest_read_file(const char *path, size_t n_max, buffer_t *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0)
        return fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot open: %s", path,
                    errno == ELOOP ? "it is a link" : strerror(errno));
    struct stat info;
    status_t status = STATUS_OK;
    if (fstat(fd, &info) != 0)
        status = fail(STATUS_IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = fail(STATUS_INVALID, "%s: not a regular file", path);
    else if ((uint64_t)info.st_size > n_max)
        status = fail(STATUS_INVALID, "%s: %llu bytes; it may have %zu", path,
                      (unsigned long long)info.st_size, n_max);
    uint8_t piece[4096];
    while (status == STATUS_OK) {
        ssize_t n = read(fd, piece, sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = fail(STATUS_IO, "%s: cannot read: %s", path, strerror(errno));
        if (n <= 0)
            break;
        buffer_append(out, piece, (size_t)n);
        if (out->size > n_max)
            status = fail(STATUS_INVALID, "%s: it grows while it is read", path);
    }
    close(fd);
    return status;
}

/* --- lines --- */

typedef struct {
    manifest_t *manifest;
    const char *at, *end;
    size_t line;
} reader_t;

static status_t bad_line(const reader_t *reader, const char *what)
{
    return fail(STATUS_INVALID, "%s: line %zu: %s", reader->manifest->name, reader->line, what);
}

static bool is_digest(const char *text)
{
    for (size_t i = 0; i < MANIFEST_HEX; i++)
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
    return true;
}

/* "<digits>  NAME", or " *NAME" as sha256sum writes it in binary mode. */
static status_t read_entry(reader_t *reader, const char *line, size_t n)
{
    manifest_t *manifest = reader->manifest;
    if (n < MANIFEST_HEX + 3 || line[MANIFEST_HEX] != ' ' ||
        (line[MANIFEST_HEX + 1] != ' ' && line[MANIFEST_HEX + 1] != '*'))
        return bad_line(reader, "it must be 64 digits, two spaces and a file's name");
    if (!is_digest(line))
        return bad_line(reader, "the digest must be 64 digits 0-9 and a-f");
    if (!manifest_name_is_good(line + MANIFEST_HEX + 2, n - MANIFEST_HEX - 2))
        return bad_line(reader, "the name must be that of a file in the model's own folder");
    if (manifest->n_entries == MANIFEST_FILES_MAX)
        return fail(STATUS_INVALID, "%s: more than %d files", manifest->name, MANIFEST_FILES_MAX);
    MEM_GROW(manifest->entries, manifest->capacity, manifest->n_entries + 1);
    manifest->entries[manifest->n_entries++] = (manifest_entry_t){
        .name = mem_strndup(line + MANIFEST_HEX + 2, n - MANIFEST_HEX - 2),
        .digest = line,
        .n_chunks = 1,
    };
    return STATUS_OK;
}

/* Digits and one space. */
static bool take_number(const char **at, const char *end, uint64_t *out)
{
    const char *start = *at;
    uint64_t value = 0;
    for (; *at < end && **at >= '0' && **at <= '9' && *at - start < 18; ++*at)
        value = value * 10 + (uint64_t)(**at - '0');
    if (*at == start || *at == end || **at != ' ')
        return false;
    ++*at;
    *out = value;
    return true;
}

/* "# chunks CHUNK FILE NAME" and as many lines as the file has chunks. */
static status_t read_chunks(reader_t *reader, const char *at, const char *line_end)
{
    manifest_t *manifest = reader->manifest;
    manifest_entry_t *entry =
        manifest->n_entries > 0 ? &manifest->entries[manifest->n_entries - 1] : NULL;
    uint64_t chunk_bytes, bytes;
    if (!take_number(&at, line_end, &chunk_bytes) || !take_number(&at, line_end, &bytes) ||
        chunk_bytes < CHUNK_BYTES_MIN || chunk_bytes > CHUNK_BYTES_LARGEST)
        return bad_line(reader, "it must be \"# chunks\", the bytes of a chunk (4096 to 2^30), the "
                                "bytes of the file and its name");
    size_t n = (size_t)(line_end - at);
    if (entry == NULL || entry->has_chunks || strlen(entry->name) != n ||
        memcmp(entry->name, at, n) != 0)
        return bad_line(reader, "chunks must follow the line of their file");
    uint64_t n_chunks = (bytes + chunk_bytes - 1) / chunk_bytes;
    if (n_chunks > (uint64_t)(reader->end - reader->at) / MANIFEST_CHUNK_LINE)
        return bad_line(reader, "the seal ends before its chunks do");
    entry->has_chunks = true;
    entry->bytes = bytes;
    entry->chunk_bytes = chunk_bytes;
    entry->n_chunks = n_chunks;
    entry->chunks = reader->at;
    for (uint64_t i = 0; i < n_chunks; i++, reader->at += MANIFEST_CHUNK_LINE) {
        reader->line++;
        if (reader->at[0] != '#' || !is_digest(reader->at + 1) ||
            reader->at[MANIFEST_CHUNK_LINE - 1] != '\n')
            return bad_line(reader, "a chunk must be # and 64 digits 0-9 and a-f");
    }
    return STATUS_OK;
}

static status_t read_line(reader_t *reader)
{
    static const char chunks[] = "# chunks ", version[] = "# shoal manifest ";
    const char *line = reader->at;
    const char *end = memchr(line, '\n', (size_t)(reader->end - line));
    reader->line++;
    if (end == NULL)
        return bad_line(reader, "it is cut off");
    size_t n = (size_t)(end - line);
    reader->at = end + 1;
    if (n > sizeof chunks - 1 && memcmp(line, chunks, sizeof chunks - 1) == 0)
        return read_chunks(reader, line + sizeof chunks - 1, end);
    if (n > sizeof version - 1 && memcmp(line, version, sizeof version - 1) == 0 &&
        (n != sizeof version || line[n - 1] != '1'))
        return bad_line(reader, "a newer version wrote this seal; version 1 can be read");
    return n > 0 && line[0] == '#' ? STATUS_OK : read_entry(reader, line, n);
}

/* --- open and look up --- */

static int by_name(const void *a, const void *b)
{
    const manifest_entry_t *left = a, *right = b;
    return strcmp(left->name, right->name);
}

static status_t parse(manifest_t *manifest, size_t n)
{
    reader_t reader = {.manifest = manifest, .at = manifest->text, .end = manifest->text + n};
    while (reader.at < reader.end)
        TRY(read_line(&reader));
    if (manifest->n_entries == 0)
        return fail(STATUS_INVALID, "%s: it seals no file", manifest->name);
    qsort(manifest->entries, manifest->n_entries, sizeof *manifest->entries, by_name);
    for (size_t i = 0; i < manifest->n_entries; i++) {
        manifest_entry_t *entry = &manifest->entries[i];
        if (i > 0 && by_name(entry - 1, entry) == 0)
            return fail(STATUS_INVALID, "%s: %s is there twice", manifest->name, entry->name);
        entry->chunk_states = mem_new((size_t)entry->n_chunks, sizeof *entry->chunk_states);
    }
    return STATUS_OK;
}

status_t manifest_open_bytes(const char *name, const void *bytes, size_t n, manifest_t **own_out)
{
    manifest_t *manifest = MEM_NEW(manifest_t);
    manifest->name = mem_strdup(name);
    manifest->text = mem_strndup(n > 0 ? bytes : "", n);
    manifest->work = MEM_NEW(manifest_work_t);
    pthread_mutex_init(&manifest->work->lock, NULL);
    pthread_cond_init(&manifest->work->checked, NULL);
    status_t status = parse(manifest, n);
    if (status != STATUS_OK) {
        manifest_close(manifest);
        return status;
    }
    *own_out = manifest;
    return STATUS_OK;
}

status_t manifest_open(const char *model_path, manifest_t **own_out)
{
    char *path = manifest_path(model_path);
    buffer_t bytes = {0};
    status_t status = manifest_read_file(path, MANIFEST_BYTES_MAX, &bytes);
    if (status == STATUS_OK)
        status = manifest_open_bytes(path, bytes.data, bytes.size, own_out);
    buffer_release(&bytes);
    free(path);
    return status;
}

void manifest_close(manifest_t *take_manifest)
{
    if (take_manifest == NULL)
        return;
    for (size_t i = 0; i < take_manifest->n_entries; i++) {
        free(take_manifest->entries[i].name);
        free(take_manifest->entries[i].chunk_states);
    }
    pthread_mutex_destroy(&take_manifest->work->lock);
    pthread_cond_destroy(&take_manifest->work->checked);
    free(take_manifest->work);
    free(take_manifest->entries);
    free(take_manifest->text);
    free(take_manifest->name);
    free(take_manifest);
}

size_t manifest_n_files(const manifest_t *manifest)
{
    return manifest->n_entries;
}

const char *manifest_name(const manifest_t *manifest, size_t i)
{
    CHECK(i < manifest->n_entries);
    return manifest->entries[i].name;
}

manifest_entry_t *manifest_find(const manifest_t *manifest, const char *name)
{
    for (size_t low = 0, high = manifest->n_entries; low < high;) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(manifest->entries[middle].name, name);
        if (order == 0)
            return &manifest->entries[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* --- ranges --- */

static status_t check_chunk(const manifest_t *manifest, const manifest_entry_t *entry, uint64_t i,
                            const uint8_t *file, uint64_t file_bytes)
{
    uint64_t first = entry->has_chunks ? i * entry->chunk_bytes : 0;
    uint64_t n = file_bytes - first;
    if (entry->has_chunks && n > entry->chunk_bytes)
        n = entry->chunk_bytes;
    char found[DIGEST_HEX_SIZE];
    digest_of_bytes(file + first, (size_t)n, found);
    const char *sealed =
        entry->has_chunks ? entry->chunks + i * MANIFEST_CHUNK_LINE + 1 : entry->digest;
    if (memcmp(found, sealed, MANIFEST_HEX) != 0)
        return fail(STATUS_INVALID, "%s: %s is not as sealed: bytes %llu to %llu have changed",
                    manifest->name, entry->name, (unsigned long long)first,
                    (unsigned long long)(first + n));
    return STATUS_OK;
}

/* A chunk that another thread has begun is waited for. One that was found wrong is checked again by
 * each who asks, so that each has the words. */
static status_t check_once(const manifest_t *manifest, const manifest_entry_t *entry, uint64_t i,
                           const uint8_t *file, uint64_t file_bytes)
{
    manifest_work_t *work = manifest->work;
    atomic_uchar *state = &entry->chunk_states[i];
    if (atomic_load_explicit(state, memory_order_acquire) == CHUNK_GOOD)
        return STATUS_OK;
    pthread_mutex_lock(&work->lock);
    while (atomic_load(state) == CHUNK_IN_WORK)
        pthread_cond_wait(&work->checked, &work->lock);
    bool good = atomic_load(state) == CHUNK_GOOD;
    if (!good)
        atomic_store(state, CHUNK_IN_WORK);
    pthread_mutex_unlock(&work->lock);
    if (good)
        return STATUS_OK;
    status_t status = check_chunk(manifest, entry, i, file, file_bytes);
    pthread_mutex_lock(&work->lock);
    atomic_store(state, status == STATUS_OK ? CHUNK_GOOD : CHUNK_UNKNOWN);
    pthread_cond_broadcast(&work->checked);
    pthread_mutex_unlock(&work->lock);
    return status;
}

status_t manifest_check(const manifest_t *manifest, const char *name, const uint8_t *file,
                        uint64_t file_bytes, uint64_t offset, uint64_t n)
{
    CHECK(offset <= file_bytes && n <= file_bytes - offset);
    const manifest_entry_t *entry = manifest_find(manifest, name);
    if (entry == NULL)
        return fail(STATUS_INVALID, "%s: it does not seal %.100s", manifest->name, name);
    if (entry->has_chunks && entry->bytes != file_bytes)
        return fail(STATUS_INVALID, "%s: %s is not as sealed: it has %llu bytes, not %llu",
                    manifest->name, name, (unsigned long long)file_bytes,
                    (unsigned long long)entry->bytes);
    if (n == 0 && (file_bytes > 0 || entry->has_chunks))
        return STATUS_OK; /* without chunks an empty file is still to be told from another */
    uint64_t first = entry->has_chunks ? offset / entry->chunk_bytes : 0;
    uint64_t last = entry->has_chunks ? (offset + n - 1) / entry->chunk_bytes : 0;
    for (uint64_t i = first; i <= last; i++)
        TRY(check_once(manifest, entry, i, file, file_bytes));
    return STATUS_OK;
}
