/* Unicode's normalization forms and the few character properties that tokenizers ask for.
 *
 * The tables are utf8proc's, except that characters which entered after Unicode 9 and have a
 * decomposition or a combining class are left as they are: so do Hugging Face's tokenizers, whose
 * vocabularies were made with those tables. Linear in the text, whatever its marks. */
#ifndef SHOAL_COMMON_MODEL_UNICODE_FORM_H
#define SHOAL_COMMON_MODEL_UNICODE_FORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { UNICODE_NFC, UNICODE_NFD, UNICODE_NFKC, UNICODE_NFKD } unicode_form_t;

/* Scratch that grows; zero-initialised is ready. */
typedef struct {
    int32_t *points, *sorted;
    size_t n, points_capacity, sorted_capacity;
} unicode_scratch_t;

void unicode_scratch_release(unicode_scratch_t *scratch);

/* Whether the character is the same in this form and joins with nothing before or after it but what
 * is not inert itself; such runs can be copied. */
bool unicode_is_inert(unicode_form_t form, uint32_t code_point);

/* Normalizes the valid UTF-8 text into scratch->points[0..scratch->n). */
void unicode_normalize(unicode_form_t form, const uint8_t *text, size_t n,
                       unicode_scratch_t *scratch);

/* General category M: what StripAccents leaves out (as of Unicode 15). */
bool unicode_is_mark(uint32_t code_point);
/* Mn alone. */
bool unicode_is_nonspacing(uint32_t code_point);
/* General category P or an ASCII symbol. */
bool unicode_is_punctuation(uint32_t code_point);
/* Categories Cc, Cf, Cn, Co, except tab, line feed and carriage return. */
bool unicode_is_control(uint32_t code_point);
/* A character of \w: alphabetic, mark, decimal digit, connector or joiner. */
bool unicode_is_word(uint32_t code_point);
/* White_Space, as the regular expressions' \s. */
bool unicode_is_white(uint32_t code_point);
/* Writes the lower case of one character, which may be two; returns how many. */
size_t unicode_lower(uint32_t code_point, uint32_t out[2]);
/* Whether a grapheme cluster ends between the two characters. *state is 0 before the first pair. */
bool unicode_grapheme_ends(uint32_t left, uint32_t right, int32_t *state);

#endif
