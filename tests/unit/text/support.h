/* What the tests of the text rooms share: the real model's tokenizer, rows of recorded fixtures and
 * a small byte-level vocabulary made by hand. Failures to set up fail the test that asked. */
#ifndef SHOAL_TESTS_UNIT_TEXT_SUPPORT_H
#define SHOAL_TESTS_UNIT_TEXT_SUPPORT_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model/tokenizer.h"

/* cmocka has a `fail` of its own, which its fail_msg needs; ours is not used in tests. */
#undef fail
#include <cmocka.h>

/* SHOAL_MODEL, or where quickstart and tests/run put SmolLM2-135M-Instruct in the checkout. */
const char *support_model_path(void);
/* The real tokenizer, opened once a program and never released before its end. */
tokenizer_t *support_smollm2(void);
void support_release(void);

/* A fixture file below tests/golden, as one text. */
char *support_read(const char *name, size_t *n_out);
/* Its lines, each parsed: an array of objects. */
json_t *support_rows(const char *name);

/* A vocabulary: the 256 byte tokens first (ids 0 to 255 in byte order), then what is added. */
typedef struct {
    tokenizer_text_t tokens[512];
    uint8_t kinds[512];
    char spellings[256][3];
    tokenizer_text_t merges[128];
    tokenizer_source_t source;
} support_vocabulary_t;

void support_vocabulary(support_vocabulary_t *vocabulary);
/* Returns the new id. `text` must outlive the vocabulary. */
uint32_t support_add_token(support_vocabulary_t *vocabulary, const char *text, token_kind_t kind);
/* Adds the merge and the token that it makes. */
void support_add_merge(support_vocabulary_t *vocabulary, const char *merge, const char *token);

#endif
