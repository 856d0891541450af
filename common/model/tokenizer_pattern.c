/* See tokenizer_pattern.h. The translation is in tokenizer_pattern_translate.c. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/model/tokenizer_pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/unicode.h"

/* The patterns of real tokenizers take a few steps a character; the limit is of one match. */
enum { STEPS_BASE = 1000000, STEPS_PER_BYTE = 16, JIT_STACK_BYTES_MAX = 16 << 20 };

struct pattern {
    char *literal; /* NULL for an expression */
    size_t literal_size;
    pcre2_code *code;
};

void pattern_scratch_release(pattern_scratch_t *scratch)
{
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->limits);
    pcre2_jit_stack_free(scratch->stack);
    *scratch = (pattern_scratch_t){0};
}

status_t pattern_literal(const char *text, size_t n, pattern_t **own_out)
{
    if (n == 0 || n > PATTERN_BYTES_MAX)
        return fail(STATUS_INVALID, "a pattern has %zu bytes; it must have 1 to %d", n,
                    PATTERN_BYTES_MAX);
    pattern_t *pattern = MEM_NEW(pattern_t);
    pattern->literal = mem_strndup(text, n);
    pattern->literal_size = n;
    *own_out = pattern;
    return STATUS_OK;
}

status_t pattern_regex(const char *text, size_t n, pattern_t **own_out)
{
    if (n == 0 || n > PATTERN_BYTES_MAX)
        return fail(STATUS_INVALID, "a pattern has %zu bytes; it must have 1 to %d", n,
                    PATTERN_BYTES_MAX);
    buffer_t translated = {0};
    status_t status = pattern_translate(text, n, &translated);
    if (status == STATUS_OK) {
        int code;
        PCRE2_SIZE at;
        /* Ruby's syntax, Oniguruma's default, always matches ^ and $ at line ends. */
        pcre2_code *compiled =
            pcre2_compile(translated.data, translated.size,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                          &at, NULL);
        if (compiled == NULL) {
            PCRE2_UCHAR words[128] = "";
            pcre2_get_error_message(code, words, sizeof words);
            status = fail(STATUS_INVALID, "the pattern \"%.80s\" is wrong: %s", text, words);
        } else {
            /* Without the compiler's help (a kernel may forbid it) matching is slower, no more. */
            (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
            pattern_t *pattern = MEM_NEW(pattern_t);
            pattern->code = compiled;
            *own_out = pattern;
        }
    }
    buffer_release(&translated);
    return status;
}

void pattern_release(pattern_t *take_pattern)
{
    if (take_pattern == NULL)
        return;
    free(take_pattern->literal);
    pcre2_code_free(take_pattern->code);
    free(take_pattern);
}

const char *pattern_literal_text(const pattern_t *pattern, size_t *n_out)
{
    *n_out = pattern->literal_size;
    return pattern->literal;
}

static status_t need_scratch(pattern_scratch_t *scratch)
{
    if (scratch->match != NULL)
        return STATUS_OK;
    scratch->match = pcre2_match_data_create(1, NULL);
    scratch->limits = pcre2_match_context_create(NULL);
    if (scratch->match == NULL || scratch->limits == NULL)
        return fail(STATUS_NO_MEMORY, "no memory for the pre-tokenizer");
    return STATUS_OK;
}

/* The compiled code's own stack is enough for every pattern that was seen; a larger one is made
 * when a pattern asks for it. */
static bool grow_stack(pattern_scratch_t *scratch)
{
    if (scratch->stack != NULL)
        return false;
    scratch->stack = pcre2_jit_stack_create(1 << 16, JIT_STACK_BYTES_MAX, NULL);
    if (scratch->stack == NULL)
        return false;
    pcre2_jit_stack_assign(scratch->limits, NULL, scratch->stack);
    return true;
}

/* The first match that begins at `at` or later. */
static status_t find(const pattern_t *pattern, pattern_scratch_t *scratch, const char *text,
                     size_t n, size_t at, bool *found_out, size_t *start_out, size_t *end_out)
{
    *found_out = false;
    if (pattern->literal != NULL) {
        const char *hit =
            at < n ? memmem(text + at, n - at, pattern->literal, pattern->literal_size) : NULL;
        if (hit != NULL) {
            *found_out = true;
            *start_out = (size_t)(hit - text);
            *end_out = *start_out + pattern->literal_size;
        }
        return STATUS_OK;
    }
    TRY(need_scratch(scratch));
    size_t steps_max = STEPS_BASE + STEPS_PER_BYTE * (n - at);
    pcre2_set_match_limit(scratch->limits,
                          steps_max < UINT32_MAX ? (uint32_t)steps_max : UINT32_MAX);
    int rc;
    do
        rc = pcre2_match(pattern->code, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK,
                         scratch->match, scratch->limits);
    while (rc == PCRE2_ERROR_JIT_STACKLIMIT && grow_stack(scratch));
    if (rc == PCRE2_ERROR_NOMATCH)
        return STATUS_OK;
    if (rc < 0)
        return fail(STATUS_INVALID,
                    "a pattern of the tokenizer gives up on a piece of %zu bytes (PCRE2 error %d); "
                    "shorter runs of one kind of character pass",
                    n, rc);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(scratch->match);
    /* A look-behind with \K can report an end before its start; such a match is taken as empty. */
    *found_out = true;
    *start_out = range[0] < at ? at : range[0];
    *end_out = range[1] < *start_out ? *start_out : range[1];
    return STATUS_OK;
}

status_t pattern_next(const pattern_t *pattern, pattern_scratch_t *scratch, const char *text,
                      size_t n, pattern_walk_t *walk, bool *found_out)
{
    *found_out = false;
    while (walk->at <= n) {
        TRY(find(pattern, scratch, text, n, walk->at, found_out, &walk->start, &walk->end));
        if (!*found_out)
            return STATUS_OK;
        walk->at = walk->end;
        if (walk->start < walk->end || walk->end != walk->last_end) {
            walk->last_end = walk->end;
            return STATUS_OK;
        }
        size_t length = 1;
        if (walk->at < n)
            (void)utf8_decode((const uint8_t *)text + walk->at, &length);
        walk->at += length;
        *found_out = false;
    }
    return STATUS_OK;
}
