/* SHA-256 of bytes and files, as lower-case hex. Every id of content in the program (models, text
 * identities, bodies of jobs) is made here. Any thread. */
#ifndef SHOAL_COMMON_BASE_DIGEST_H
#define SHOAL_COMMON_BASE_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    DIGEST_BYTES = 32,
    DIGEST_HEX_SIZE = 65, /* 64 digits and the NUL */
};

typedef struct digest digest_t;

/* A digest in the making. digest_finish releases it; digest_drop is for the way out of an error. */
digest_t *digest_start(void) __attribute__((returns_nonnull, warn_unused_result));
void digest_add(digest_t *digest, const void *bytes, size_t n);
/* Adds n's eight little-endian bytes first and then the bytes, so that ("ab", "c") and ("a", "bc")
 * differ. */
void digest_add_field(digest_t *digest, const void *bytes, size_t n);
void digest_finish(digest_t *take_digest, char hex_out[DIGEST_HEX_SIZE]);
void digest_drop(digest_t *take_digest);

void digest_of_bytes(const void *bytes, size_t n, char hex_out[DIGEST_HEX_SIZE]);

/* Reads the whole file (never a FIFO, device or directory). STATUS_NOT_FOUND, STATUS_INVALID or
 * STATUS_IO name the path. */
status_t digest_of_file(const char *path, char hex_out[DIGEST_HEX_SIZE]) MUST_USE;

#endif
