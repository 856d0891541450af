/* Splits a GGUF file into several, as its publishers do: the first has the keys, all have those about
 * the split. Failures end the test. */
#ifndef SHOAL_TESTS_UNIT_MODEL_GGUF_CUT_H
#define SHOAL_TESTS_UNIT_MODEL_GGUF_CUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Writes FOLDER/STEM-00001-of-0000N.gguf and so on, the tensors in order and as evenly as they go.
 * `bare_first`: the first file has no tensors. */
void gguf_cut(const char *from, const char *folder, const char *stem, uint32_t n, bool bare_first);

/* "FOLDER/STEM-00002-of-00003.gguf" for part 2 of 3. To be freed. */
char *gguf_cut_path(const char *folder, const char *stem, uint32_t part, uint32_t n);

/* Overwrites a key's value in a file that gguf_cut wrote. */
void gguf_cut_patch(const char *path, const char *key, const void *value, size_t n);

#endif
