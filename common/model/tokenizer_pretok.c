/* See tokenizer_pretok.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/model/tokenizer_pretok.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

enum { PATTERNS_MAX = 4 };

/* White space is written out: PCRE2's \s under UCP also takes U+180E, which left White_Space in
 * Unicode 6.3 and which the patterns' other engines no longer take. */
#define SPACES "\\t-\\r\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}"                   \
               "\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define SPACE "[" SPACES "]"
#define NO_SPACE "[^" SPACES "]"
#define GPT2_WORDS                                                                                 \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|" SPACE              \
    "+(?!" NO_SPACE ")"

typedef struct {
    const char *name;
    bool ignores_merges;
    const char *patterns[PATTERNS_MAX]; /* NULL after the last */
} pretok_row_t;

/* "smollm" is tokenizer.json's Digits (individual) then ByteLevel; "default" is what llama.cpp uses
 * for files that name no pre-tokenizer. */
static const pretok_row_t rows[] = {
    {"gpt-2", false, {GPT2_WORDS "|" SPACE "+"}},
    {"smollm", false, {"\\p{N}", GPT2_WORDS "|" SPACE "+"}},
    {"llama-bpe", true,
     {"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
      "\\p{N}{1,3}| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]+|" SPACE
      "+(?!" NO_SPACE ")|" SPACE "+"}},
    {"default", false, {"[\\p{P}$+<=>^~|]+", GPT2_WORDS, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

struct pretok {
    const pretok_row_t *row;
    pcre2_code *codes[PATTERNS_MAX];
    size_t n_codes;
};

/* One split in progress: the library's scratch memory, one for each pattern since they nest. */
typedef struct {
    const pretok_t *pretok;
    pcre2_match_context *limits;
    pcre2_match_data *matches[PATTERNS_MAX];
    pretok_fn fn;
    void *context;
} split_t;

static status_t compile(pretok_t *pretok, const char *pattern)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (compiled == NULL)
        return fail(STATUS_INTERNAL, "pre-tokenizer %s: pattern %zu: PCRE2 error %d at %zu",
                    pretok->row->name, pretok->n_codes, code, at);
    pretok->codes[pretok->n_codes++] = compiled;
    return STATUS_OK;
}

static const pretok_row_t *find_row(const char *name)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    return NULL;
}

status_t pretok_create(const char *name, pretok_t **own_out)
{
    const pretok_row_t *row = find_row(name);
    if (row == NULL)
        return fail(STATUS_UNSUPPORTED,
                    "pre-tokenizer \"%.64s\" is not known; "
                    "known are gpt-2, smollm, llama-bpe and default",
                    name);
    pretok_t *pretok = MEM_NEW(pretok_t);
    pretok->row = row;
    for (size_t i = 0; i < PATTERNS_MAX && row->patterns[i] != NULL; i++) {
        status_t status = compile(pretok, row->patterns[i]);
        if (status != STATUS_OK) {
            pretok_release(pretok);
            return status;
        }
    }
    *own_out = pretok;
    return STATUS_OK;
}

void pretok_release(pretok_t *take_pretok)
{
    if (take_pretok == NULL)
        return;
    for (size_t i = 0; i < take_pretok->n_codes; i++)
        pcre2_code_free(take_pretok->codes[i]);
    free(take_pretok);
}

bool pretok_ignores_merges(const pretok_t *pretok)
{
    return pretok->row->ignores_merges;
}

/* Cuts one piece by the patterns from `level` on. Recurses once a pattern. */
static status_t split_piece(split_t *split, size_t level, const char *piece, size_t n)
{
    if (n == 0)
        return STATUS_OK;
    if (level == split->pretok->n_codes)
        return split->fn(split->context, piece, n);
    size_t at = 0;
    while (at < n) {
        int rc = pcre2_match(split->pretok->codes[level], (PCRE2_SPTR)piece, n, at,
                             PCRE2_NO_UTF_CHECK, split->matches[level], split->limits);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return fail(STATUS_INVALID,
                        "pre-tokenizer %s gives up on a piece of %zu bytes (PCRE2 error %d); "
                        "shorter runs of one kind of character pass",
                        split->pretok->row->name, n, rc);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(split->matches[level]);
        size_t start = range[0], end = range[1];
        CHECK(start >= at && end > start && end <= n); /* no pattern of the table matches nothing */
        TRY(split_piece(split, level + 1, piece + at, start - at));
        TRY(split_piece(split, level + 1, piece + start, end - start));
        at = end;
    }
    return split_piece(split, level + 1, piece + at, n - at);
}

status_t pretok_split(const pretok_t *pretok, const char *text, size_t n, pretok_fn fn,
                      void *context)
{
    if (n == 0)
        return STATUS_OK;
    split_t split = {.pretok = pretok, .fn = fn, .context = context};
    split.limits = pcre2_match_context_create(NULL);
    bool have_memory = split.limits != NULL;
    for (size_t i = 0; i < pretok->n_codes; i++) {
        split.matches[i] = pcre2_match_data_create(1, NULL);
        have_memory = have_memory && split.matches[i] != NULL;
    }
    status_t status;
    if (have_memory) {
        /* Each pattern needs a few steps a character; the limit keeps a wrong row from hanging. */
        uint32_t steps_max = (uint32_t)(n < 64u << 20 ? 1000000 + 16 * n : UINT32_MAX);
        pcre2_set_match_limit(split.limits, steps_max);
        status = split_piece(&split, 0, text, n);
    } else {
        status = fail(STATUS_NO_MEMORY, "no memory for the pre-tokenizer");
    }
    for (size_t i = 0; i < pretok->n_codes; i++)
        pcre2_match_data_free(split.matches[i]);
    pcre2_match_context_free(split.limits);
    return status;
}
