/* Right safetensors files and model directories for tests to break: made in memory, written to a
 * fresh folder. */
#ifndef SHOAL_TESTS_UNIT_MODEL_SAFETENSORS_DRAFT_H
#define SHOAL_TESTS_UNIT_MODEL_SAFETENSORS_DRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"

/* Zero-initialised is an empty file. */
typedef struct {
    buffer_t entries; /* of the JSON header, without its braces */
    buffer_t data;
} st_draft_t;

/* Adds a tensor: shape as JSON writes it ("[2,3]"), n bytes of data (NULL: zeros). */
void st_add(st_draft_t *draft, const char *name, const char *dtype, const char *shape,
            const void *bytes, size_t n);
/* Adds text to the header as it is. */
void st_add_text(st_draft_t *draft, const char *text);
/* Appends the file's bytes to `out` and empties the draft. */
void st_write(st_draft_t *draft, buffer_t *out);
/* A file of this very header (its length in front) and n zero bytes of data. */
void st_write_header(const char *header, size_t n_data, buffer_t *out);

/* A fresh folder; folder_remove deletes it with the files in it and frees the path. */
char *folder_new(void);
void folder_remove(char *take_path);
void folder_write(const char *folder, const char *name, const void *bytes, size_t n);
void folder_write_text(const char *folder, const char *name, const char *text);
/* Writes the draft there and empties it. */
void folder_write_draft(const char *folder, const char *name, st_draft_t *draft);

#endif
