/* Copies of models for tests to damage. Each function fails the test when it cannot do its work. */
#ifndef SHOAL_TESTS_ENGINE_COPIES_H
#define SHOAL_TESTS_ENGINE_COPIES_H

#include <sys/types.h>

void copies_file(const char *from, const char *to);
/* Flips the bits of `mask` in one byte. */
void copies_flip(const char *path, off_t at, unsigned mask);
/* A file, or a folder with everything in it. */
void copies_remove(const char *path);

#endif
