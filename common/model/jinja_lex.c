/* See jinja_lex.h. */
#include "common/model/jinja_lex.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/unicode.h"

/* The source being cut. `line` is that of `line_at`, which trails the tokens. */
typedef struct {
    arena_t *arena;
    const char *source;
    size_t n, at;
    size_t line_at;
    uint32_t line;
    jinja_tokens_t *tokens;
} lexer_t;

/* The size of the white space character at `at`, by Python's measure; 0 when it is none. */
static size_t space_at(const lexer_t *lexer, size_t at)
{
    size_t size;
    return at < lexer->n &&
                   unicode_is_space(utf8_decode((const uint8_t *)lexer->source + at, &size))
               ? size : 0;
}

/* The size of the white space character that ends before `at` and starts at `start` or later. */
static size_t space_before(const lexer_t *lexer, size_t start, size_t at)
{
    size_t from = at;
    while (from > start && ((uint8_t)lexer->source[--from] & 0xC0) == 0x80)
        ;
    return from < at && space_at(lexer, from) == at - from ? at - from : 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Letters beyond ASCII are taken as they come: which of them Python lets into a name matters
 * only to templates that it refuses. */
static bool is_name_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || ((uint8_t)c & 0x80) != 0;
}

static bool looks_at(const lexer_t *lexer, size_t at, const char *text)
{
    size_t size = strlen(text);
    return size <= lexer->n - at && memcmp(lexer->source + at, text, size) == 0;
}

static uint32_t line_of(lexer_t *lexer, size_t at)
{
    if (at < lexer->line_at) { /* an error that names where something began */
        lexer->line_at = 0;
        lexer->line = 1;
    }
    for (; lexer->line_at < at; lexer->line_at++)
        lexer->line += lexer->source[lexer->line_at] == '\n';
    return lexer->line;
}

static jinja_token_t *add(lexer_t *lexer, jinja_token_kind_t kind, size_t start, size_t size)
{
    jinja_tokens_t *tokens = lexer->tokens;
    MEM_GROW(tokens->tokens, tokens->capacity, tokens->n + 1);
    jinja_token_t *token = &tokens->tokens[tokens->n++];
    *token = (jinja_token_t){.kind = kind, .line = line_of(lexer, start),
                             .text = lexer->source + start, .size = size};
    return token;
}

static int hex_value(char c)
{
    if (is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Reads \xNN, \uNNNN or \UNNNNNNNN at text[0..n), which starts after the backslash; returns how
 * many bytes it takes, or 0 when it is no such escape. */
static size_t hex_escape(const char *text, size_t n, uint32_t *code_out)
{
    size_t digits = text[0] == 'x' ? 2 : text[0] == 'u' ? 4 : text[0] == 'U' ? 8 : 0;
    if (digits == 0 || digits + 1 > n)
        return 0;
    uint32_t code = 0;
    for (size_t i = 1; i <= digits; i++) {
        int value = hex_value(text[i]);
        if (value < 0)
            return 0;
        code = code << 4 | (uint32_t)value;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
        return 0;
    *code_out = code;
    return digits + 1;
}

/* Up to three octal digits; returns how many there are. */
static size_t octal_escape(const char *text, size_t n, uint32_t *code_out)
{
    size_t digits = 0;
    for (*code_out = 0; digits < n && digits < 3 && text[digits] >= '0' && text[digits] <= '7';
         digits++)
        *code_out = *code_out * 8 + (uint32_t)(text[digits] - '0');
    return digits;
}

/* Resolves Python's escapes; an unknown one keeps its backslash, as there. False for one that
 * Python refuses, or that only a table of all character names could resolve. */
static bool unescape(const char *text, size_t n, char *out, size_t *size_out)
{
    static const char names[] = "ntrabfv\\'\"", values[] = "\n\t\r\a\b\f\v\\'\"";
    size_t size = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] != '\\' || i + 1 == n) {
            out[size++] = text[i];
            continue;
        }
        i++;
        const char *name = memchr(names, text[i], sizeof names - 1);
        uint32_t code;
        size_t taken = name == NULL ? octal_escape(text + i, n - i, &code) : 0;
        if (name == NULL && taken == 0)
            taken = hex_escape(text + i, n - i, &code);
        if (name == NULL && taken == 0 && strchr("xuUN", text[i]) != NULL)
            return false;
        if (name != NULL) {
            out[size++] = values[name - names];
        } else if (taken > 0) {
            size += utf8_encode(code, (uint8_t *)out + size);
            i += taken - 1;
        } else if (text[i] != '\n') {
            out[size++] = '\\';
            out[size++] = text[i];
        }
    }
    *size_out = size;
    return true;
}

static status_t lex_text(lexer_t *lexer)
{
    size_t start = lexer->at, end = start + 1;
    char quote = lexer->source[start];
    while (end < lexer->n && lexer->source[end] != quote)
        end += lexer->source[end] == '\\' ? 2 : 1;
    if (end >= lexer->n)
        return fail(STATUS_INVALID, "line %u: the text that starts with %c is not closed",
                    line_of(lexer, start), quote);
    jinja_token_t *token = add(lexer, TOKEN_TEXT, start, 0);
    char *text = arena_new(lexer->arena, end - start, 1);
    if (!unescape(lexer->source + start + 1, end - start - 1, text, &token->size))
        return fail(STATUS_INVALID, "line %u: a text literal has a malformed \\x, \\u or \\U, or "
                                    "has \\N", token->line);
    token->text = text;
    lexer->at = end + 1;
    return STATUS_OK;
}

static status_t lex_based(lexer_t *lexer, int base)
{
    size_t start = lexer->at, at = start + 2;
    jinja_token_t *token = add(lexer, TOKEN_INTEGER, start, 0);
    for (; at < lexer->n; at++) {
        int digit = hex_value(lexer->source[at]);
        if (lexer->source[at] == '_')
            continue;
        if (digit < 0 || digit >= base)
            break;
        if (__builtin_mul_overflow(token->integer, base, &token->integer) ||
            __builtin_add_overflow(token->integer, digit, &token->integer))
            return fail(STATUS_INVALID, "line %u: the number is too large", token->line);
    }
    token->size = at - start;
    lexer->at = at;
    return STATUS_OK;
}

/* 0x1F, 0o17, 0b11: the base that the prefix names, or 10. */
static int number_base(const lexer_t *lexer, size_t at)
{
    if (at + 2 >= lexer->n || lexer->source[at] != '0')
        return 10;
    int base = 10;
    switch (lexer->source[at + 1] | 0x20) {
    case 'x':
        base = 16;
        break;
    case 'o':
        base = 8;
        break;
    case 'b':
        base = 2;
        break;
    }
    int digit = hex_value(lexer->source[at + 2]);
    return digit >= 0 && digit < base ? base : 10;
}

static status_t lex_number(lexer_t *lexer)
{
    char digits[64];
    size_t size = 0, start = lexer->at, at = start;
    bool real = false;
    int base = number_base(lexer, start);
    if (base != 10)
        return lex_based(lexer, base);
    for (; at < lexer->n && size + 4 < sizeof digits; at++) {
        char c = lexer->source[at];
        bool more = at + 1 < lexer->n;
        bool dot = c == '.' && !real && more && is_digit(lexer->source[at + 1]);
        bool power = (c == 'e' || c == 'E') && more &&
                     (is_digit(lexer->source[at + 1]) ||
                      (at + 2 < lexer->n && strchr("+-", lexer->source[at + 1]) != NULL &&
                       is_digit(lexer->source[at + 2])));
        if (!is_digit(c) && c != '_' && !dot && !power)
            break;
        real = real || dot || power;
        if (c != '_')
            digits[size++] = c;
        if (power && !is_digit(lexer->source[at + 1]))
            digits[size++] = lexer->source[++at];
    }
    digits[size] = 0;
    char *end;
    errno = 0;
    jinja_token_t *token = add(lexer, real ? TOKEN_REAL : TOKEN_INTEGER, start, at - start);
    if (real)
        token->real = strtod(digits, &end);
    else
        token->integer = strtoll(digits, &end, 10);
    bool octal = !real && digits[0] == '0' && strspn(digits, "0") < size; /* as Python 2 had it */
    if (*end != 0 || errno != 0 || octal || (at < lexer->n && is_digit(lexer->source[at])))
        return fail(STATUS_INVALID, "line %u: the number %s is too large or malformed",
                    token->line, digits);
    lexer->at = at;
    return STATUS_OK;
}

static status_t lex_operator(lexer_t *lexer)
{
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*",
                                            "%",  "~",  "[",  "]",  "(",  ")",  "{", "}", ">", "<",
                                            "=",  ".",  ":",  "|",  ","};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if (looks_at(lexer, lexer->at, operators[i])) {
            size_t size = strlen(operators[i]);
            add(lexer, TOKEN_OPERATOR, lexer->at, size);
            lexer->at += size;
            return STATUS_OK;
        }
    return fail(STATUS_INVALID, "line %u: the byte 0x%02X cannot stand in an expression",
                line_of(lexer, lexer->at), (uint8_t)lexer->source[lexer->at]);
}

static void skip_spaces(lexer_t *lexer)
{
    for (size_t size; (size = space_at(lexer, lexer->at)) > 0;)
        lexer->at += size;
}

/* After a tag: '-' takes all white space; a block or comment without '+' takes one newline. */
static void skip_after(lexer_t *lexer, char sign, bool trims)
{
    if (sign == '-')
        skip_spaces(lexer);
    else if (sign != '+' && trims && lexer->at < lexer->n && lexer->source[lexer->at] == '\n')
        lexer->at++;
}

/* Lexes the inside of a tag up to its end. */
static status_t lex_tag(lexer_t *lexer, bool is_block)
{
    const char *end = is_block ? "%}" : "}}";
    size_t start = lexer->at;
    unsigned braces = 0; /* inside of a dictionary "}}" ends nothing */
    for (;;) {
        skip_spaces(lexer);
        if (lexer->at >= lexer->n)
            return fail(STATUS_INVALID, "line %u: the tag is not closed by %s",
                        line_of(lexer, start), end);
        char c = lexer->source[lexer->at];
        bool signed_end = (c == '-' || (c == '+' && is_block)) &&
                          looks_at(lexer, lexer->at + 1, end);
        if (braces == 0 && (signed_end || looks_at(lexer, lexer->at, end))) {
            add(lexer, is_block ? TOKEN_CLOSE_BLOCK : TOKEN_CLOSE_OUTPUT, lexer->at, 0);
            lexer->at += signed_end ? 3 : 2;
            skip_after(lexer, signed_end ? c : 0, is_block);
            return STATUS_OK;
        }
        if (c == '"' || c == '\'') {
            TRY(lex_text(lexer));
        } else if (is_digit(c)) {
            TRY(lex_number(lexer));
        } else if (is_name_start(c)) {
            size_t from = lexer->at;
            while (lexer->at < lexer->n && (is_name_start(lexer->source[lexer->at]) ||
                                            is_digit(lexer->source[lexer->at])))
                lexer->at++;
            add(lexer, TOKEN_NAME, from, lexer->at - from);
        } else {
            braces += c == '{';
            braces -= c == '}' && braces > 0;
            TRY(lex_operator(lexer));
        }
    }
}

/* Behind "{#" and its sign. */
static status_t lex_comment(lexer_t *lexer)
{
    const char *end = memmem(lexer->source + lexer->at, lexer->n - lexer->at, "#}", 2);
    if (lexer->at == lexer->n)
        return STATUS_OK; /* Jinja misses the end only where something follows */
    if (end == NULL)
        return fail(STATUS_INVALID, "line %u: the comment is not closed by #}",
                    line_of(lexer, lexer->at));
    size_t close = (size_t)(end - lexer->source);
    char sign = close > lexer->at ? lexer->source[close - 1] : 0; /* not that of "{#-#}" */
    lexer->at = close + 2;
    skip_after(lexer, sign, true);
    return STATUS_OK;
}

/* At "{%": whether the tag is exactly `word`; moves behind it and says how its right side is
 * signed. */
static bool take_word_tag(lexer_t *lexer, const char *word, char *right_out)
{
    lexer_t ahead = *lexer;
    ahead.at += 2;
    if (ahead.at < ahead.n && (ahead.source[ahead.at] == '-' || ahead.source[ahead.at] == '+'))
        ahead.at++;
    skip_spaces(&ahead);
    if (!looks_at(&ahead, ahead.at, word))
        return false;
    ahead.at += strlen(word);
    skip_spaces(&ahead);
    *right_out = ahead.at < ahead.n ? ahead.source[ahead.at] : 0;
    ahead.at += *right_out == '-' || *right_out == '+';
    if (!looks_at(&ahead, ahead.at, "%}"))
        return false;
    lexer->at = ahead.at + 2;
    return true;
}

/* Where the text before a tag ends once the tag's white space rules are applied. */
static size_t text_end(const lexer_t *lexer, size_t start, size_t tag, bool line_starts)
{
    char kind = lexer->source[tag + 1], sign = tag + 2 < lexer->n ? lexer->source[tag + 2] : 0;
    size_t end = tag, size;
    if (sign == '-') {
        while ((size = space_before(lexer, start, end)) > 0)
            end -= size;
        return end;
    }
    if (sign == '+' || kind == '{')
        return end;
    while (end > start && lexer->source[end - 1] != '\n' &&
           (size = space_before(lexer, start, end)) > 0)
        end -= size;
    bool at_line_start = end > start ? lexer->source[end - 1] == '\n' : line_starts;
    return at_line_start ? end : tag;
}

/* After {% raw %}: everything is text up to {% endraw %}. Jinja takes no newline after raw itself,
 * and applies the rules of a block to endraw. */
static status_t lex_raw(lexer_t *lexer, char sign)
{
    bool line_starts = false;
    if (sign == '-') {
        skip_spaces(lexer);
        line_starts = lexer->source[lexer->at - 1] == '\n';
    }
    size_t start = lexer->at;
    for (size_t at = start; at + 1 < lexer->n; at++) {
        char right;
        lexer->at = at;
        if (lexer->source[at] != '{' || lexer->source[at + 1] != '%' ||
            !take_word_tag(lexer, "endraw", &right))
            continue;
        add(lexer, TOKEN_DATA, start, text_end(lexer, start, at, line_starts) - start);
        skip_after(lexer, right, true);
        return STATUS_OK;
    }
    lexer->at = lexer->n;
    if (start == lexer->n)
        return STATUS_OK; /* as with an empty comment */
    return fail(STATUS_INVALID, "line %u: raw is not closed by endraw", line_of(lexer, start));
}

static size_t find_tag(const lexer_t *lexer)
{
    for (size_t at = lexer->at; at + 1 < lexer->n; at++)
        if (lexer->source[at] == '{' && strchr("{%#", lexer->source[at + 1]) != NULL &&
            lexer->source[at + 1] != 0)
            return at;
    return lexer->n;
}

static status_t lex_all(lexer_t *lexer)
{
    while (lexer->at < lexer->n) {
        bool line_starts = lexer->at == 0 || lexer->source[lexer->at - 1] == '\n';
        size_t start = lexer->at, tag = find_tag(lexer);
        size_t end = tag == lexer->n ? tag : text_end(lexer, start, tag, line_starts);
        if (end > start)
            add(lexer, TOKEN_DATA, start, end - start);
        lexer->at = tag;
        if (tag == lexer->n)
            break;
        char kind = lexer->source[tag + 1], right;
        /* raw knows no + on its right side: "{% raw +%}" is a tag of that name. */
        if (kind == '%' && take_word_tag(lexer, "raw", &right) && right != '+') {
            TRY(lex_raw(lexer, right));
            continue;
        }
        lexer->at = tag + 2;
        if (lexer->at < lexer->n && strchr("-+", lexer->source[lexer->at]) != NULL &&
            lexer->source[lexer->at] != 0)
            lexer->at++;
        if (kind == '#') {
            TRY(lex_comment(lexer));
            continue;
        }
        add(lexer, kind == '%' ? TOKEN_OPEN_BLOCK : TOKEN_OPEN_OUTPUT, tag, 0);
        TRY(lex_tag(lexer, kind == '%'));
    }
    return STATUS_OK;
}

status_t jinja_lex(arena_t *arena, const char *source, size_t n, jinja_tokens_t *tokens)
{
    /* Newlines become \n first, so that every later rule knows one kind. */
    char *copy = arena_new(arena, n + 1, 1);
    size_t size = 0;
    for (size_t i = 0; i < n; i++) {
        if (source[i] == '\r' && i + 1 < n && source[i + 1] == '\n')
            continue;
        copy[size++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (size > 0 && copy[size - 1] == '\n')
        size--;
    lexer_t lexer = {.arena = arena, .source = copy, .n = size, .line = 1, .tokens = tokens};
    TRY(lex_all(&lexer));
    add(&lexer, TOKEN_END, size, 0);
    return STATUS_OK;
}

void jinja_tokens_release(jinja_tokens_t *tokens)
{
    free(tokens->tokens);
    *tokens = (jinja_tokens_t){0};
}
