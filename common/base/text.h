/* Small questions about texts that the C library has no answer to. */
#ifndef SHOAL_COMMON_BASE_TEXT_H
#define SHOAL_COMMON_BASE_TEXT_H

#include <stdbool.h>
#include <string.h>

/* Whether `text` ends with `ending` and has something before it. */
static inline bool text_ends_with(const char *text, const char *ending)
{
    size_t n = strlen(text), n_ending = strlen(ending);
    return n > n_ending && strcmp(text + n - n_ending, ending) == 0;
}

#endif
