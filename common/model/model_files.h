/* Which files of a Hugging Face directory make the model: those that decide a text. The
 * digest of a directory, the check of its links and its seal go by this one list. */
#ifndef SHOAL_COMMON_MODEL_MODEL_FILES_H
#define SHOAL_COMMON_MODEL_MODEL_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"

#define MODEL_SINGLE_NAME "model.safetensors"
#define MODEL_INDEX_NAME "model.safetensors.index.json"

/* A name that leads nowhere else: no folder in it, nothing hidden, ending in .safetensors, so that
 * an index, which is untrusted, cannot make us map other files. */
bool model_shard_name_is_good(const char *name);

typedef struct {
    size_t n, capacity;
    char **names; /* ascending by bytes; files of the directory itself */
} model_files_t;

/* Whether `path` is the directory of one model: it holds a config.json. Its weights may be
 * missing. */
bool model_files_are_in(const char *path);

/* How people name the model at a path: the file's name without ".gguf" (and without what a split
 * model's files have before it), or the directory's. To be freed. */
char *model_files_name(const char *path) __attribute__((returns_nonnull, warn_unused_result));

/* Those of the known files that are there, and the weights: model.safetensors, or else the index
 * and the shards that it names. STATUS_INVALID when the directory has no weights or the index
 * cannot be read. Zero-initialise before, release after, also on failure. */
status_t model_files_list(const char *dir, model_files_t *files) MUST_USE;
void model_files_release(model_files_t *files);

/* The path with its links resolved; of a file of a split model only so far that the other files are
 * beside it under their names. NULL when there is nothing. To be freed. */
char *model_file_real(const char *path) __attribute__((warn_unused_result));

/* Whether the file holds weights, which are read in parts. */
bool model_file_is_weights(const char *name);

#endif
