/* Cuts a template into tokens, with the whitespace rules that Hugging Face sets: trim_blocks and
 * lstrip_blocks on, one newline at the end dropped. Internal to the chat templates. */
#ifndef SHOAL_COMMON_MODEL_JINJA_LEX_H
#define SHOAL_COMMON_MODEL_JINJA_LEX_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/memory.h"
#include "common/base/status.h"

typedef enum {
    TOKEN_DATA,  /* template text outside of tags */
    TOKEN_OPEN_OUTPUT, /* {{ */
    TOKEN_CLOSE_OUTPUT,
    TOKEN_OPEN_BLOCK, /* {% */
    TOKEN_CLOSE_BLOCK,
    TOKEN_NAME,
    TOKEN_TEXT, /* a string literal, escapes resolved */
    TOKEN_INTEGER,
    TOKEN_REAL,
    TOKEN_OPERATOR,
    TOKEN_END,
} jinja_token_kind_t;

typedef struct {
    jinja_token_kind_t kind;
    uint32_t line;
    const char *text; /* of data, names, literals and operators */
    size_t size;
    int64_t integer;
    double real;
} jinja_token_t;

typedef struct {
    jinja_token_t *tokens; /* malloc'ed; the last one is TOKEN_END */
    size_t n, capacity;
} jinja_tokens_t;

/* Texts of the tokens are in the arena. On failure the list may hold tokens; release it either
 * way. */
status_t jinja_lex(arena_t *arena, const char *source, size_t n, jinja_tokens_t *tokens) MUST_USE;
void jinja_tokens_release(jinja_tokens_t *tokens);

#endif
