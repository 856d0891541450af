/* See tokenizer_decode.h. */
#include "common/model/tokenizer_decode.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/unicode.h"

enum { STRIPPED_ALL = 255 };
static const char broken[] = "\xEF\xBF\xBD"; /* U+FFFD */

typedef struct {
    const decoder_t *decoder;
    detok_t *detok;
    buffer_t *out;
} chain_t;

static void release_step(decode_step_t *step)
{
    pattern_release(step->pattern);
    free(step->content);
}

/* What the parts of a fused text can decide. */
static status_t check_fused(const decode_step_t *step)
{
    if (step->kind == DECODE_STRIP && step->stop > 0)
        return fail(STATUS_UNSUPPORTED,
                    "a decoder strips the end of the fused text; not supported");
    if (step->kind != DECODE_REPLACE)
        return STATUS_OK;
    size_t n = 0, length = 0;
    const uint8_t *text = (const uint8_t *)pattern_literal_text(step->pattern, &n);
    if (text == NULL || utf8_next(text, n, &length) != UTF8_COMPLETE || length != n)
        return fail(STATUS_UNSUPPORTED,
                    "a decoder replaces more than one character in the fused text; not supported");
    return STATUS_OK;
}

status_t decoder_add(decoder_t *decoder, decode_step_t take_step)
{
    status_t status = STATUS_OK;
    for (size_t i = 0; i < decoder->n; i++)
        take_step.is_fused = take_step.is_fused || decoder->steps[i].kind == DECODE_FUSE;
    if (decoder->n == DECODE_STEPS_MAX)
        status = fail(STATUS_UNSUPPORTED, "the decoder has more than %d steps", DECODE_STEPS_MAX);
    else if (take_step.start >= STRIPPED_ALL || take_step.stop >= STRIPPED_ALL)
        status = fail(STATUS_UNSUPPORTED, "a decoder strips more than %d characters",
                      STRIPPED_ALL - 1);
    else if (take_step.is_fused)
        status = check_fused(&take_step);
    if (status != STATUS_OK) {
        release_step(&take_step);
        return status;
    }
    decoder->steps[decoder->n++] = take_step;
    return STATUS_OK;
}

status_t decoder_finish(decoder_t *decoder)
{
    if (decoder->n > 1 && decoder->steps[0].kind == DECODE_BYTE_LEVEL &&
        decoder->steps[decoder->n - 1].kind == DECODE_FUSE)
        decoder->n--; /* ByteLevel has fused everything already */
    size_t n_holding = 0, n_strips = 0;
    for (size_t i = 0; i < decoder->n; i++) {
        const decode_step_t *step = &decoder->steps[i];
        if (step->kind == DECODE_BYTE_LEVEL && decoder->n > 1)
            return fail(STATUS_UNSUPPORTED, "a decoder has ByteLevel among other steps");
        n_holding += step->kind == DECODE_BYTE_FALLBACK;
        n_strips += step->kind == DECODE_STRIP && step->is_fused;
    }
    if (n_holding > 1 || n_strips > 1)
        return fail(STATUS_UNSUPPORTED, "a decoder has ByteFallback or Strip twice");
    decoder->is_byte_level = decoder->n == 1 && decoder->steps[0].kind == DECODE_BYTE_LEVEL;
    decoder->has_fallback = n_holding > 0;
    return STATUS_OK;
}

void decoder_release(decoder_t *decoder)
{
    for (size_t i = 0; i < decoder->n; i++)
        release_step(&decoder->steps[i]);
    *decoder = (decoder_t){0};
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int decoder_fallback_byte(const uint8_t *text, size_t n)
{
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static void push(const chain_t *chain, size_t at, const uint8_t *text, size_t n);

static void clear_held(detok_t *detok)
{
    memset(detok->held, 0, detok->n_held);
    detok->n_held = 0;
}

/* The run has ended: it is text if all of it is, else each byte is broken. */
static void release_run(const chain_t *chain, size_t at)
{
    detok_t *detok = chain->detok;
    uint8_t run[DETOK_HELD_MAX];
    size_t n = detok->n_held;
    if (n == 0)
        return;
    memcpy(run, detok->held, n);
    clear_held(detok);
    if (utf8_valid_prefix(run, n) == n) {
        push(chain, at + 1, run, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        push(chain, at + 1, (const uint8_t *)broken, sizeof broken - 1);
}

/* The run fills the state: its complete characters go on, or all of it as broken. */
static void release_full(const chain_t *chain, size_t at)
{
    detok_t *detok = chain->detok;
    size_t valid = utf8_valid_prefix(detok->held, detok->n_held), rest = detok->n_held - valid;
    if (valid == 0 || rest >= UNICODE_UTF8_MAX) {
        release_run(chain, at);
        return;
    }
    uint8_t run[DETOK_HELD_MAX];
    memcpy(run, detok->held, detok->n_held);
    clear_held(detok);
    memcpy(detok->held, run + valid, rest);
    detok->n_held = (uint8_t)rest;
    push(chain, at + 1, run, valid);
}

static void push_fallback(const chain_t *chain, size_t at, const uint8_t *text, size_t n)
{
    int byte = decoder_fallback_byte(text, n);
    if (byte < 0) {
        release_run(chain, at);
        push(chain, at + 1, text, n);
        return;
    }
    if (chain->detok->n_held == DETOK_HELD_MAX)
        release_full(chain, at);
    chain->detok->held[chain->detok->n_held++] = (uint8_t)byte;
}

static void push_replace(const chain_t *chain, size_t at, const uint8_t *text, size_t n)
{
    const decode_step_t *step = &chain->decoder->steps[at];
    pattern_scratch_t scratch = {0};
    buffer_t out = {0};
    pattern_walk_t walk = PATTERN_WALK_START;
    size_t done = 0;
    bool found;
    while (pattern_next(step->pattern, &scratch, (const char *)text, n, &walk, &found) ==
               STATUS_OK && found) {
        buffer_append(&out, text + done, walk.start - done);
        buffer_append(&out, step->content, step->content_size);
        done = walk.end;
    }
    pattern_scratch_release(&scratch);
    if (done == 0 && out.size == 0) {
        push(chain, at + 1, text, n);
    } else {
        buffer_append(&out, text + done, n - done);
        push(chain, at + 1, (const uint8_t *)buffer_text(&out), out.size);
    }
    buffer_release(&out);
}

/* How many bytes at the start are copies of the character, at most `max` copies. */
static size_t leading(const uint8_t *text, size_t n, const char *character, size_t max,
                      size_t *copies_out)
{
    size_t size = strlen(character), at = 0, copies = 0;
    while (copies < max && n - at >= size && memcmp(text + at, character, size) == 0) {
        at += size;
        copies++;
    }
    *copies_out = copies;
    return at;
}

static void push_strip(const chain_t *chain, size_t at, const uint8_t *text, size_t n)
{
    const decode_step_t *step = &chain->decoder->steps[at];
    size_t copies;
    if (step->is_fused) {
        uint8_t *stripped = &chain->detok->n_stripped;
        if (n == 0)
            return;
        if (*stripped < step->start) {
            size_t skip = leading(text, n, step->character, step->start - *stripped, &copies);
            *stripped = skip == n ? (uint8_t)(*stripped + copies) : (uint8_t)STRIPPED_ALL;
            text += skip;
            n -= skip;
        }
        push(chain, at + 1, text, n);
        return;
    }
    size_t skip = leading(text, n, step->character, step->start, &copies);
    size_t size = strlen(step->character);
    for (uint32_t i = 0; i < step->stop && n - skip >= size &&
                         memcmp(text + n - size, step->character, size) == 0; i++)
        n -= size;
    push(chain, at + 1, text + skip, n - skip);
}

/* Whether this is the first token that the step sees. */
static bool is_first(const chain_t *chain, size_t at)
{
    uint8_t bit = (uint8_t)(1u << at);
    bool first = (chain->detok->seen & bit) == 0;
    chain->detok->seen |= bit;
    return first;
}

static void push_metaspace(const chain_t *chain, size_t at, const uint8_t *text, size_t n)
{
    const decode_step_t *step = &chain->decoder->steps[at];
    bool drops = is_first(chain, at) && step->drops_first;
    size_t size = strlen(step->character), done = 0;
    buffer_t out = {0};
    for (;;) {
        const uint8_t *hit = memmem(text + done, n - done, step->character, size);
        buffer_append(&out, text + done, hit == NULL ? n - done : (size_t)(hit - text) - done);
        if (hit == NULL)
            break;
        if (!drops)
            buffer_append(&out, " ", 1);
        done = (size_t)(hit - text) + size;
    }
    push(chain, at + 1, (const uint8_t *)buffer_text(&out), out.size);
    buffer_release(&out);
}

static void replace_all(buffer_t *text, const char *from, const char *to)
{
    buffer_t out = {0};
    const char *at = buffer_text(text), *end = at + text->size, *hit;
    while ((hit = memmem(at, (size_t)(end - at), from, strlen(from))) != NULL) {
        buffer_append(&out, at, (size_t)(hit - at));
        buffer_append_text(&out, to);
        at = hit + strlen(from);
    }
    buffer_append(&out, at, (size_t)(end - at));
    buffer_release(text);
    *text = out;
}

static void push_wordpiece(const chain_t *chain, size_t at, const uint8_t *text, size_t n)
{
    static const char *const pairs[][2] = {
        {" .", "."},     {" ?", "?"},     {" !", "!"},     {" ,", ","},
        {" ' ", "'"},    {" n't", "n't"}, {" 'm", "'m"},   {" do not", " don't"},
        {" 's", "'s"},   {" 've", "'ve"}, {" 're", "'re"},
    };
    const decode_step_t *step = &chain->decoder->steps[at];
    buffer_t out = {0};
    if (!is_first(chain, at)) {
        if (n >= step->content_size && memcmp(text, step->content, step->content_size) == 0) {
            text += step->content_size;
            n -= step->content_size;
        } else {
            buffer_append(&out, " ", 1);
        }
    }
    buffer_append(&out, text, n);
    for (size_t i = 0; step->cleanup && i < sizeof pairs / sizeof *pairs; i++)
        replace_all(&out, pairs[i][0], pairs[i][1]);
    push(chain, at + 1, (const uint8_t *)buffer_text(&out), out.size);
    buffer_release(&out);
}

static void push(const chain_t *chain, size_t at, const uint8_t *text, size_t n)
{
    if (at == chain->decoder->n) {
        buffer_append(chain->out, text, n);
        return;
    }
    switch (chain->decoder->steps[at].kind) {
    case DECODE_BYTE_FALLBACK: push_fallback(chain, at, text, n); return;
    case DECODE_REPLACE: push_replace(chain, at, text, n); return;
    case DECODE_STRIP: push_strip(chain, at, text, n); return;
    case DECODE_METASPACE: push_metaspace(chain, at, text, n); return;
    case DECODE_WORDPIECE: push_wordpiece(chain, at, text, n); return;
    case DECODE_SPACES:
        if (!is_first(chain, at))
            push(chain, at + 1, (const uint8_t *)" ", 1);
        break;
    case DECODE_BYTE_LEVEL:
    case DECODE_FUSE: break;
    }
    push(chain, at + 1, text, n);
}

void decoder_push(const decoder_t *decoder, detok_t *detok, const uint8_t *text, size_t n,
                  buffer_t *out)
{
    push(&(chain_t){decoder, detok, out}, 0, text, n);
}

void decoder_end(const decoder_t *decoder, detok_t *detok, buffer_t *out)
{
    for (size_t i = 0; i < decoder->n; i++)
        if (decoder->steps[i].kind == DECODE_BYTE_FALLBACK)
            release_run(&(chain_t){decoder, detok, out}, i);
}
