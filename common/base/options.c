/* See options.h. */
#include "common/base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 64 };

status_t options_parse_integer(const char *what, const char *text, int64_t *out)
{
    static const struct { char suffix; int64_t factor; } suffixes[] = {
        {'k', 1000}, {'K', 1024}, {'m', 1000000}, {'M', 1048576}, {'g', 1000000000}, {'G', 1073741824},
    };
    char *end;
    errno = 0;
    double real = strtod(text, &end);
    long long whole = strtoll(text, NULL, 10);
    int64_t factor = 1;
    if (end != text && *end != 0 && end[1] == 0)
        for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
            if (*end == suffixes[i].suffix) {
                factor = suffixes[i].factor;
                end++;
                break;
            }
    bool fits = end != text && *end == 0 && errno == 0 && isfinite(real);
    if (fits && factor == 1 && strpbrk(text, ".eExX") == NULL) {
        *out = whole;
        return STATUS_OK;
    }
    real *= (double)factor;
    if (!fits || fabs(real) > 9e15 || real != floor(real))
        return fail(STATUS_INVALID, "%s: \"%s\" is no whole number; write 4096, 4K or 4k", what, text);
    *out = (int64_t)real;
    return STATUS_OK;
}

status_t options_parse_duration_ms(const char *what, const char *text, int64_t *out)
{
    static const struct { const char *unit; double ms; } units[] = {
        {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000},
    };
    char *end;
    errno = 0;
    double real = strtod(text, &end);
    if (end != text && errno == 0 && isfinite(real) && real >= 0 && real < 1e12) {
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (strcmp(end, units[i].unit) == 0 && real * units[i].ms < 9e15) {
                *out = (int64_t)(real * units[i].ms);
                return STATUS_OK;
            }
        if (*end == 0 && real == 0) {
            *out = 0;
            return STATUS_OK;
        }
    }
    return fail(STATUS_INVALID, "%s: \"%s\" is no duration; write 500ms, 30s, 5m or 1h", what, text);
}

/* Options of one letter are written with one dash. */
static const char *dashes(const option_t *option)
{
    return option->name[1] == 0 ? "-" : "--";
}

static status_t check_range(const option_t *option, double value, const char *text)
{
    if ((option->min == 0 && option->max == 0) || (value >= option->min && value <= option->max))
        return STATUS_OK;
    return fail(STATUS_INVALID, "%s%s: %s is outside %.16g to %.16g", dashes(option), option->name,
                text, option->min, option->max);
}

static status_t set_value(const option_t *option, const char *text)
{
    char what[NAME_MAX_BYTES + 2];
    snprintf(what, sizeof what, "%s%s", dashes(option), option->name);
    int64_t whole;
    char *end;
    switch (option->kind) {
    case OPTION_FLAG:
        if (strcmp(text, "1") == 0 || strcmp(text, "true") == 0)
            *(bool *)option->value = true;
        else if (strcmp(text, "0") == 0 || strcmp(text, "false") == 0 || *text == 0)
            *(bool *)option->value = false;
        else
            return fail(STATUS_INVALID, "%s: \"%s\" is neither true nor false", what, text);
        return STATUS_OK;
    case OPTION_TEXT:
        *(const char **)option->value = text;
        return STATUS_OK;
    case OPTION_INTEGER:
        TRY(options_parse_integer(what, text, &whole));
        TRY(check_range(option, (double)whole, text));
        *(int64_t *)option->value = whole;
        return STATUS_OK;
    case OPTION_DURATION_MS:
        TRY(options_parse_duration_ms(what, text, &whole));
        TRY(check_range(option, (double)whole, text));
        *(int64_t *)option->value = whole;
        return STATUS_OK;
    case OPTION_REAL: {
        errno = 0;
        double real = strtod(text, &end);
        if (end == text || *end != 0 || errno != 0 || !isfinite(real))
            return fail(STATUS_INVALID, "%s: \"%s\" is no number", what, text);
        TRY(check_range(option, real, text));
        *(double *)option->value = real;
        return STATUS_OK;
    }
    }
    return fail(STATUS_INTERNAL, "option %s has an unknown kind", what);
}

static void environment_name(const option_t *option, char out[NAME_MAX_BYTES + 8])
{
    if (option->environment != NULL) {
        snprintf(out, NAME_MAX_BYTES + 8, "%s", option->environment);
        return;
    }
    int n = snprintf(out, NAME_MAX_BYTES + 8, "SHOAL_%s", option->name);
    for (int i = 0; i < n && i < NAME_MAX_BYTES + 7; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

static status_t read_defaults(const option_t *options)
{
    for (const option_t *option = options; option->name != NULL; option++) {
        char name[NAME_MAX_BYTES + 8];
        environment_name(option, name);
        const char *text = getenv(name);
        if (option->given != NULL)
            *option->given = text != NULL;
        if (text == NULL)
            text = option->by_default;
        if (text == NULL)
            continue;
        status_t status = set_value(option, text);
        if (status != STATUS_OK)
            return text == option->by_default ? status : fail_in(status, "environment %s", name);
    }
    return STATUS_OK;
}

static const option_t *find(const option_t *options, const char *name, size_t n)
{
    for (const option_t *option = options; option->name != NULL; option++)
        if (strlen(option->name) == n && strncmp(option->name, name, n) == 0)
            return option;
    return NULL;
}

static status_t read_option(const option_t *options, int argc, char **argv, int *at)
{
    const char *word = argv[*at];
    const char *name = word[1] == '-' ? word + 2 : word + 1;
    const char *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    const option_t *option = find(options, name, n);
    if (option == NULL)
        return fail(STATUS_INVALID, "unknown option %.*s; --help lists the known ones",
                    (int)(name - word) + (int)n, word);
    const char *text;
    if (equals != NULL)
        text = equals + 1;
    else if (option->kind == OPTION_FLAG)
        text = "1";
    else if (*at + 1 < argc)
        text = argv[++*at];
    else
        return fail(STATUS_INVALID, "%s%s needs a value %s", dashes(option), option->name,
                    option->value_name ? option->value_name : "");
    if (option->given != NULL)
        *option->given = true;
    return set_value(option, text);
}

status_t options_read(const option_t *options, int argc, char **argv, const char **positional,
                      size_t positional_max, size_t *n_positional_out, bool *help_out)
{
    size_t n_positional = 0;
    bool only_words = false;
    *help_out = false;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            *help_out = true;
        else if (strcmp(argv[i], "--") == 0)
            break;
    if (*help_out)
        return STATUS_OK;
    TRY(read_defaults(options));
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_words && strcmp(word, "--") == 0) {
            only_words = true;
        } else if (!only_words && word[0] == '-' && word[1] != 0) {
            TRY(read_option(options, argc, argv, &i));
        } else if (n_positional == positional_max) {
            return fail(STATUS_INVALID, "unexpected word \"%s\"; --help shows the usage", word);
        } else {
            positional[n_positional++] = word;
        }
    }
    if (n_positional_out != NULL)
        *n_positional_out = n_positional;
    return STATUS_OK;
}

/* The columns that a UTF-8 text takes, each character counted as one. */
static int columns(const char *text)
{
    int n = 0;
    for (; *text != 0; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_option(const option_t *option)
{
    enum { LEFT_COLUMNS = 28 };
    char left[96];
    snprintf(left, sizeof left, "%s%s%s%s", dashes(option), option->name,
             option->value_name ? " " : "", option->value_name ? option->value_name : "");
    int pad = LEFT_COLUMNS - columns(left);
    printf("  %s%*s %s", left, pad > 0 ? pad : 0, "", option->help);
    if (option->by_default != NULL && option->by_default[0] != 0 && option->kind != OPTION_FLAG)
        printf(" [%s]", option->by_default);
    if (option->environment != NULL)
        printf(" (environment: %s)", option->environment);
    putchar('\n');
}

void options_print_help(const options_help_t *help)
{
    printf("Usage: %s\n\n%s\n", help->usage, help->about);
    bool any = help->options != NULL && help->options->name != NULL;
    if (any)
        printf("\nOptions:\n");
    for (const option_t *option = help->options; any && option->name != NULL; option++)
        print_option(option);
    if (any) {
        char name[NAME_MAX_BYTES + 8];
        environment_name(help->options, name);
        printf("\nEvery option can be given as SHOAL_<OPTION> in the environment: %s%s as %s.\n",
               dashes(help->options), help->options->name, name);
    }
    if (help->example == NULL)
        return;
    printf("\nExample:\n");
    for (const char *line = help->example; *line != 0;) {
        int n = (int)strcspn(line, "\n");
        printf("  %.*s\n", n, line);
        line += n + (line[n] == '\n');
    }
}
