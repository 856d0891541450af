/* The layout of a file of packed weights and what belongs to a directory of them; only
 * pack_cache*.c include it.
 *
 * A head of one page; the images, each from a multiple of a page on; the table: an entry for
 * each image in the order of loading, then a checksum for each of their pieces. The head holds the
 * whole key and digests of itself and of the table, so nothing is believed that was not checked.
 * Numbers are little-endian, as the machines are.
 *
 * All of this finds damage, not malice: who can write the file can write digests that fit. So the
 * pieces, which are all of the bytes, have checksums that are as fast as memory (XXH3, 128 bits):
 * a cryptographic digest would take ten times as long as reading the file.
 *
 * Files are written a huge page at a time, from multiples of one on, and mapped from such an
 * address on: a file system that keeps files in large folios (ext4 since Linux 6.16, XFS) then maps
 * them in huge pages, and the kernels read them as fast as memory of their own. */
#ifndef SHOAL_WORKER_ENGINE_PACK_CACHE_FILE_H
#define SHOAL_WORKER_ENGINE_PACK_CACHE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/engine/pack_cache.h"

enum {
    PACK_FILE_PAGE = 4096,
    PACK_FILE_HUGE = 2 << 20,
    PACK_FILE_PIECE = 64 << 10, /* small ones: a team of threads shares one weight out evenly */
    PACK_FILE_DIGITS = 32,      /* of a digest, in hexadecimal: 128 bits */
    PACK_FILE_CHECKSUM = 16,    /* bytes */
};
#define PACK_FILE_MAGIC "SHOALPK2"
#define PACK_FILE_TABLE_MAX ((uint64_t)1 << 30)

typedef struct {
    char magic[8];
    uint64_t file_bytes, table_offset, n_entries, n_pieces;
    char table_digest[PACK_FILE_DIGITS];
    char key[PACK_CACHE_KEY_MAX]; /* zeros behind the text */
    char head_digest[PACK_FILE_DIGITS]; /* of all before it */
} pack_file_head_t;
_Static_assert(sizeof(pack_file_head_t) == 40 + 32 + PACK_CACHE_KEY_MAX + 32, "no gaps");
_Static_assert(sizeof(pack_file_head_t) <= PACK_FILE_PAGE, "the head is one page");

typedef struct {
    char id[PACK_FILE_DIGITS];
    uint64_t offset, bytes, piece_first;
} pack_file_entry_t;
_Static_assert(sizeof(pack_file_entry_t) == 56, "no gaps");

static inline uint64_t pack_file_pieces(uint64_t bytes)
{
    return bytes / PACK_FILE_PIECE + (bytes % PACK_FILE_PIECE != 0);
}

/* Of head and table. */
void pack_file_digest(const void *bytes, size_t n, char digits_out[PACK_FILE_DIGITS]);
/* Of a piece. */
void pack_file_checksum(const void *bytes, size_t n, uint8_t out[PACK_FILE_CHECKSUM]);

/* A good file of that key: its descriptor, with the table in *own_table_out (entries, then
 * checksums). -1 when there is none; *why_out then says what is wrong with the one there is, or is
 * NULL. */
int pack_file_open(const char *path, const char *key, pack_file_head_t *head_out,
                   uint8_t **own_table_out, const char **why_out);

typedef struct {
    char id[PACK_CACHE_ID_SIZE];
    const void *image;
    size_t bytes;
} pack_file_image_t;

/* Bytes that the file of these images has. */
uint64_t pack_file_size(const pack_file_image_t *images, size_t n);
/* Writes it beside `path` and puts it there. False, with errno, when it could not. */
bool pack_file_write(const char *path, const char *key, const pack_file_image_t *images, size_t n);

/* Makes room for `bytes` more under bytes_max in all: removes what was not used for the longest
 * time and no rank has mapped, and what writers that died left behind. `path` does not count, it
 * will be replaced. False, and nothing is removed, when that would not be enough. */
bool pack_file_make_room(const char *dir, const char *path, uint64_t bytes, uint64_t bytes_max);

#endif
