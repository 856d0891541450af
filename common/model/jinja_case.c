/* upper, lower, capitalize, title and swapcase of template texts, with the marks of each character
 * kept. */
#include <string.h>

#include "common/model/jinja_character.h"
#include "common/model/jinja_eval.h"
#include "common/model/unicode.h"

static bool is_ascii(const text_t *text)
{
    for (size_t i = 0; i < text->n; i++)
        if (((uint8_t)text->data[i] & 0x80) != 0)
            return false;
    return true;
}

static bool raises(text_case_t to, bool at_start, bool in_word, bool is_lower)
{
    switch (to) {
    case CASE_UPPER:
        return true;
    case CASE_LOWER:
        return false;
    case CASE_CAPITALIZE:
        return at_start;
    case CASE_TITLE:
        return !in_word;
    default:
        return is_lower;
    }
}

static status_t change_ascii(jinja_run_t *run, const text_t *text, text_case_t to, text_t *out)
{
    TRY(text_join(run, text, 1, out));
    char *data = (char *)(uintptr_t)out->data; /* fresh from text_join, so ours to change */
    bool in_word = false;
    for (size_t i = 0; i < out->n; i++) {
        char c = data[i];
        bool lower = c >= 'a' && c <= 'z', upper = c >= 'A' && c <= 'Z';
        bool raise = raises(to, i == 0, in_word, lower);
        if (lower && raise)
            data[i] = (char)(c - 'a' + 'A');
        else if (upper && !raise)
            data[i] = (char)(c - 'A' + 'a');
        in_word = lower || upper;
    }
    return STATUS_OK;
}

static bool is_cased(uint32_t code)
{
    return character_is(code, CHARACTER_UPPER) || character_is(code, CHARACTER_LOWER);
}

/* Whether the capital sigma at `at` ends a word, where its small form is another one. */
static bool is_final_sigma(const text_t *text, size_t at, bool after_cased)
{
    size_t next = at + 2, size;
    if (!after_cased)
        return false;
    return next >= text->n ||
           !is_cased(utf8_decode((const uint8_t *)text->data + next, &size));
}

static status_t append_characters(jinja_run_t *run, sink_t *sink, const uint32_t *codes, size_t n,
                                  uint8_t mark)
{
    uint8_t bytes[CHARACTER_CASE_MAX * UNICODE_UTF8_MAX];
    size_t size = 0;
    for (size_t i = 0; i < n; i++)
        size += utf8_encode(codes[i], bytes + size);
    text_t part = {(const char *)bytes, size, NULL, mark, false};
    return sink_append(run, sink, &part);
}

static status_t change_unicode(jinja_run_t *run, const text_t *text, text_case_t to, text_t *out)
{
    sink_t sink = {0};
    size_t size;
    bool in_word = false;
    for (size_t at = 0; at < text->n; at += size) {
        uint32_t code = utf8_decode((const uint8_t *)text->data + at, &size);
        uint32_t changed[CHARACTER_CASE_MAX];
        TRY(run_charge(run, 1));
        bool cased = is_cased(code);
        bool raise = raises(to, at == 0, in_word, cased && character_is(code, CHARACTER_LOWER));
        character_case_t case_to = !raise                                    ? CHARACTER_TO_LOWER
                                   : to == CASE_UPPER || to == CASE_SWAP ? CHARACTER_TO_UPPER
                                                                         : CHARACTER_TO_TITLE;
        size_t n = character_case(code, case_to, changed);
        if (code == 0x3A3 && !raise)
            changed[0] = is_final_sigma(text, at, in_word) ? 0x3C2 : 0x3C3;
        TRY(append_characters(run, &sink, changed, n,
                              text->marks != NULL ? text->marks[at] : text->mark));
        in_word = cased;
    }
    *out = sink_text(&sink);
    return STATUS_OK;
}

status_t text_change_case(jinja_run_t *run, const text_t *text, text_case_t to, text_t *out)
{
    bool safe = text->safe;
    TRY(is_ascii(text) ? change_ascii(run, text, to, out) : change_unicode(run, text, to, out));
    out->safe = safe;
    return STATUS_OK;
}
