/* Properties and cases of Unicode characters as Python's str sees them: which ones repr shows, what
 * isalpha and others answer, upper and lower case. Internal to the chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_CHARACTER_H
#define SHOAL_COMMON_MODEL_JINJA_CHARACTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether repr shows the character as it is. */
bool character_prints(uint32_t code);

typedef enum {
    CHARACTER_LETTER,  /* isalpha */
    CHARACTER_DECIMAL, /* isdecimal */
    CHARACTER_DIGIT,   /* isdigit */
    CHARACTER_NUMERIC, /* isnumeric */
    CHARACTER_UPPER,   /* upper or title case */
    CHARACTER_LOWER,
    CHARACTER_WORD,    /* \w of Python's re */
} character_class_t;

bool character_is(uint32_t code, character_class_t class);

typedef enum { CHARACTER_TO_LOWER, CHARACTER_TO_UPPER, CHARACTER_TO_TITLE } character_case_t;

/* One character in another case: one to three characters in out; returns how many. The sigma at the
 * end of a word is the caller's, who sees the word. */
enum { CHARACTER_CASE_MAX = 3 };
size_t character_case(uint32_t code, character_case_t to, uint32_t out[CHARACTER_CASE_MAX]);

#endif
