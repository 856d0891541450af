/* The seal of a model: which files it has and the SHA-256 of each, so that a changed, missing or
 * additional file is seen before it decides a token.
 *
 * The seal of a directory is DIR/manifest.sha256, that of a single file FILE.sha256, that of a split
 * model (STEM-00001-of-00003.gguf …) STEM.gguf.sha256, which has all its files. It is a list
 * as `sha256sum` writes and checks it, with comment lines that say more:
 *
 *   # shoal manifest 1
 *   <64 digits>  model.safetensors
 *   # chunks 16777216 988097824 model.safetensors     (bytes of a chunk, bytes of the file, name)
 *   #<64 digits>                                      (one line a chunk)
 *
 * The chunks let a rank check the part of a file that it maps and nothing else. A list without them
 * (made by sha256sum) is accepted; then the first part of a file costs the whole file. Beside it
 * may lie a signature, the seal's path and ".sig": 64 bytes, Ed25519 over the seal's bytes.
 *
 * The seal is untrusted input. Names are plain names of files in the model's own folder. Every
 * failure names the seal, the line or the file, and what would be right. */
#ifndef SHOAL_COMMON_MODEL_MANIFEST_H
#define SHOAL_COMMON_MODEL_MANIFEST_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    MANIFEST_BYTES_MAX = 64 << 20,
    MANIFEST_FILES_MAX = 16384,
    MANIFEST_CHUNK_BYTES = 16 << 20, /* of seals made here */
};

/* The seal's path for a model; the caller frees it. */
char *manifest_path(const char *model_path) __attribute__((returns_nonnull, warn_unused_result));

/* --- for those who map --- */

typedef struct manifest manifest_t;

/* Reads the seal of a model. STATUS_NOT_FOUND when it has none. */
status_t manifest_open(const char *model_path, manifest_t **own_out) MUST_USE;
/* Over bytes in memory, which are copied; `name` stands in errors. */
status_t manifest_open_bytes(const char *name, const void *bytes, size_t n,
                             manifest_t **own_out) MUST_USE;
void manifest_close(manifest_t *take_manifest); /* NULL is fine */

size_t manifest_n_files(const manifest_t *manifest);
/* In ascending order; i < manifest_n_files. */
const char *manifest_name(const manifest_t *manifest, size_t i);

/* Checks bytes [offset, offset + n) of the file `name`, which lies mapped at `file` with file_bytes
 * bytes (the range is inside; CHECKed), reading the whole chunks that it touches. A chunk that was
 * right is not read again. STATUS_INVALID when a chunk is not as sealed, the file has another
 * length, or the seal does not have it. Any thread, several at once. */
status_t manifest_check(const manifest_t *manifest, const char *name, const uint8_t *file,
                        uint64_t file_bytes, uint64_t offset, uint64_t n) MUST_USE;

/* --- for `shoal seal` and `shoal verify` --- */

/* Told each file once: `problem` is NULL when it is right. */
typedef void (*manifest_file_fn)(void *context, const char *name, const char *problem);

/* Hashes every file of the model (in a directory: all but hidden ones and the seal; links are
 * refused, folders left out) and writes the seal whole, or not at all. With `key_path`, a file with
 * an Ed25519 private key in PEM, it is signed; without, an older signature is removed. */
status_t manifest_seal(const char *model_path, const char *key_path, manifest_file_fn on_file,
                       void *context) MUST_USE;

/* Checks every file against the seal, and that there are no others. With `public_key_path` (PEM)
 * the seal must carry a signature by that key. STATUS_CONFLICT counts what is wrong. */
status_t manifest_verify(const char *model_path, const char *public_key_path,
                         manifest_file_fn on_file, void *context) MUST_USE;

/* Only the signature of the seal. */
status_t manifest_check_signature(const char *model_path, const char *public_key_path) MUST_USE;

#endif
