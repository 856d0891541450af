/* See jinja_character.h. Classes are asked of PCRE2, whose tables are Unicode 14's as those of
 * Python 3.11 are; cases of the C library's own C.UTF-8 locale, which always exists. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/model/jinja_character.h"

#include <locale.h>
#include <pcre2.h>
#include <pthread.h>
#include <wctype.h>

#include "common/base/status.h"
#include "common/model/unicode.h"

enum { CLASS_PRINTS = CHARACTER_WORD + 1, N_CLASSES };

/* No and the numbers among letters (CJK numerals) have no property that PCRE2 knows: isnumeric
 * takes all of N, isdigit the superscripts and the circled digits. */
/* Apart, since clang takes strings side by side in a list for a forgotten comma. */
#define DIGITS                                                                                     \
    "[\\p{Nd}\\x{B2}\\x{B3}\\x{B9}\\x{2070}\\x{2074}-\\x{2079}\\x{2080}-\\x{2089}"                 \
    "\\x{2460}-\\x{2468}\\x{2474}-\\x{247C}\\x{2488}-\\x{2490}\\x{24EA}\\x{24F5}-\\x{24FD}"        \
    "\\x{24FF}\\x{2776}-\\x{277E}\\x{2780}-\\x{2788}\\x{278A}-\\x{2792}\\x{1369}-\\x{1371}"        \
    "\\x{19DA}]"
#define LOWERS                                                                                     \
    "[\\p{Ll}\\x{AA}\\x{BA}\\x{2B0}-\\x{2B8}\\x{2C0}-\\x{2C1}\\x{2E0}-\\x{2E4}"                    \
    "\\x{2170}-\\x{217F}\\x{24D0}-\\x{24E9}]"

static const char *const patterns[N_CLASSES] = {
    [CHARACTER_LETTER] = "\\p{L}",
    [CHARACTER_DECIMAL] = "\\p{Nd}",
    [CHARACTER_DIGIT] = DIGITS,
    [CHARACTER_NUMERIC] = "\\p{N}",
    [CHARACTER_UPPER] = "[\\p{Lu}\\p{Lt}\\x{2160}-\\x{216F}\\x{24B6}-\\x{24CF}]",
    [CHARACTER_LOWER] = LOWERS,
    [CHARACTER_WORD] = "[\\p{L}\\p{N}_]",
    [CLASS_PRINTS] = "[^\\p{C}\\p{Z}]",
};

static pcre2_code *classes[N_CLASSES];
static locale_t unicode_locale;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void prepare(void)
{
    for (size_t i = 0; i < N_CLASSES; i++) {
        int error;
        PCRE2_SIZE offset;
        classes[i] = pcre2_compile((PCRE2_SPTR)patterns[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF,
                                   &error, &offset, NULL);
        CHECK(classes[i] != NULL);
    }
    unicode_locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    CHECK(unicode_locale != (locale_t)0);
}

static bool matches(uint32_t code, size_t class)
{
    uint8_t bytes[UNICODE_UTF8_MAX];
    CHECK(pthread_once(&once, prepare) == 0);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    CHECK(data != NULL);
    int found = pcre2_match(classes[class], bytes, utf8_encode(code, bytes), 0,
                            PCRE2_NO_UTF_CHECK, data, NULL);
    pcre2_match_data_free(data);
    return found > 0;
}

bool character_prints(uint32_t code)
{
    return code < 0x7F ? code >= 0x20 : matches(code, CLASS_PRINTS);
}

bool character_is(uint32_t code, character_class_t class)
{
    return matches(code, class);
}

/* Characters whose case is more than one character (Unicode's SpecialCasing.txt, the rows without
 * conditions that a keyboard can type). */
static const struct {
    uint32_t code, upper[CHARACTER_CASE_MAX];
} special_upper[] = {
    {0xDF, {'S', 'S'}},           {0x149, {0x2BC, 'N'}},       {0x1F0, {'J', 0x30C}},
    {0x390, {0x399, 0x308, 0x301}}, {0x3B0, {0x3A5, 0x308, 0x301}}, {0x587, {0x535, 0x552}},
    {0xFB00, {'F', 'F'}},         {0xFB01, {'F', 'I'}},        {0xFB02, {'F', 'L'}},
    {0xFB03, {'F', 'F', 'I'}},    {0xFB04, {'F', 'F', 'L'}},   {0xFB05, {'S', 'T'}},
    {0xFB06, {'S', 'T'}},
};
enum { N_SPECIAL = sizeof special_upper / sizeof *special_upper };

/* Two letters in one character have a title case of their own between upper and lower. */
static uint32_t digraph_title(uint32_t code)
{
    if (code >= 0x1C4 && code <= 0x1CC)
        return code <= 0x1C6 ? 0x1C5 : code <= 0x1C9 ? 0x1C8 : 0x1CB;
    return code >= 0x1F1 && code <= 0x1F3 ? 0x1F2 : 0;
}

static uint32_t simple_case(uint32_t code, bool upper)
{
    return (uint32_t)(upper ? towupper_l((wint_t)code, unicode_locale)
                            : towlower_l((wint_t)code, unicode_locale));
}

size_t character_case(uint32_t code, character_case_t to, uint32_t out[CHARACTER_CASE_MAX])
{
    CHECK(pthread_once(&once, prepare) == 0);
    if (to == CHARACTER_TO_LOWER && code == 0x130) {
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    uint32_t digraph = to == CHARACTER_TO_TITLE ? digraph_title(code) : 0;
    for (size_t i = 0; to != CHARACTER_TO_LOWER && i < N_SPECIAL; i++)
        if (special_upper[i].code == code) {
            /* In title case only the first of several letters is a capital; an apostrophe is
             * none. */
            bool lowers = to == CHARACTER_TO_TITLE && code != 0x149;
            size_t n = 0;
            for (; n < CHARACTER_CASE_MAX && special_upper[i].upper[n] != 0; n++)
                out[n] = lowers && n > 0 ? simple_case(special_upper[i].upper[n], false)
                                         : special_upper[i].upper[n];
            return n;
        }
    out[0] = digraph != 0 ? digraph : simple_case(code, to != CHARACTER_TO_LOWER);
    return 1;
}
