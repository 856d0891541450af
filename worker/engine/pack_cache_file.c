/* See pack_cache_file.h. */
#include "worker/engine/pack_cache_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <xxhash.h>
#ifdef __x86_64__
#include <xxh_x86dispatch.h> /* the same sums with the vectors that this processor has */
#endif

#include "common/base/digest.h"
#include "common/base/memory.h"

void pack_file_digest(const void *bytes, size_t n, char digits_out[PACK_FILE_DIGITS])
{
    char hex[DIGEST_HEX_SIZE];
    digest_of_bytes(bytes, n, hex);
    memcpy(digits_out, hex, PACK_FILE_DIGITS);
}

void pack_file_checksum(const void *bytes, size_t n, uint8_t out[PACK_FILE_CHECKSUM])
{
    XXH128_canonical_t sum;
    XXH128_canonicalFromHash(&sum, XXH3_128bits(bytes, n));
    _Static_assert(sizeof sum == PACK_FILE_CHECKSUM, "128 bits");
    memcpy(out, &sum, sizeof sum);
}

/* --- reading --- */

static bool read_all(int fd, void *to, size_t n, uint64_t offset)
{
    for (uint8_t *at = to; n > 0;) {
        ssize_t got = pread(fd, at, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got, n -= (size_t)got, offset += (uint64_t)got;
    }
    return true;
}

/* What is wrong with the head; NULL when it is good. */
static const char *check_head(const pack_file_head_t *head, const char *key, uint64_t file_bytes)
{
    char digits[PACK_FILE_DIGITS];
    pack_file_digest(head, offsetof(pack_file_head_t, head_digest), digits);
    if (memcmp(head->magic, PACK_FILE_MAGIC, sizeof head->magic) != 0)
        return "it is of another version";
    if (memcmp(digits, head->head_digest, sizeof digits) != 0)
        return "its head is damaged";
    char wanted[PACK_CACHE_KEY_MAX] = {0};
    memcpy(wanted, key, strlen(key));
    if (memcmp(wanted, head->key, sizeof wanted) != 0)
        return "it is of another key";
    if (head->file_bytes != file_bytes)
        return "it was cut short";
    if (head->n_entries > PACK_CACHE_WEIGHTS_MAX || head->n_pieces > PACK_FILE_TABLE_MAX / 64 ||
        head->table_offset > file_bytes ||
        file_bytes - head->table_offset != head->n_entries * sizeof(pack_file_entry_t) +
                                               head->n_pieces * PACK_FILE_CHECKSUM)
        return "its table has another size";
    return NULL;
}

/* The entries follow each other and use up the pieces. */
static bool entries_are_good(const pack_file_head_t *head, const pack_file_entry_t *entries)
{
    uint64_t at = PACK_FILE_PAGE, pieces = 0;
    for (uint64_t i = 0; i < head->n_entries; i++) {
        const pack_file_entry_t *entry = &entries[i];
        if (entry->offset != at || entry->offset > head->table_offset ||
            entry->bytes > head->table_offset - entry->offset || entry->piece_first != pieces)
            return false;
        pieces += pack_file_pieces(entry->bytes);
        at += (entry->bytes + PACK_FILE_PAGE - 1) / PACK_FILE_PAGE * PACK_FILE_PAGE;
    }
    return at == head->table_offset && pieces == head->n_pieces;
}

static const char *read_table(int fd, const pack_file_head_t *head, uint8_t **own_out)
{
    size_t n = (size_t)(head->file_bytes - head->table_offset);
    char digits[PACK_FILE_DIGITS];
    uint8_t *table = mem_new(n + 1, 1);
    const char *why = NULL;
    if (!read_all(fd, table, n, head->table_offset))
        why = "it cannot be read";
    else if (pack_file_digest(table, n, digits),
             memcmp(digits, head->table_digest, sizeof digits) != 0)
        why = "its table is damaged";
    else if (!entries_are_good(head, (const pack_file_entry_t *)(const void *)table))
        why = "its table has entries that cannot be";
    if (why != NULL)
        free(table);
    else
        *own_out = table;
    return why;
}

int pack_file_open(const char *path, const char *key, pack_file_head_t *head_out,
                   uint8_t **own_table_out, const char **why_out)
{
    struct stat info;
    *why_out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno != ENOENT)
            *why_out = "it cannot be opened";
        return -1;
    }
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        *why_out = "it is no file";
    else if (!read_all(fd, head_out, sizeof *head_out, 0))
        *why_out = "it was cut short";
    else
        *why_out = check_head(head_out, key, (uint64_t)info.st_size);
    if (*why_out == NULL)
        *why_out = read_table(fd, head_out, own_table_out);
    if (*why_out == NULL)
        return fd;
    close(fd);
    return -1;
}

/* --- writing --- */

enum { PARTS = 256 };

static bool write_all(int fd, const void *from, size_t n, uint64_t offset)
{
    for (const uint8_t *at = from; n > 0;) {
        ssize_t put = pwrite(fd, at, n, (off_t)offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        at += put, n -= (size_t)put, offset += (uint64_t)put;
    }
    return true;
}

static uint64_t padded(uint64_t bytes)
{
    return (bytes + PACK_FILE_PAGE - 1) / PACK_FILE_PAGE * PACK_FILE_PAGE;
}

uint64_t pack_file_size(const pack_file_image_t *images, size_t n)
{
    uint64_t size = PACK_FILE_PAGE;
    for (size_t i = 0; i < n; i++)
        size += padded(images[i].bytes) + sizeof(pack_file_entry_t) +
                pack_file_pieces(images[i].bytes) * PACK_FILE_CHECKSUM;
    return size;
}

/* A file that grows at its end, in whole huge pages: the system then takes large folios for it.
 * What is put is borrowed until it is written. */
typedef struct {
    int fd;
    struct iovec parts[PARTS]; /* what was not written yet: `used` bytes from `at` on */
    int n_parts;
    size_t used;
    uint64_t at;
    bool good;
} stream_t;

static void flush(stream_t *stream)
{
    struct iovec *part = stream->parts, *end = part + stream->n_parts;
    while (part < end && stream->good) {
        ssize_t put = pwritev(stream->fd, part, (int)(end - part), (off_t)stream->at);
        if (put < 0 && errno == EINTR)
            continue;
        stream->good = put > 0;
        stream->at += put > 0 ? (uint64_t)put : 0;
        for (; put > 0 && (size_t)put >= part->iov_len; part++)
            put -= (ssize_t)part->iov_len;
        if (put > 0) {
            part->iov_base = (uint8_t *)part->iov_base + put;
            part->iov_len -= (size_t)put;
        }
    }
    stream->n_parts = 0;
    stream->used = 0;
}

static void put(stream_t *stream, const void *bytes, size_t n)
{
    for (const uint8_t *from = bytes; n > 0 && stream->good;) {
        size_t room = PACK_FILE_HUGE - stream->used, part = n < room ? n : room;
        stream->parts[stream->n_parts++] =
            (struct iovec){.iov_base = (void *)(uintptr_t)from, .iov_len = part};
        stream->used += part, from += part, n -= part;
        if (stream->used == PACK_FILE_HUGE || stream->n_parts == PARTS)
            flush(stream);
    }
}

static const uint8_t zeros[PACK_FILE_PAGE];

static void put_padding(stream_t *stream)
{
    uint64_t end = stream->at + stream->used;
    put(stream, zeros, (PACK_FILE_PAGE - end % PACK_FILE_PAGE) % PACK_FILE_PAGE);
}

/* The bytes whose sums are taken are those in memory: what the disk makes of them shows when they
 * are read. */
static void sum_pieces(const pack_file_image_t *image, uint8_t *sums_out)
{
    for (size_t at = 0; at < image->bytes; at += PACK_FILE_PIECE, sums_out += PACK_FILE_CHECKSUM) {
        size_t left = image->bytes - at;
        pack_file_checksum((const uint8_t *)image->image + at,
                           left < PACK_FILE_PIECE ? left : PACK_FILE_PIECE, sums_out);
    }
}

static bool write_images(int fd, pack_file_head_t *head, const pack_file_image_t *images, size_t n)
{
    uint64_t n_pieces = 0, pieces = 0;
    for (size_t i = 0; i < n; i++)
        n_pieces += pack_file_pieces(images[i].bytes);
    size_t entries_bytes = n * sizeof(pack_file_entry_t);
    size_t table_bytes = entries_bytes + (size_t)n_pieces * PACK_FILE_CHECKSUM;
    uint8_t *table = mem_new(table_bytes + 1, 1);
    stream_t stream = {.fd = fd, .good = true};
    put(&stream, zeros, PACK_FILE_PAGE); /* the head comes last */
    for (size_t i = 0; stream.good && i < n; i++) {
        pack_file_entry_t entry = {.offset = stream.at + stream.used, .bytes = images[i].bytes,
                                   .piece_first = pieces};
        memcpy(entry.id, images[i].id, sizeof entry.id);
        memcpy(table + i * sizeof entry, &entry, sizeof entry);
        sum_pieces(&images[i], table + entries_bytes + pieces * PACK_FILE_CHECKSUM);
        put(&stream, images[i].image, images[i].bytes);
        put_padding(&stream);
        pieces += pack_file_pieces(images[i].bytes);
    }
    head->table_offset = stream.at + stream.used;
    head->file_bytes = head->table_offset + table_bytes;
    head->n_entries = n;
    head->n_pieces = n_pieces;
    pack_file_digest(table, table_bytes, head->table_digest);
    put(&stream, table, table_bytes);
    flush(&stream);
    free(table);
    return stream.good;
}

/* No fsync: a file that a power failure tears is seen by its digests, and waiting for the disk
 * would cost every first start. */
bool pack_file_write(const char *path, const char *key, const pack_file_image_t *images, size_t n)
{
    char *fresh = mem_format("%s.XXXXXX.new", path);
    pack_file_head_t *head = MEM_NEW(pack_file_head_t);
    int fd = mkostemps(fresh, 4, O_CLOEXEC);
    bool good = fd >= 0 && write_images(fd, head, images, n);
    if (good) {
        memcpy(head->magic, PACK_FILE_MAGIC, sizeof head->magic);
        memcpy(head->key, key, strlen(key));
        pack_file_digest(head, offsetof(pack_file_head_t, head_digest), head->head_digest);
        good = write_all(fd, head, sizeof *head, 0);
    }
    if (fd >= 0)
        good = close(fd) == 0 && good;
    good = good && rename(fresh, path) == 0;
    if (!good && fd >= 0) {
        int error = errno;
        unlink(fresh);
        errno = error;
    }
    free(head);
    free(fresh);
    return good;
}
