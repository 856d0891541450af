/* What the files of the seal share. Only manifest*.c include it. */
#ifndef SHOAL_COMMON_MODEL_MANIFEST_INTERNAL_H
#define SHOAL_COMMON_MODEL_MANIFEST_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/base/buffer.h"
#include "common/base/digest.h"
#include "common/model/manifest.h"

enum {
    MANIFEST_HEX = DIGEST_HEX_SIZE - 1,
    MANIFEST_CHUNK_LINE = 1 + MANIFEST_HEX + 1, /* "#<digits>\n" */
};

typedef enum { CHUNK_UNKNOWN, CHUNK_IN_WORK, CHUNK_GOOD } chunk_state_t;

/* What threads that check the same file wait on. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t checked;
} manifest_work_t;

typedef struct {
    char *name;
    const char *digest;   /* MANIFEST_HEX digits inside the seal's text */
    bool has_chunks;
    uint64_t bytes;       /* of the file; known when has_chunks */
    uint64_t chunk_bytes;
    uint64_t n_chunks;    /* 1 without chunks: the file as a whole */
    const char *chunks;   /* the chunk lines inside the seal's text */
    atomic_uchar *chunk_states; /* chunk_state_t; changed under the lock */
} manifest_entry_t;

struct manifest {
    char *name; /* of the seal, for errors */
    char *text;
    size_t n_entries, capacity;
    manifest_entry_t *entries; /* sorted by name */
    manifest_work_t *work;
};

/* NULL when absent. */
manifest_entry_t *manifest_find(const manifest_t *manifest, const char *name);

/* Whether this can be the name of a sealed file: no folder in it, not hidden, printable, short. */
bool manifest_name_is_good(const char *name, size_t n);

/* Reads a regular file whole, at most n_max bytes; it is no link. */
status_t manifest_read_file(const char *path, size_t n_max, buffer_t *out) MUST_USE;
/* Writes a file whole, or leaves what was there. */
status_t manifest_write_file(const char *path, const void *bytes, size_t n) MUST_USE;

/* manifest_sign.c. signature_out gets 64 bytes. */
status_t manifest_sign(const char *key_path, const buffer_t *seal,
                       uint8_t signature_out[64]) MUST_USE;

#endif
