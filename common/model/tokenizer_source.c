/* A tokenizer from plain arrays, in GGUF's terms: what a file's model name implies is put together
 * here (tokenizer_json.c does the same for tokenizer.json, which spells everything out). */
#include <stdlib.h>
#include <string.h>

#include "common/model/tokenizer_internal.h"

static const char metaspace[] = "\xE2\x96\x81"; /* U+2581, SentencePiece's space */

static bool is_special_kind(uint8_t kind)
{
    return kind == TOKEN_CONTROL || kind == TOKEN_UNKNOWN;
}

static status_t put_tokens(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    for (size_t i = 0; i < source->n_tokens; i++) {
        uint8_t kind = source->kinds == NULL ? TOKEN_NORMAL : source->kinds[i];
        unsigned flags = 0;
        if (is_special_kind(kind) || kind == TOKEN_USER_DEFINED)
            flags |= TOKEN_FLAG_ADDED;
        if (!is_special_kind(kind) && kind != TOKEN_BYTE)
            flags |= TOKEN_FLAG_MODEL;
        TRY(tokenizer_put(tokenizer, (uint32_t)i, source->tokens[i].data, source->tokens[i].size,
                          kind, flags));
    }
    return STATUS_OK;
}

static status_t put_merges(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    bpe_reserve(&tokenizer->merges, source->n_merges);
    for (size_t i = 0; i < source->n_merges; i++) {
        const tokenizer_text_t *merge = &source->merges[i];
        const char *space = memchr(merge->data, ' ', merge->size);
        size_t left_size = space == NULL ? 0 : (size_t)(space - merge->data);
        if (left_size == 0 || left_size + 1 >= merge->size ||
            memchr(space + 1, ' ', merge->size - left_size - 1) != NULL)
            return fail(STATUS_INVALID, "merge %zu is \"%s\"; it must be two tokens and one space",
                        i, tokenizer_show(merge->data, merge->size).text);
        TRY(tokenizer_put_merge(tokenizer, i, merge->data, left_size, space + 1,
                                merge->size - left_size - 1, false));
    }
    return STATUS_OK;
}

static status_t make_byte_level(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    const char *pre = source->pre == NULL ? "default" : source->pre;
    TRY(pretok_add_named(&tokenizer->pretok, pre, &tokenizer->ignore_merges));
    TRY(decoder_add(&tokenizer->decoder, (decode_step_t){.kind = DECODE_BYTE_LEVEL}));
    return put_merges(tokenizer, source);
}

/* --- SentencePiece -----------------------------------------------------------------------------*/

typedef struct {
    double score;
    uint32_t left, right, merged;
} scored_merge_t;

static int compare_scored(const void *a, const void *b)
{
    const scored_merge_t *left = a, *right = b;
    if (left->score != right->score)
        return left->score > right->score ? -1 : 1;
    return left->merged < right->merged ? -1 : left->merged > right->merged;
}

/* The merges of a scored vocabulary: every way to make one piece of two. Pieces of equal score have
 * equal rank, so that the leftmost pair merges first. */
static status_t put_scored_merges(tokenizer_t *tokenizer, const double *scores)
{
    scored_merge_t *list = NULL;
    size_t n = 0, capacity = 0;
    status_t status = STATUS_OK;
    for (uint32_t id = 0; id < tokenizer->n_tokens; id++) {
        const token_bytes_t *text = &tokenizer->texts[id];
        if (tokenizer_model_find(tokenizer, text->data, text->size) != id)
            continue;
        for (size_t cut = 1; cut < text->size; cut++) {
            if ((text->data[cut] & 0xC0) == 0x80)
                continue; /* inside a character */
            uint32_t left = tokenizer_model_find(tokenizer, text->data, cut);
            if (left == TOKENIZER_NO_ID)
                continue;
            uint32_t right =
                tokenizer_model_find(tokenizer, text->data + cut, text->size - cut);
            if (right == TOKENIZER_NO_ID)
                continue;
            MEM_GROW(list, capacity, n + 1);
            list[n++] = (scored_merge_t){scores[id], left, right, id};
        }
        if (n > TOKENIZER_MERGES_MAX) {
            status = fail(STATUS_INVALID, "the pieces merge in more than %d ways",
                          TOKENIZER_MERGES_MAX);
            break;
        }
    }
    if (status == STATUS_OK) {
        if (n > 0)
            qsort(list, n, sizeof *list, compare_scored);
        bpe_reserve(&tokenizer->merges, n);
        uint32_t rank = 0;
        for (size_t i = 0; i < n; i++) {
            rank += i > 0 && list[i].score != list[i - 1].score;
            (void)bpe_add(&tokenizer->merges, list[i].left, list[i].right, rank, list[i].merged,
                          false);
        }
    }
    free(list);
    return status;
}

static status_t add_normalize(tokenizer_t *tokenizer, normalize_kind_t kind)
{
    return normalizer_add(&tokenizer->normalizer, (normalize_step_t){.kind = kind});
}

/* SentencePiece's spaces: one before the text, all written as U+2581. */
static status_t add_metaspaces(tokenizer_t *tokenizer, bool prefix)
{
    if (prefix)
        TRY(normalizer_add(&tokenizer->normalizer,
                           (normalize_step_t){.kind = NORMALIZE_PREPEND,
                                              .content = mem_strdup(metaspace),
                                              .content_size = strlen(metaspace)}));
    normalize_step_t replace = {.kind = NORMALIZE_REPLACE, .content_size = strlen(metaspace)};
    TRY(pattern_literal(" ", 1, &replace.pattern));
    replace.content = mem_strdup(metaspace);
    TRY(normalizer_add(&tokenizer->normalizer, replace));
    decode_step_t back = {.kind = DECODE_REPLACE, .content_size = 1};
    TRY(pattern_literal(metaspace, strlen(metaspace), &back.pattern));
    back.content = mem_strdup(" ");
    TRY(decoder_add(&tokenizer->decoder, back));
    TRY(decoder_add(&tokenizer->decoder, (decode_step_t){.kind = DECODE_BYTE_FALLBACK}));
    TRY(decoder_add(&tokenizer->decoder, (decode_step_t){.kind = DECODE_FUSE}));
    if (prefix)
        return decoder_add(&tokenizer->decoder,
                           (decode_step_t){.kind = DECODE_STRIP, .character = " ", .start = 1});
    return STATUS_OK;
}

static status_t check_scores(const tokenizer_source_t *source)
{
    if (source->scores == NULL)
        return fail(STATUS_INVALID, "a vocabulary of the model \"%s\" needs a score for each token",
                    source->model);
    for (size_t i = 0; i < source->n_tokens; i++)
        if (!(source->scores[i] > -1e30 && source->scores[i] < 1e30))
            return fail(STATUS_INVALID, "the score of token %zu is no usable number", i);
    return STATUS_OK;
}

static status_t make_sentencepiece(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    TRY(check_scores(source));
    tokenizer->byte_fallback = true;
    tokenizer->fuse_unknown = true;
    tokenizer->model_unknown_id = source->unknown_id;
    TRY(add_metaspaces(tokenizer, !source->no_space_prefix));
    return put_scored_merges(tokenizer, source->scores);
}

static status_t make_unigram(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    TRY(check_scores(source));
    tokenizer->model = MODEL_UNIGRAM;
    tokenizer->fuse_unknown = true;
    tokenizer->model_unknown_id = source->unknown_id;
    unigram_start(&tokenizer->unigram);
    for (uint32_t id = 0; id < tokenizer->n_tokens; id++) {
        const token_bytes_t *text = &tokenizer->texts[id];
        if (source->scores[id] < tokenizer->unigram.min_score)
            tokenizer->unigram.min_score = source->scores[id];
        tokenizer->byte_fallback = tokenizer->byte_fallback || tokenizer->kinds[id] == TOKEN_BYTE;
        if (tokenizer_model_find(tokenizer, text->data, text->size) == id)
            TRY(unigram_add(&tokenizer->unigram, text->data, text->size, id, source->scores[id]));
    }
    if (source->charsmap != NULL) {
        normalize_step_t map = {.kind = NORMALIZE_CHARSMAP};
        TRY(charsmap_create(source->charsmap, source->charsmap_size, &map.charsmap));
        TRY(normalizer_add(&tokenizer->normalizer, map));
    }
    if (source->squeeze_spaces)
        TRY(add_normalize(tokenizer, NORMALIZE_SQUEEZE));
    return add_metaspaces(tokenizer, !source->no_space_prefix);
}

static status_t make_model(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    if (source->model == NULL || strcmp(source->model, "gpt2") == 0)
        return make_byte_level(tokenizer, source);
    if (strcmp(source->model, "llama") == 0)
        return make_sentencepiece(tokenizer, source);
    if (strcmp(source->model, "t5") == 0)
        return make_unigram(tokenizer, source);
    return fail(STATUS_UNSUPPORTED,
                "the tokenizer's model is \"%.40s\"; gpt2 (byte-level BPE), llama (SentencePiece) "
                "and t5 (Unigram) are supported",
                source->model);
}

static status_t build(tokenizer_t *tokenizer, const tokenizer_source_t *source)
{
    TRY(put_tokens(tokenizer, source));
    TRY(tokenizer_put_named_ids(tokenizer, source->bos_id, source->eos_id, source->pad_id,
                                source->unknown_id, source->eog_ids, source->n_eog_ids));
    TRY(make_model(tokenizer, source));
    if (source->add_bos && source->bos_id != TOKENIZER_NO_ID)
        token_ids_append(&tokenizer->prefix, source->bos_id);
    if (source->add_eos && source->eos_id != TOKENIZER_NO_ID)
        token_ids_append(&tokenizer->suffix, source->eos_id);
    return tokenizer_finish(tokenizer);
}

status_t tokenizer_create(const tokenizer_source_t *source, tokenizer_t **own_out)
{
    const char *name = source->name == NULL ? "tokenizer" : source->name;
    if (source->n_tokens == 0 || source->n_tokens > TOKENIZER_TOKENS_MAX)
        return fail(STATUS_INVALID, "%s: the vocabulary has %zu tokens; 1 to %d are possible", name,
                    source->n_tokens, TOKENIZER_TOKENS_MAX);
    if (source->n_merges > TOKENIZER_MERGES_MAX)
        return fail(STATUS_INVALID, "%s: there are %zu merges; at most %d are possible", name,
                    source->n_merges, TOKENIZER_MERGES_MAX);
    tokenizer_t *tokenizer = tokenizer_new(name, source->n_tokens);
    status_t status = build(tokenizer, source);
    if (status != STATUS_OK) {
        status = fail_in(status, "%s", name);
        tokenizer_release(tokenizer);
        return status;
    }
    *own_out = tokenizer;
    return STATUS_OK;
}
