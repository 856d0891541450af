/* UTF-8 as the Unicode standard defines it (table 3-7): no surrogates, no overlong forms, nothing
 * above U+10FFFF. Pure functions over bytes. */
#ifndef SHOAL_COMMON_MODEL_UNICODE_H
#define SHOAL_COMMON_MODEL_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"

enum { UNICODE_UTF8_MAX = 4 };

typedef enum {
    UTF8_COMPLETE, /* a whole character */
    UTF8_PARTIAL,  /* the start of one: more bytes could complete it */
    UTF8_BROKEN,   /* no bytes can complete it */
} utf8_kind_t;

/* Looks at the first character of bytes[0..n), n > 0. *length_out is its size; of a partial one
 * what is there of it; of a broken one its maximal subpart (1 to 3 bytes), which is what one
 * U+FFFD replaces (Unicode, section 3.9; Rust's from_utf8_lossy and Python's "replace" do the
 * same). */
utf8_kind_t utf8_next(const uint8_t *bytes, size_t n, size_t *length_out);

/* The offset of the first byte that is not valid UTF-8, or n. */
size_t utf8_valid_prefix(const uint8_t *bytes, size_t n);

/* The code point of the character at `bytes`, which must be complete and valid. */
uint32_t utf8_decode(const uint8_t *bytes, size_t *length_out);

/* Writes code_point (at most U+10FFFF) to out and returns its size. */
size_t utf8_encode(uint32_t code_point, uint8_t out[UNICODE_UTF8_MAX]);

/* Whether Python's str.strip takes the character for white space. */
bool unicode_is_space(uint32_t code_point);

/* Appends the bytes with U+FFFD for what is broken. An incomplete end is left out of `out` and its
 * size returned (0 to 3), unless `at_end`: then it too becomes U+FFFD. */
size_t utf8_append_lossy(buffer_t *out, const uint8_t *bytes, size_t n, bool at_end);

#endif
