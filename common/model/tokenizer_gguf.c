/* A tokenizer from the tokenizer.ggml.* keys of a GGUF file. */
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"
#include "common/model/gguf.h"
#include "common/model/tokenizer.h"

/* How vocabularies write the tokens after which nothing more comes. Files name one of them as eos;
 * a chat model also stops at the base model's, and the other way round. */
static const char *const end_texts[] = {
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>",
    "<EOT>",
};

/* Keys that name an id at which a generation ends, besides eos. */
static const char *const end_keys[] = {"tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};

enum {
    N_END_TEXTS = sizeof end_texts / sizeof *end_texts,
    N_END_KEYS = sizeof end_keys / sizeof *end_keys,
    NAME_BYTES_MAX = 64,
    CHARSMAP_BYTES_MAX = 16 << 20,
};

/* The arrays that live while the tokenizer is built. */
typedef struct {
    tokenizer_source_t source;
    tokenizer_text_t *tokens, *merges;
    uint8_t *kinds, *charsmap;
    double *scores;
    char model[NAME_BYTES_MAX], pre[NAME_BYTES_MAX];
    uint32_t end_ids[N_END_TEXTS + N_END_KEYS];
} reading_t;

static status_t read_texts(const gguf_t *gguf, const char *key, size_t n_max,
                           tokenizer_text_t **own_out, size_t *n_out)
{
    const gguf_value_t *value;
    TRY(gguf_read_array(gguf, key, GGUF_TEXT, &value));
    if (value->count > n_max)
        return fail(STATUS_INVALID, "%s: %s has %llu entries; at most %zu are possible",
                    gguf_path(gguf), key, (unsigned long long)value->count, n_max);
    size_t n = (size_t)value->count;
    tokenizer_text_t *texts = MEM_NEW_ARRAY(tokenizer_text_t, n + 1);
    for (size_t i = 0; i < n; i++) {
        gguf_text_t text = gguf_array_text(value, i);
        texts[i] = (tokenizer_text_t){text.data, text.size};
    }
    *own_out = texts;
    *n_out = n;
    return STATUS_OK;
}

static status_t read_kinds(const gguf_t *gguf, reading_t *reading)
{
    static const char *const key = "tokenizer.ggml.token_type";
    if (gguf_find(gguf, key) == NULL)
        return STATUS_OK;
    const gguf_value_t *value;
    TRY(gguf_read_array(gguf, key, GGUF_I64, &value));
    size_t n = reading->source.n_tokens;
    if (value->count != n)
        return fail(STATUS_INVALID, "%s: %s has %llu entries for %zu tokens; it needs one each",
                    gguf_path(gguf), key, (unsigned long long)value->count, n);
    reading->kinds = MEM_NEW_ARRAY(uint8_t, n + 1);
    for (size_t i = 0; i < n; i++) {
        int64_t kind = gguf_array_integer(value, i);
        if (kind < TOKEN_NORMAL || kind > TOKEN_BYTE)
            return fail(STATUS_INVALID, "%s: token %zu has kind %lld; kinds are 1 to 6",
                        gguf_path(gguf), i, (long long)kind);
        reading->kinds[i] = (uint8_t)kind;
    }
    reading->source.kinds = reading->kinds;
    return STATUS_OK;
}

/* An absent key leaves TOKENIZER_NO_ID. */
static status_t read_id(const gguf_t *gguf, const char *key, uint32_t *out)
{
    *out = TOKENIZER_NO_ID;
    if (gguf_find(gguf, key) == NULL)
        return STATUS_OK;
    /* Some files write -1 for "none", which reads as the largest number of its width. */
    const gguf_value_t *value = gguf_find(gguf, key);
    if (value->kind == GGUF_I32 && value->data[3] == 0xFF)
        return STATUS_OK;
    return gguf_read_u32(gguf, key, 0, UINT32_MAX, out);
}

static status_t read_ids(const gguf_t *gguf, reading_t *reading)
{
    tokenizer_source_t *source = &reading->source;
    TRY(read_id(gguf, "tokenizer.ggml.bos_token_id", &source->bos_id));
    TRY(read_id(gguf, "tokenizer.ggml.eos_token_id", &source->eos_id));
    TRY(read_id(gguf, "tokenizer.ggml.padding_token_id", &source->pad_id));
    TRY(read_id(gguf, "tokenizer.ggml.unknown_token_id", &source->unknown_id));
    for (size_t i = 0; i < N_END_KEYS; i++)
        TRY(read_id(gguf, end_keys[i], &reading->end_ids[i]));
    if (gguf_find(gguf, "tokenizer.ggml.add_bos_token") != NULL)
        TRY(gguf_read_bool(gguf, "tokenizer.ggml.add_bos_token", &source->add_bos));
    /* Only control tokens count: "<|end|>" as letters of a text ends nothing. */
    for (size_t i = 0; i < N_END_TEXTS; i++) {
        reading->end_ids[N_END_KEYS + i] = TOKENIZER_NO_ID;
        for (size_t id = 0; id < source->n_tokens && reading->kinds != NULL; id++)
            if (reading->kinds[id] == TOKEN_CONTROL &&
                source->tokens[id].size == strlen(end_texts[i]) &&
                memcmp(source->tokens[id].data, end_texts[i], source->tokens[id].size) == 0)
                reading->end_ids[N_END_KEYS + i] = (uint32_t)id;
    }
    source->eog_ids = reading->end_ids;
    source->n_eog_ids = N_END_TEXTS + N_END_KEYS;
    return STATUS_OK;
}

static status_t read_name(const gguf_t *gguf, const char *key, char out[NAME_BYTES_MAX])
{
    gguf_text_t text;
    TRY(gguf_read_text(gguf, key, &text));
    size_t n = text.size < NAME_BYTES_MAX ? text.size : NAME_BYTES_MAX - 1;
    memcpy(out, text.data, n);
    out[n] = 0;
    return STATUS_OK;
}

static status_t read_scores(const gguf_t *gguf, reading_t *reading)
{
    static const char *const key = "tokenizer.ggml.scores";
    if (gguf_find(gguf, key) == NULL)
        return STATUS_OK;
    const gguf_value_t *value;
    TRY(gguf_read_array(gguf, key, GGUF_F32, &value));
    size_t n = reading->source.n_tokens;
    if (value->count != n)
        return fail(STATUS_INVALID, "%s: %s has %llu entries for %zu tokens; it needs one each",
                    gguf_path(gguf), key, (unsigned long long)value->count, n);
    reading->scores = MEM_NEW_ARRAY(double, n + 1);
    for (size_t i = 0; i < n; i++)
        reading->scores[i] = (double)gguf_array_f32(value, i);
    reading->source.scores = reading->scores;
    return STATUS_OK;
}

static status_t may_read_bool(const gguf_t *gguf, const char *key, bool *out)
{
    return gguf_find(gguf, key) == NULL ? STATUS_OK : gguf_read_bool(gguf, key, out);
}

static status_t read_charsmap(const gguf_t *gguf, reading_t *reading)
{
    static const char *const key = "tokenizer.ggml.precompiled_charsmap";
    if (gguf_find(gguf, key) == NULL)
        return STATUS_OK;
    const gguf_value_t *value;
    TRY(gguf_read_array(gguf, key, GGUF_I64, &value));
    if (value->count > CHARSMAP_BYTES_MAX)
        return fail(STATUS_INVALID, "%s: %s has %llu bytes; at most %d are possible",
                    gguf_path(gguf), key, (unsigned long long)value->count, CHARSMAP_BYTES_MAX);
    size_t n = (size_t)value->count;
    reading->charsmap = MEM_NEW_ARRAY(uint8_t, n + 1);
    for (size_t i = 0; i < n; i++)
        reading->charsmap[i] = (uint8_t)gguf_array_integer(value, i);
    reading->source.charsmap = reading->charsmap;
    reading->source.charsmap_size = n;
    return STATUS_OK;
}

/* What the models of SentencePiece have besides. */
static status_t read_sentencepiece(const gguf_t *gguf, reading_t *reading)
{
    bool prefix = true;
    TRY(read_scores(gguf, reading));
    TRY(may_read_bool(gguf, "tokenizer.ggml.add_space_prefix", &prefix));
    reading->source.no_space_prefix = !prefix;
    TRY(may_read_bool(gguf, "tokenizer.ggml.remove_extra_whitespaces",
                      &reading->source.squeeze_spaces));
    TRY(may_read_bool(gguf, "tokenizer.ggml.add_eos_token", &reading->source.add_eos));
    return read_charsmap(gguf, reading);
}

static status_t read_all(const gguf_t *gguf, reading_t *reading)
{
    tokenizer_source_t *source = &reading->source;
    source->name = gguf_path(gguf);
    TRY(read_name(gguf, "tokenizer.ggml.model", reading->model));
    source->model = reading->model;
    TRY(read_texts(gguf, "tokenizer.ggml.tokens", TOKENIZER_TOKENS_MAX, &reading->tokens,
                   &source->n_tokens));
    source->tokens = reading->tokens;
    TRY(read_kinds(gguf, reading));
    TRY(read_ids(gguf, reading));
    if (strcmp(reading->model, "gpt2") != 0) {
        /* Files of SentencePiece may leave out what was always so in the first ones. */
        if (strcmp(reading->model, "llama") == 0 &&
            gguf_find(gguf, "tokenizer.ggml.add_bos_token") == NULL)
            source->add_bos = true;
        return read_sentencepiece(gguf, reading);
    }
    if (gguf_find(gguf, "tokenizer.ggml.pre") != NULL) {
        TRY(read_name(gguf, "tokenizer.ggml.pre", reading->pre));
        source->pre = reading->pre;
    }
    TRY(read_texts(gguf, "tokenizer.ggml.merges", TOKENIZER_MERGES_MAX, &reading->merges,
                   &source->n_merges));
    source->merges = reading->merges;
    return STATUS_OK;
}

status_t tokenizer_from_gguf(const struct gguf *gguf, tokenizer_t **own_out)
{
    reading_t reading = {0};
    status_t status = read_all(gguf, &reading);
    if (status == STATUS_OK)
        status = tokenizer_create(&reading.source, own_out);
    free(reading.tokens);
    free(reading.merges);
    free(reading.kinds);
    free(reading.scores);
    free(reading.charsmap);
    return status;
}
