/* See tokenizer_normalize.h. */
#include "common/model/tokenizer_normalize.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/tokenizer.h"
#include "common/model/tokenizer_internal.h"
#include "common/model/unicode.h"

enum { GROWTH_MAX = 16, GRAPHEME_BYTES = 6 };

/* One step in progress: from `in` to `out`, with or without marks. */
typedef struct {
    const normalize_step_t *step;
    const normal_text_t *in;
    normalize_scratch_t *scratch;
    buffer_t *out, *out_marks;
    bool keeps_start; /* the first character was made of the first one of the input */
} step_run_t;

status_t normalizer_add(normalizer_t *normalizer, normalize_step_t take_step)
{
    if (normalizer->n < NORMALIZE_STEPS_MAX) {
        normalizer->steps[normalizer->n++] = take_step;
        return STATUS_OK;
    }
    pattern_release(take_step.pattern);
    charsmap_release(take_step.charsmap);
    free(take_step.content);
    return fail(STATUS_INVALID, "the normalizer has more than %d steps", NORMALIZE_STEPS_MAX);
}

void normalizer_release(normalizer_t *normalizer)
{
    for (size_t i = 0; i < normalizer->n; i++) {
        pattern_release(normalizer->steps[i].pattern);
        charsmap_release(normalizer->steps[i].charsmap);
        free(normalizer->steps[i].content);
    }
    *normalizer = (normalizer_t){0};
}

void normalize_scratch_release(normalize_scratch_t *scratch)
{
    for (size_t i = 0; i < 2; i++) {
        buffer_release(&scratch->text[i]);
        buffer_release(&scratch->marks[i]);
    }
    unicode_scratch_release(&scratch->unicode);
    pattern_scratch_release(&scratch->patterns);
    *scratch = (normalize_scratch_t){0};
}

/* What is appended from here on was made of in->data[from..to). */
static void put(step_run_t *run, const void *bytes, size_t n, size_t from, size_t to)
{
    if (run->out->size == 0 && n > 0)
        run->keeps_start = from == 0;
    buffer_append(run->out, bytes, n);
    if (run->in->marks == NULL)
        return;
    uint8_t mark = 1;
    for (size_t i = from; i < to && mark != 0; i++)
        mark = run->in->marks[i];
    for (size_t i = 0; i < n; i++)
        buffer_append(run->out_marks, &mark, 1);
}

/* Copies in->data[from..to) with its own marks. */
static void keep(step_run_t *run, size_t from, size_t to)
{
    if (run->out->size == 0 && to > from)
        run->keeps_start = from == 0;
    buffer_append(run->out, run->in->data + from, to - from);
    if (run->in->marks != NULL)
        buffer_append(run->out_marks, run->in->marks + from, to - from);
}

static void put_point(step_run_t *run, uint32_t point, size_t from, size_t to)
{
    uint8_t bytes[UNICODE_UTF8_MAX];
    size_t n = utf8_encode(point, bytes);
    put(run, bytes, n, from, to);
}

/* The end of the run of characters from `at` that the form leaves as they are. The last of a run is
 * left out when what follows may join with it. */
static size_t inert_end(const step_run_t *run, size_t at)
{
    size_t end = at, length;
    while (at < run->in->n) {
        if (!unicode_is_inert(run->step->form, utf8_decode(run->in->data + at, &length)))
            return end;
        end = at;
        at += length;
    }
    return at;
}

static void run_form(step_run_t *run)
{
    size_t at = 0, n = run->in->n, length;
    while (at < n) {
        size_t end = inert_end(run, at);
        keep(run, at, end);
        if (end == n)
            return;
        at = end;
        /* From the character that may be joined with up to the next inert one. */
        do {
            (void)utf8_decode(run->in->data + end, &length);
            end += length;
        } while (end < n && !unicode_is_inert(run->step->form,
                                              utf8_decode(run->in->data + end, &length)));
        unicode_normalize(run->step->form, run->in->data + at, end - at, &run->scratch->unicode);
        for (size_t i = 0; i < run->scratch->unicode.n; i++)
            put_point(run, (uint32_t)run->scratch->unicode.points[i], at, end);
        at = end;
    }
}

static bool is_chinese(uint32_t point)
{
    static const uint32_t ranges[][2] = {
        {0x3400, 0x4DBF}, {0x4E00, 0x9FFF}, {0xF900, 0xFAFF}, {0x20000, 0x2A6DF},
        {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (point >= ranges[i][0] && point <= ranges[i][1])
            return true;
    return false;
}

static bool nmt_drops(uint32_t point)
{
    return (point >= 0x1 && point <= 0x8) || point == 0xB || (point >= 0xE && point <= 0x1F) ||
           point == 0x7F || point == 0x8F || point == 0x9F;
}

static bool nmt_is_space(uint32_t point)
{
    return point == 0x9 || point == 0xA || point == 0xC || point == 0xD || point == 0x1680 ||
           (point >= 0x200B && point <= 0x200F) || point == 0x2028 || point == 0x2029 ||
           point == 0x2581 || point == 0xFEFF || point == 0xFFFD;
}

/* The steps that look at one character at a time. */
static void run_character(step_run_t *run, uint32_t point, size_t at, size_t end)
{
    uint32_t lower[2];
    bool drop = false, space = false;
    switch (run->step->kind) {
    case NORMALIZE_LOWERCASE:
        for (size_t i = 0, n = unicode_lower(point, lower); i < n; i++)
            put_point(run, lower[i], at, end);
        return;
    case NORMALIZE_STRIP_ACCENTS: drop = unicode_is_mark(point); break;
    case NORMALIZE_STRIP_NONSPACING: drop = unicode_is_nonspacing(point); break;
    case NORMALIZE_NMT:
        drop = nmt_drops(point);
        space = nmt_is_space(point);
        break;
    case NORMALIZE_CLEAN:
        drop = point == 0 || point == 0xFFFD || unicode_is_control(point);
        space = unicode_is_white(point);
        break;
    case NORMALIZE_BYTE_LEVEL:
        for (size_t i = at; i < end; i++) {
            uint8_t character[BYTE_TEXT_MAX];
            put(run, character, byte_alphabet_write(run->in->data[i], character), i, i + 1);
        }
        return;
    case NORMALIZE_CHINESE:
        if (is_chinese(point)) {
            put(run, " ", 1, at, end);
            keep(run, at, end);
            put(run, " ", 1, at, end);
            return;
        }
        break;
    default: break;
    }
    if (drop)
        return;
    if (space)
        put(run, " ", 1, at, end);
    else
        keep(run, at, end);
}

static void run_characters(step_run_t *run)
{
    size_t length;
    for (size_t at = 0; at < run->in->n; at += length) {
        uint32_t point = utf8_decode(run->in->data + at, &length);
        run_character(run, point, at, at + length);
    }
}

static void run_strip(step_run_t *run)
{
    size_t start = 0, end = 0, length;
    bool inside = !run->step->left;
    for (size_t at = 0; at < run->in->n; at += length) {
        bool white = unicode_is_white(utf8_decode(run->in->data + at, &length));
        if (!inside && white)
            start = at + length;
        inside = inside || !white;
        if (!white || !run->step->right)
            end = at + length;
    }
    if (end > start)
        keep(run, start, end);
}

static status_t run_replace(step_run_t *run)
{
    const char *text = (const char *)run->in->data;
    size_t n = run->in->n, done = 0;
    size_t out_max = (size_t)GROWTH_MAX * TOKENIZER_TEXT_BYTES_MAX;
    pattern_walk_t walk = PATTERN_WALK_START;
    for (;;) {
        bool found;
        TRY(pattern_next(run->step->pattern, &run->scratch->patterns, text, n, &walk, &found));
        if (!found)
            break;
        keep(run, done, walk.start);
        put(run, run->step->content, run->step->content_size, walk.start, walk.end);
        if (run->out->size > out_max)
            return fail(STATUS_INVALID, "the normalized text has more than %zu bytes; shorten it",
                        out_max);
        done = walk.end;
    }
    keep(run, done, n);
    return STATUS_OK;
}

static void put_mapped(step_run_t *run, size_t at, size_t end)
{
    size_t size;
    const uint8_t *mapped =
        charsmap_find(run->step->charsmap, run->in->data + at, end - at, &size);
    if (mapped != NULL)
        put(run, mapped, size, at, end);
    else
        keep(run, at, end);
}

/* Grapheme by grapheme: a short one may be in the map as a whole, others by their characters. */
static void run_charsmap(step_run_t *run)
{
    const uint8_t *data = run->in->data;
    size_t n = run->in->n, length;
    for (size_t at = 0; at < n;) {
        int32_t state = 0;
        uint32_t left = utf8_decode(data + at, &length);
        size_t end = at + length;
        while (end < n) {
            uint32_t right = utf8_decode(data + end, &length);
            if (unicode_grapheme_ends(left, right, &state))
                break;
            left = right;
            end += length;
        }
        size_t size;
        if (end - at < GRAPHEME_BYTES &&
            charsmap_find(run->step->charsmap, data + at, end - at, &size) != NULL) {
            put_mapped(run, at, end);
            at = end;
        }
        for (; at < end; at += length) {
            (void)utf8_decode(data + at, &length);
            put_mapped(run, at, at + length);
        }
    }
}

static void run_squeeze(step_run_t *run)
{
    bool pending = false;
    for (size_t at = 0; at < run->in->n; at++) {
        if (run->in->data[at] == ' ') {
            pending = run->out->size > 0;
            continue;
        }
        if (pending)
            put(run, " ", 1, at - 1, at);
        pending = false;
        keep(run, at, at + 1);
    }
}

static status_t run_step(step_run_t *run)
{
    switch (run->step->kind) {
    case NORMALIZE_FORM: run_form(run); break;
    case NORMALIZE_STRIP: run_strip(run); break;
    case NORMALIZE_REPLACE: return run_replace(run);
    case NORMALIZE_PREPEND:
        if (run->in->n > 0) {
            put(run, run->step->content, run->step->content_size, 0, 1);
            keep(run, 0, run->in->n);
        }
        break;
    case NORMALIZE_CHARSMAP: run_charsmap(run); break;
    case NORMALIZE_SQUEEZE: run_squeeze(run); break;
    default: run_characters(run); break;
    }
    return STATUS_OK;
}

/* Most texts hold nothing that a step would change, which is seen faster than done. */
static bool changes_nothing(const normalize_step_t *step, const normal_text_t *text)
{
    if (step->kind == NORMALIZE_REPLACE) {
        size_t n;
        const char *literal = pattern_literal_text(step->pattern, &n);
        return literal != NULL && memmem(text->data, text->n, literal, n) == NULL;
    }
    if (step->kind != NORMALIZE_FORM && step->kind != NORMALIZE_STRIP_ACCENTS)
        return false;
    for (size_t i = 0; i < text->n; i++)
        if (text->data[i] >= 0x80)
            return false;
    return true;
}

status_t normalizer_run(const normalizer_t *normalizer, normalize_scratch_t *scratch,
                        const normal_text_t *in, normal_text_t *out)
{
    normal_text_t text = *in;
    size_t size_max = (size_t)GROWTH_MAX * TOKENIZER_TEXT_BYTES_MAX, turn = 0;
    for (size_t i = 0; i < normalizer->n && text.n > 0; i++) {
        if (changes_nothing(&normalizer->steps[i], &text))
            continue;
        step_run_t run = {&normalizer->steps[i], &text, scratch, &scratch->text[turn],
                          &scratch->marks[turn], true};
        buffer_clear(run.out);
        buffer_clear(run.out_marks);
        TRY(run_step(&run));
        if (run.out->size > size_max)
            return fail(STATUS_INVALID, "the normalized text has more than %zu bytes; shorten it",
                        size_max);
        text = (normal_text_t){(const uint8_t *)buffer_text(run.out),
                               text.marks == NULL ? NULL
                                                  : (const uint8_t *)buffer_text(run.out_marks),
                               run.out->size, text.is_start && run.keeps_start};
        turn ^= 1;
    }
    *out = text;
    return STATUS_OK;
}
