/* The normalizer, pre-tokenizer and decoder of a tokenizer.json. A type that is not known is
 * refused by name: leaving a step out would change every text silently. */
#include <stdlib.h>
#include <string.h>

#include "common/model/tokenizer_json.h"
#include "common/model/unicode.h"

static const char metaspace[] = "\xE2\x96\x81";

status_t tokenizer_json_type(const json_t *object, const char *where, const char *list_name,
                             const char **type_out, const json_t **list_out)
{
    *list_out = NULL;
    if (!json_is_object(object))
        return fail(STATUS_INVALID, "%s is of kind %s; it must be an object with a \"type\"", where,
                    json_kind_name(object));
    TRY(json_get_text(object, where, "type", type_out, NULL));
    if (strcmp(*type_out, "Sequence") == 0)
        return json_get_array(object, where, list_name, list_out);
    return STATUS_OK;
}

status_t tokenizer_json_pattern(const json_t *object, const char *where, pattern_t **own_out)
{
    const json_t *pattern;
    const char *text = NULL;
    size_t n;
    TRY(json_get_object(object, where, "pattern", &pattern));
    TRY(json_may_text(pattern, where, "String", &text, &n));
    if (text != NULL)
        return pattern_literal(text, n, own_out);
    TRY(json_get_text(pattern, where, "Regex", &text, &n));
    return pattern_regex(text, n, own_out);
}

static status_t unknown_type(const char *where, const char *type)
{
    return fail(STATUS_UNSUPPORTED, "%s: the type \"%.40s\" is not supported", where, type);
}

/* A text of a step, copied; at most NORMALIZE_CONTENT_BYTES_MAX. */
static status_t read_content(const json_t *object, const char *where, const char *key, char **own,
                             size_t *n_out)
{
    const char *text;
    TRY(json_get_text(object, where, key, &text, n_out));
    if (*n_out > NORMALIZE_CONTENT_BYTES_MAX)
        return fail(STATUS_INVALID, "%s: \"%s\" has %zu bytes; at most %d are possible", where, key,
                    *n_out, NORMALIZE_CONTENT_BYTES_MAX);
    *own = mem_strndup(text, *n_out);
    return STATUS_OK;
}

/* --- Normalizer --------------------------------------------------------------------------------*/

static status_t add_plain(normalizer_t *out, normalize_kind_t kind)
{
    return normalizer_add(out, (normalize_step_t){.kind = kind});
}

static status_t add_bert(const json_t *value, const char *where, normalizer_t *out)
{
    bool clean = true, chinese = true, lowercase = true;
    TRY(json_may_bool(value, where, "clean_text", &clean));
    TRY(json_may_bool(value, where, "handle_chinese_chars", &chinese));
    TRY(json_may_bool(value, where, "lowercase", &lowercase));
    bool strip = lowercase; /* null: as lowercase says */
    TRY(json_may_bool(value, where, "strip_accents", &strip));
    if (clean)
        TRY(add_plain(out, NORMALIZE_CLEAN));
    if (chinese)
        TRY(add_plain(out, NORMALIZE_CHINESE));
    if (strip) {
        TRY(normalizer_add(out, (normalize_step_t){.kind = NORMALIZE_FORM, .form = UNICODE_NFD}));
        TRY(add_plain(out, NORMALIZE_STRIP_NONSPACING));
    }
    return lowercase ? add_plain(out, NORMALIZE_LOWERCASE) : STATUS_OK;
}

static status_t add_replace(const json_t *value, const char *where, normalizer_t *out)
{
    normalize_step_t step = {.kind = NORMALIZE_REPLACE};
    TRY(tokenizer_json_pattern(value, where, &step.pattern));
    status_t status = read_content(value, where, "content", &step.content, &step.content_size);
    if (status == STATUS_OK)
        return normalizer_add(out, step);
    pattern_release(step.pattern);
    return status;
}

static status_t add_normalizer(const json_t *value, normalizer_t *out, int depth)
{
    static const struct {
        const char *type;
        normalize_step_t step;
    } plain[] = {
        {"NFC", {.kind = NORMALIZE_FORM, .form = UNICODE_NFC}},
        {"NFD", {.kind = NORMALIZE_FORM, .form = UNICODE_NFD}},
        {"NFKC", {.kind = NORMALIZE_FORM, .form = UNICODE_NFKC}},
        {"NFKD", {.kind = NORMALIZE_FORM, .form = UNICODE_NFKD}},
        {"Lowercase", {.kind = NORMALIZE_LOWERCASE}},
        {"StripAccents", {.kind = NORMALIZE_STRIP_ACCENTS}},
        {"Nmt", {.kind = NORMALIZE_NMT}},
        {"ByteLevel", {.kind = NORMALIZE_BYTE_LEVEL}},
    };
    static const char where[] = "normalizer";
    const char *type;
    const json_t *list;
    TRY(tokenizer_json_type(value, where, "normalizers", &type, &list));
    if (list != NULL) {
        if (depth == TOKENIZER_JSON_DEPTH_MAX)
            return fail(STATUS_INVALID, "the normalizer has Sequences nested deeper than %d",
                        depth);
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(add_normalizer(json_array_get(list, i), out, depth + 1));
        return STATUS_OK;
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (strcmp(plain[i].type, type) == 0)
            return normalizer_add(out, plain[i].step);
    if (strcmp(type, "Replace") == 0)
        return add_replace(value, where, out);
    if (strcmp(type, "BertNormalizer") == 0)
        return add_bert(value, where, out);
    normalize_step_t step = {.kind = NORMALIZE_PREPEND};
    if (strcmp(type, "Prepend") == 0) {
        TRY(read_content(value, where, "prepend", &step.content, &step.content_size));
        return normalizer_add(out, step);
    }
    if (strcmp(type, "Strip") == 0) {
        step = (normalize_step_t){.kind = NORMALIZE_STRIP, .left = true, .right = true};
        TRY(json_may_bool(value, where, "strip_left", &step.left));
        TRY(json_may_bool(value, where, "strip_right", &step.right));
        return normalizer_add(out, step);
    }
    if (strcmp(type, "Precompiled") == 0) {
        const char *text;
        size_t n;
        step = (normalize_step_t){.kind = NORMALIZE_CHARSMAP};
        TRY(json_get_text(value, where, "precompiled_charsmap", &text, &n));
        TRY(charsmap_create_base64(text, n, &step.charsmap));
        return normalizer_add(out, step);
    }
    return unknown_type(where, type);
}

status_t tokenizer_json_normalizer(const json_t *value, normalizer_t *out)
{
    return value == NULL || json_is_null(value) ? STATUS_OK : add_normalizer(value, out, 0);
}

/* --- Pre-tokenizer -----------------------------------------------------------------------------*/

static status_t read_behavior(const json_t *value, const char *where, split_behavior_t *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    TRY(json_may_text(value, where, "behavior", &name, NULL));
    for (size_t i = 0; name != NULL && i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (split_behavior_t)i;
            return STATUS_OK;
        }
    if (name == NULL)
        return STATUS_OK;
    return fail(STATUS_UNSUPPORTED, "%s: the behavior \"%.40s\" is not known", where, name);
}

static status_t add_split(const json_t *value, const char *where, pretok_t *out)
{
    pretok_stage_t stage = {.kind = PRETOK_SPLIT, .behavior = SPLIT_ISOLATED};
    TRY(read_behavior(value, where, &stage.behavior));
    TRY(json_may_bool(value, where, "invert", &stage.invert));
    TRY(tokenizer_json_pattern(value, where, &stage.pattern));
    return pretok_add(out, stage);
}

/* How a Metaspace of any age says where it prepends; its decoder reads the same keys. */
static status_t read_metaspace(const json_t *value, const char *where, const char **replacement,
                               prepend_t *prepend)
{
    bool prefix = true;
    const char *scheme = NULL;
    *replacement = metaspace;
    TRY(json_may_text(value, where, "replacement", replacement, NULL));
    TRY(json_may_bool(value, where, "add_prefix_space", &prefix));
    TRY(json_may_text(value, where, "prepend_scheme", &scheme, NULL));
    *prepend = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (scheme == NULL || strcmp(scheme, "always") == 0)
        return STATUS_OK;
    if (strcmp(scheme, "first") != 0 && strcmp(scheme, "never") != 0)
        return fail(STATUS_INVALID, "%s: prepend_scheme is \"%.20s\"; it is always, first or never",
                    where, scheme);
    *prepend = strcmp(scheme, "first") == 0 ? PREPEND_FIRST : PREPEND_NEVER;
    return STATUS_OK;
}

static status_t add_byte_level(const json_t *value, const char *where, pretok_t *out)
{
    bool prefix = true, words = true;
    TRY(json_may_bool(value, where, "add_prefix_space", &prefix));
    TRY(json_may_bool(value, where, "use_regex", &words));
    return pretok_add_byte_level(out, prefix, words);
}

static status_t add_delimiter(const json_t *value, const char *where, pretok_t *out)
{
    const char *text;
    size_t n;
    pretok_stage_t stage = {.kind = PRETOK_SPLIT, .behavior = SPLIT_REMOVED};
    TRY(json_get_text(value, where, "delimiter", &text, &n));
    TRY(pattern_literal(text, n, &stage.pattern));
    return pretok_add(out, stage);
}

static const char punctuation[] = "[!-/:-@\\[-`{-~\\p{P}]";

static status_t add_pretok(const json_t *value, pretok_t *out, int depth)
{
    static const char where[] = "pre_tokenizer";
    const char *type;
    const json_t *list;
    TRY(tokenizer_json_type(value, where, "pretokenizers", &type, &list));
    if (list != NULL) {
        if (depth == TOKENIZER_JSON_DEPTH_MAX)
            return fail(STATUS_INVALID, "the pre_tokenizer has Sequences nested deeper than %d",
                        depth);
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(add_pretok(json_array_get(list, i), out, depth + 1));
        return STATUS_OK;
    }
    if (strcmp(type, "Split") == 0)
        return add_split(value, where, out);
    if (strcmp(type, "ByteLevel") == 0)
        return add_byte_level(value, where, out);
    if (strcmp(type, "Whitespace") == 0)
        /* Rust's \w, which has the joiners besides. */
        return pretok_add_split(out, "[\\w\\x{200C}\\x{200D}]+|[^\\w\\x{200C}\\x{200D}\\s]+",
                                SPLIT_REMOVED, true);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return pretok_add_split(out, "\\s", SPLIT_REMOVED, false);
    if (strcmp(type, "CharDelimiterSplit") == 0)
        return add_delimiter(value, where, out);
    if (strcmp(type, "BertPreTokenizer") == 0) {
        TRY(pretok_add_split(out, "\\s", SPLIT_REMOVED, false));
        return pretok_add_split(out, punctuation, SPLIT_ISOLATED, false);
    }
    if (strcmp(type, "Punctuation") == 0) {
        split_behavior_t behavior = SPLIT_ISOLATED;
        TRY(read_behavior(value, where, &behavior));
        return pretok_add_split(out, punctuation, behavior, false);
    }
    if (strcmp(type, "Digits") == 0) {
        bool individual = false;
        TRY(json_may_bool(value, where, "individual_digits", &individual));
        return pretok_add_split(out, individual ? "\\p{N}" : "\\p{N}+", SPLIT_ISOLATED, false);
    }
    if (strcmp(type, "Metaspace") == 0) {
        const char *replacement;
        prepend_t prepend;
        bool split = true;
        TRY(read_metaspace(value, where, &replacement, &prepend));
        TRY(json_may_bool(value, where, "split", &split));
        return pretok_add_metaspace(out, replacement, prepend, split);
    }
    return unknown_type(where, type);
}

status_t tokenizer_json_pretok(const json_t *value, pretok_t *out)
{
    return value == NULL || json_is_null(value) ? STATUS_OK : add_pretok(value, out, 0);
}

/* --- Decoder -----------------------------------------------------------------------------------*/

static status_t one_character(const char *where, const char *text, char out[5])
{
    size_t n = strlen(text), length = 0;
    if (n == 0 || utf8_next((const uint8_t *)text, n, &length) != UTF8_COMPLETE || length != n)
        return fail(STATUS_INVALID, "%s: \"%.20s\" must be one character", where, text);
    memcpy(out, text, n + 1);
    return STATUS_OK;
}

static status_t add_decode_strip(const json_t *value, const char *where, decoder_t *out)
{
    const char *content;
    uint64_t start, stop;
    decode_step_t step = {.kind = DECODE_STRIP};
    TRY(json_get_text(value, where, "content", &content, NULL));
    TRY(one_character(where, content, step.character));
    TRY(json_get_u64(value, where, "start", 0, UINT32_MAX, &start));
    TRY(json_get_u64(value, where, "stop", 0, UINT32_MAX, &stop));
    step.start = (uint32_t)start;
    step.stop = (uint32_t)stop;
    return decoder_add(out, step);
}

static status_t add_decode_replace(const json_t *value, const char *where, decoder_t *out)
{
    decode_step_t step = {.kind = DECODE_REPLACE};
    TRY(tokenizer_json_pattern(value, where, &step.pattern));
    status_t status = read_content(value, where, "content", &step.content, &step.content_size);
    if (status == STATUS_OK)
        return decoder_add(out, step);
    pattern_release(step.pattern);
    return status;
}

static status_t add_decode_metaspace(const json_t *value, const char *where, decoder_t *out)
{
    const char *replacement;
    prepend_t prepend;
    decode_step_t step = {.kind = DECODE_METASPACE};
    TRY(read_metaspace(value, where, &replacement, &prepend));
    TRY(one_character(where, replacement, step.character));
    step.drops_first = prepend != PREPEND_NEVER;
    return decoder_add(out, step);
}

static status_t add_decode_wordpiece(const json_t *value, const char *where, decoder_t *out)
{
    decode_step_t step = {.kind = DECODE_WORDPIECE, .cleanup = true};
    TRY(json_may_bool(value, where, "cleanup", &step.cleanup));
    TRY(read_content(value, where, "prefix", &step.content, &step.content_size));
    return decoder_add(out, step);
}

static status_t add_decoder(const json_t *value, decoder_t *out, int depth)
{
    static const char where[] = "decoder";
    const char *type;
    const json_t *list;
    TRY(tokenizer_json_type(value, where, "decoders", &type, &list));
    if (list != NULL) {
        if (depth == TOKENIZER_JSON_DEPTH_MAX)
            return fail(STATUS_INVALID, "the decoder has Sequences nested deeper than %d", depth);
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(add_decoder(json_array_get(list, i), out, depth + 1));
        return STATUS_OK;
    }
    if (strcmp(type, "ByteLevel") == 0)
        return decoder_add(out, (decode_step_t){.kind = DECODE_BYTE_LEVEL});
    if (strcmp(type, "ByteFallback") == 0)
        return decoder_add(out, (decode_step_t){.kind = DECODE_BYTE_FALLBACK});
    if (strcmp(type, "Fuse") == 0)
        return decoder_add(out, (decode_step_t){.kind = DECODE_FUSE});
    if (strcmp(type, "Replace") == 0)
        return add_decode_replace(value, where, out);
    if (strcmp(type, "Strip") == 0)
        return add_decode_strip(value, where, out);
    if (strcmp(type, "Metaspace") == 0)
        return add_decode_metaspace(value, where, out);
    if (strcmp(type, "WordPiece") == 0)
        return add_decode_wordpiece(value, where, out);
    return unknown_type(where, type);
}

status_t tokenizer_json_decoder(const json_t *value, decoder_t *out)
{
    if (value == NULL || json_is_null(value))
        return decoder_add(out, (decode_step_t){.kind = DECODE_SPACES});
    return add_decoder(value, out, 0);
}
