/* See tokenizer_pretok.h. */
#include "common/model/tokenizer_pretok.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

/* One split in progress. */
typedef struct {
    const pretok_t *pretok;
    size_t n_stages;
    pretok_scratch_t *scratch;
    pretok_fn fn;
    void *context;
} split_t;

status_t pretok_add(pretok_t *pretok, pretok_stage_t take_stage)
{
    if (pretok->n < PRETOK_STAGES_MAX) {
        pretok->stages[pretok->n++] = take_stage;
        return STATUS_OK;
    }
    pattern_release(take_stage.pattern);
    return fail(STATUS_INVALID, "the pre-tokenizer has more than %d stages", PRETOK_STAGES_MAX);
}

status_t pretok_add_split(pretok_t *pretok, const char *expression, split_behavior_t behavior,
                          bool invert)
{
    pretok_stage_t stage = {.kind = PRETOK_SPLIT, .behavior = behavior, .invert = invert};
    TRY(pattern_regex(expression, strlen(expression), &stage.pattern));
    return pretok_add(pretok, stage);
}

status_t pretok_add_byte_level(pretok_t *pretok, bool prefix_space, bool words)
{
    if (prefix_space)
        TRY(pretok_add(pretok, (pretok_stage_t){.kind = PRETOK_SPACE}));
    if (words)
        TRY(pretok_add_split(pretok,
                             "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                             "\\s+(?!\\S)|\\s+",
                             SPLIT_ISOLATED, false));
    return pretok_add(pretok, (pretok_stage_t){.kind = PRETOK_BYTES});
}

status_t pretok_add_metaspace(pretok_t *pretok, const char *replacement, prepend_t prepend,
                              bool split)
{
    pretok_stage_t stage = {.kind = PRETOK_METASPACE, .prepend = prepend,
                            .behavior = SPLIT_MERGED_WITH_NEXT};
    size_t n = strlen(replacement), length = 0;
    if (n == 0 || utf8_next((const uint8_t *)replacement, n, &length) != UTF8_COMPLETE ||
        length != n)
        return fail(STATUS_INVALID, "a Metaspace replaces by \"%.20s\"; it must be one character",
                    replacement);
    memcpy(stage.replacement, replacement, n);
    if (split)
        TRY(pattern_literal(replacement, n, &stage.pattern));
    return pretok_add(pretok, stage);
}

void pretok_release(pretok_t *pretok)
{
    for (size_t i = 0; i < pretok->n; i++)
        pattern_release(pretok->stages[i].pattern);
    *pretok = (pretok_t){0};
}

void pretok_scratch_release(pretok_scratch_t *scratch)
{
    for (size_t i = 0; i < PRETOK_STAGES_MAX; i++) {
        buffer_release(&scratch->text[i]);
        free(scratch->ranges[i]);
    }
    pattern_scratch_release(&scratch->patterns);
    *scratch = (pretok_scratch_t){0};
}

static void add_range(pretok_scratch_t *scratch, size_t level, size_t start, size_t end,
                      bool is_match)
{
    MEM_GROW(scratch->ranges[level], scratch->ranges_capacity[level], scratch->n_ranges[level] + 1);
    scratch->ranges[level][scratch->n_ranges[level]++] = (pretok_range_t){start, end, is_match};
}

/* Joins a match with the text before it or behind it. Of a run of matches only the one that touches
 * the text joins, as in Hugging Face. */
static size_t merge_with_neighbour(pretok_range_t *ranges, size_t n, bool with_next)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        bool joins = with_next ? kept > 0 && ranges[kept - 1].is_match && !ranges[i].is_match
                               : kept > 0 && ranges[i].is_match && !ranges[i - 1].is_match;
        if (joins) {
            ranges[kept - 1].end = ranges[i].end;
            ranges[kept - 1].is_match = false;
        } else {
            ranges[kept++] = ranges[i];
        }
    }
    return kept;
}

static size_t merge_equals(pretok_range_t *ranges, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (kept > 0 && ranges[kept - 1].is_match == ranges[i].is_match)
            ranges[kept - 1].end = ranges[i].end;
        else
            ranges[kept++] = ranges[i];
    return kept;
}

/* All matches of the stage's pattern and what lies between, from left to right. */
static status_t find_ranges(split_t *split, const pretok_stage_t *stage, size_t level,
                            const char *text, size_t n)
{
    pretok_scratch_t *scratch = split->scratch;
    pattern_walk_t walk = PATTERN_WALK_START;
    size_t done = 0;
    scratch->n_ranges[level] = 0;
    for (;;) {
        bool found;
        TRY(pattern_next(stage->pattern, &scratch->patterns, text, n, &walk, &found));
        if (!found)
            break;
        if (walk.start > done)
            add_range(scratch, level, done, walk.start, stage->invert);
        add_range(scratch, level, walk.start, walk.end, !stage->invert); /* an empty one cuts too */
        done = walk.end;
    }
    if (done < n)
        add_range(scratch, level, done, n, stage->invert);
    return STATUS_OK;
}

static status_t run_stage(split_t *split, size_t level, const char *text, size_t n, bool is_start);

static status_t run_split(split_t *split, size_t level, const char *text, size_t n, bool is_start)
{
    const pretok_stage_t *stage = &split->pretok->stages[level];
    pretok_scratch_t *scratch = split->scratch;
    TRY(find_ranges(split, stage, level, text, n));
    size_t n_ranges = scratch->n_ranges[level];
    if (stage->behavior == SPLIT_CONTIGUOUS)
        n_ranges = merge_equals(scratch->ranges[level], n_ranges);
    else if (stage->behavior == SPLIT_MERGED_WITH_NEXT ||
             stage->behavior == SPLIT_MERGED_WITH_PREVIOUS)
        n_ranges = merge_with_neighbour(scratch->ranges[level], n_ranges,
                                        stage->behavior == SPLIT_MERGED_WITH_NEXT);
    for (size_t i = 0; i < n_ranges; i++) {
        pretok_range_t range = scratch->ranges[level][i];
        if (stage->behavior == SPLIT_REMOVED && range.is_match)
            continue;
        TRY(run_stage(split, level + 1, text + range.start, range.end - range.start,
                      is_start && range.start == 0));
    }
    return STATUS_OK;
}

static status_t run_space(split_t *split, size_t level, const char *text, size_t n, bool is_start)
{
    if (*text == ' ')
        return run_stage(split, level + 1, text, n, is_start);
    buffer_t *out = &split->scratch->text[level];
    buffer_clear(out);
    buffer_append(out, " ", 1);
    buffer_append(out, text, n);
    return run_stage(split, level + 1, buffer_text(out), out->size, is_start);
}

static status_t run_bytes(split_t *split, size_t level, const char *text, size_t n, bool is_start)
{
    buffer_t *out = &split->scratch->text[level];
    buffer_clear(out);
    for (size_t i = 0; i < n; i++) {
        uint8_t character[BYTE_TEXT_MAX];
        size_t size = byte_alphabet_write((uint8_t)text[i], character);
        buffer_append(out, character, size);
    }
    return run_stage(split, level + 1, buffer_text(out), out->size, is_start);
}

static status_t run_metaspace(split_t *split, size_t level, const char *text, size_t n,
                              bool is_start)
{
    const pretok_stage_t *stage = &split->pretok->stages[level];
    buffer_t *out = &split->scratch->text[level];
    size_t size = strlen(stage->replacement);
    buffer_clear(out);
    bool prepend =
        stage->prepend == PREPEND_ALWAYS || (stage->prepend == PREPEND_FIRST && is_start);
    bool has_one = *text == ' ' || (n >= size && memcmp(text, stage->replacement, size) == 0);
    if (prepend && !has_one)
        buffer_append(out, stage->replacement, size);
    for (size_t at = 0; at < n;) {
        const char *space = memchr(text + at, ' ', n - at);
        size_t run = space == NULL ? n - at : (size_t)(space - text) - at;
        buffer_append(out, text + at, run);
        at += run;
        if (space != NULL) {
            buffer_append(out, stage->replacement, size);
            at++;
        }
    }
    if (stage->pattern != NULL)
        return run_split(split, level, buffer_text(out), out->size, is_start);
    return run_stage(split, level + 1, buffer_text(out), out->size, is_start);
}

/* Cuts one piece by the stages from `level` on. Recurses once a stage. */
static status_t run_stage(split_t *split, size_t level, const char *text, size_t n, bool is_start)
{
    if (n == 0)
        return STATUS_OK;
    if (level == split->n_stages)
        return split->fn(split->context, text, n);
    switch (split->pretok->stages[level].kind) {
    case PRETOK_SPLIT: return run_split(split, level, text, n, is_start);
    case PRETOK_SPACE: return run_space(split, level, text, n, is_start);
    case PRETOK_METASPACE: return run_metaspace(split, level, text, n, is_start);
    case PRETOK_BYTES: return run_bytes(split, level, text, n, is_start);
    }
    return STATUS_OK;
}

status_t pretok_split(const pretok_t *pretok, size_t n_stages, pretok_scratch_t *scratch,
                      const char *text, size_t n, bool is_start, pretok_fn fn, void *context)
{
    CHECK(n_stages <= pretok->n);
    split_t split = {pretok, n_stages, scratch, fn, context};
    return run_stage(&split, 0, text, n, is_start);
}
