/* Oniguruma's syntax to PCRE2's, one pass over the pattern. Only what differs is rewritten; what
 * cannot be said in PCRE2 is refused by name, because a pattern that means something else would cut
 * text silently in other places. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/model/tokenizer_pattern.h"

/* White_Space written out: PCRE2's \s under UCP also takes U+180E, which left White_Space in
 * Unicode 6.3 and which Oniguruma no longer takes. */
#define SPACES "\\t-\\r\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}"                   \
               "\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
/* A word character of Unicode's regular expressions; PCRE2 10.42's \w lacks most of the marks. */
#define WORDS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside a set Oniguruma also takes superscripts and fractions of Latin-1 for word characters. */
#define BARE_WORDS WORDS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
#define HEX_DIGITS "0-9A-Fa-f"

enum { GROUPS_MAX = 64 };

typedef struct {
    const char *text;
    size_t n, at;
    bool in_class;
    buffer_t *out;
    size_t atom; /* where in `out` the last thing begins that a quantifier would repeat */
    size_t groups[GROUPS_MAX], n_groups; /* where the open groups begin */
} reader_t;

static status_t refuse(const reader_t *reader, const char *what)
{
    return fail(STATUS_UNSUPPORTED,
                "the pattern \"%.80s\" has %s at byte %zu, which is not supported", reader->text,
                what, reader->at);
}

/* A set outside brackets gets its own; inside it joins the set that is open. */
static void put_set(const reader_t *reader, const char *members)
{
    buffer_format(reader->out, reader->in_class ? "%s" : "[%s]", members);
}

static void put_property(const reader_t *reader, bool negated, const char *name)
{
    /* Long names of general categories; everything else that is long is a script. */
    static const struct {
        const char *name, *says;
    } names[] = {{"Letter", "L"},   {"Mark", "M"},        {"Number", "N"},    {"Punctuation", "P"},
                 {"Symbol", "S"},   {"Separator", "Z"},   {"Other", "C"},     {"Digit", "Nd"},
                 {"Upper", "Lu"},   {"Lower", "Ll"},      {"Alpha", "Alphabetic"},
                 {"Alphabetic", "Alphabetic"},            {"Any", "Any"},
                 {"Emoji", "Emoji"}};
    const char *says = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcasecmp(names[i].name, name) == 0)
            says = names[i].says;
    if (says != NULL || strlen(name) <= 2)
        buffer_format(reader->out, "\\%c{%s}", negated ? 'P' : 'p', says == NULL ? name : says);
    else /* a bare script name would mean its extensions too */
        buffer_format(reader->out, "\\%c{sc:%s}", negated ? 'P' : 'p', name);
}

/* At \p or \P: reads {Name} or {^Name}. */
static status_t read_property(reader_t *reader, bool negated)
{
    const char *open = reader->text + reader->at;
    const char *end = reader->text + reader->n;
    const char *close = open < end && *open == '{' ? memchr(open, '}', (size_t)(end - open)) : NULL;
    if (close == NULL)
        return refuse(reader, "a property without braces");
    const char *name = open + 1;
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    size_t size = (size_t)(close - name);
    char word[40];
    if (size == 0 || size >= sizeof word)
        return refuse(reader, "a property of no known name");
    memcpy(word, name, size);
    word[size] = 0;
    for (size_t i = 0; i < size; i++)
        if (!isalpha((unsigned char)word[i]) && word[i] != '_')
            return refuse(reader, "a property of no known name");
    reader->at = (size_t)(close + 1 - reader->text);
    if (strcasecmp(word, "Space") == 0 || strcasecmp(word, "White_Space") == 0) {
        if (negated && reader->in_class)
            return refuse(reader, "a negated set inside a set");
        if (negated)
            buffer_append_text(reader->out, "[^" SPACES "]");
        else
            put_set(reader, SPACES);
        return STATUS_OK;
    }
    put_property(reader, negated, word);
    return STATUS_OK;
}

/* \uHHHH, which Ruby has and PCRE2 does not. */
static status_t read_code_point(reader_t *reader)
{
    if (reader->n - reader->at < 4)
        return refuse(reader, "\\u without four digits");
    for (size_t i = 0; i < 4; i++)
        if (!isxdigit((unsigned char)reader->text[reader->at + i]))
            return refuse(reader, "\\u without four digits");
    buffer_format(reader->out, "\\x{%.4s}", reader->text + reader->at);
    reader->at += 4;
    return STATUS_OK;
}

static status_t negated_set(reader_t *reader, const char *members)
{
    if (reader->in_class)
        return refuse(reader, "a negated set inside a set");
    buffer_format(reader->out, "[^%s]", members);
    return STATUS_OK;
}

static status_t read_escape(reader_t *reader)
{
    if (reader->at + 1 >= reader->n)
        return refuse(reader, "a backslash at its end");
    char letter = reader->text[reader->at + 1];
    reader->at += 2;
    switch (letter) {
    case 's': put_set(reader, SPACES); return STATUS_OK;
    case 'w': put_set(reader, reader->in_class ? WORDS : BARE_WORDS); return STATUS_OK;
    case 'h': put_set(reader, HEX_DIGITS); return STATUS_OK;
    case 'S':
        /* Inside a set PCRE2 has no other way to say it; there U+180E counts as space. */
        if (!reader->in_class)
            return negated_set(reader, SPACES);
        buffer_append_text(reader->out, "\\S");
        return STATUS_OK;
    case 'W': return negated_set(reader, BARE_WORDS);
    case 'H': return negated_set(reader, HEX_DIGITS);
    case 'v': buffer_append_text(reader->out, "\\x0B"); return STATUS_OK;
    case 'p':
    case 'P': return read_property(reader, letter == 'P');
    case 'u': return read_code_point(reader);
    case 'C': case 'E': case 'g': case 'k': case 'K': case 'N': case 'O': case 'Q': case 'y':
    case 'Y': return refuse(reader, "an escape that the two engines read differently");
    default: break;
    }
    buffer_append(reader->out, reader->text + reader->at - 2, 2);
    return STATUS_OK;
}

/* [:name:] inside a set; PCRE2 means fewer characters by some of them. */
static void put_posix(const reader_t *reader, const char *text, size_t n)
{
    static const struct {
        const char *name, *says;
    } names[] = {{"[:space:]", SPACES},
                 {"[:alpha:]", "\\p{Alphabetic}"},
                 {"[:alnum:]", "\\p{Alphabetic}\\p{Nd}"},
                 {"[:word:]", WORDS},
                 {"[:punct:]", "\\p{P}\\p{S}"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i].name) == n && memcmp(names[i].name, text, n) == 0) {
            buffer_append_text(reader->out, names[i].says);
            return;
        }
    buffer_append(reader->out, text, n);
}

/* At '[' of a set: copies up to its ']'. */
static status_t read_class(reader_t *reader)
{
    reader->in_class = true;
    buffer_append_text(reader->out, "[");
    reader->at++;
    if (reader->at < reader->n && reader->text[reader->at] == '^') {
        buffer_append_text(reader->out, "^");
        reader->at++;
    }
    bool is_first = true;
    for (; reader->at < reader->n; is_first = false) {
        char c = reader->text[reader->at];
        if (c == ']' && !is_first) {
            buffer_append_text(reader->out, "]");
            reader->at++;
            reader->in_class = false;
            return STATUS_OK;
        }
        if (c == '\\') {
            TRY(read_escape(reader));
            continue;
        }
        if (c == '&' && reader->at + 1 < reader->n && reader->text[reader->at + 1] == '&')
            return refuse(reader, "an intersection of sets");
        if (c == '[') {
            const char *rest = reader->text + reader->at;
            const char *close = memmem(rest, reader->n - reader->at, ":]", 2);
            if (rest[1] != ':' || close == NULL)
                return refuse(reader, "a set inside a set");
            size_t size = (size_t)(close - rest) + 2;
            put_posix(reader, rest, size);
            reader->at += size;
            continue;
        }
        buffer_append(reader->out, &c, 1);
        reader->at++;
    }
    return refuse(reader, "a set without its end");
}

/* At '(' : options such as (?m: are spelled differently; all other groups are the same. */
static status_t read_group(reader_t *reader)
{
    buffer_append_text(reader->out, "(");
    reader->at++;
    if (reader->at + 1 >= reader->n || reader->text[reader->at] != '?')
        return STATUS_OK;
    buffer_append_text(reader->out, "?");
    reader->at++;
    size_t end = reader->at;
    while (end < reader->n &&
           (islower((unsigned char)reader->text[end]) || reader->text[end] == '-'))
        end++;
    if (end >= reader->n || (reader->text[end] != ':' && reader->text[end] != ')'))
        return STATUS_OK; /* a look-around, an atomic or a named group */
    for (; reader->at < end; reader->at++) {
        char c = reader->text[reader->at];
        if (c != 'i' && c != 'm' && c != 'x' && c != '-')
            return refuse(reader, "an option other than i, m and x");
        char says = c == 'm' ? 's' : c; /* "dot takes line ends" */
        buffer_append(reader->out, &says, 1);
    }
    return STATUS_OK;
}

/* Wraps the last atom, with its quantifier, into a group that is quantified again. */
static void repeat_again(const reader_t *reader, char quantifier)
{
    buffer_t tail = {0};
    buffer_append(&tail, reader->out->data + reader->atom, reader->out->size - reader->atom);
    reader->out->size = reader->atom;
    buffer_format(reader->out, "(?:%s)%c", buffer_text(&tail), quantifier);
    buffer_release(&tail);
}

/* At '{': {,n} means 0 to n. In Ruby's syntax a + after the braces repeats them (PCRE2: possessive)
 * and a ? after {n} makes them optional (PCRE2: lazy, which is nothing there). */
static status_t read_braces(reader_t *reader)
{
    size_t end = reader->at + 1, commas = 0;
    while (end < reader->n &&
           (isdigit((unsigned char)reader->text[end]) || reader->text[end] == ',')) {
        commas += reader->text[end] == ',';
        end++;
    }
    bool is_range =
        end < reader->n && reader->text[end] == '}' && end > reader->at + 1 && commas < 2;
    if (!is_range) {
        buffer_append_text(reader->out, "{");
        reader->at++;
        return STATUS_OK;
    }
    buffer_append_text(reader->out, reader->text[reader->at + 1] == ',' ? "{0" : "{");
    buffer_append(reader->out, reader->text + reader->at + 1, end - reader->at);
    reader->at = end + 1;
    char next = reader->at < reader->n ? reader->text[reader->at] : 0;
    if (next == '+' || (next == '?' && commas == 0)) {
        repeat_again(reader, next);
        reader->at++;
    }
    return STATUS_OK;
}

status_t pattern_translate(const char *text, size_t n, buffer_t *out)
{
    reader_t reader = {.text = text, .n = n, .out = out};
    while (reader.at < n) {
        char c = text[reader.at];
        /* Quantifiers, and all but the first byte of a character, belong to what is there. */
        if (strchr("*+?{)", c) == NULL && (c & 0xC0) != 0x80)
            reader.atom = out->size;
        if (c == '\\') {
            TRY(read_escape(&reader));
        } else if (c == '[') {
            TRY(read_class(&reader));
        } else if (c == '(') {
            if (reader.n_groups == GROUPS_MAX)
                return refuse(&reader, "groups nested too deep");
            reader.groups[reader.n_groups++] = out->size;
            TRY(read_group(&reader));
        } else if (c == '{') {
            TRY(read_braces(&reader));
        } else {
            if (c == ')' && reader.n_groups > 0)
                reader.atom = reader.groups[--reader.n_groups];
            buffer_append(out, &c, 1);
            reader.at++;
        }
    }
    return STATUS_OK;
}
