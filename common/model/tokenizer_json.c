/* A tokenizer from the text of tokenizer.json: its vocabulary, model and added tokens. The steps
 * around the model are tokenizer_json_steps.c's. */
#include "common/model/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

enum { JSON_BYTES_MAX = 128 << 20, JSON_VALUES_MAX = 8 << 20 };

typedef struct {
    const json_t *root, *model, *added; /* added may be NULL */
    const char *type;
    bool unigram;
    size_t n_tokens;
    tokenizer_t *tokenizer;
} file_t;

static status_t read_id(const json_t *value, const char *what, uint32_t *out)
{
    if (!json_is_integer(value))
        return fail(STATUS_INVALID, "the id of %s is of kind %s; it must be an integer", what,
                    json_kind_name(value));
    long long id = json_integer_value(value);
    if (id < 0 || id >= TOKENIZER_TOKENS_MAX)
        return fail(STATUS_INVALID, "the id of %s is %lld; ids are 0 to %d", what, id,
                    TOKENIZER_TOKENS_MAX - 1);
    *out = (uint32_t)id;
    return STATUS_OK;
}

/* One more than the highest id of vocabulary and added tokens. */
static status_t count_tokens(file_t *file, const json_t *vocabulary)
{
    size_t n = file->unigram ? json_array_size(vocabulary) : 0;
    uint32_t id;
    if (n > TOKENIZER_TOKENS_MAX)
        return fail(STATUS_INVALID, "the vocabulary has %zu tokens; 1 to %d are possible", n,
                    TOKENIZER_TOKENS_MAX);
    if (!file->unigram) {
        const char *text;
        json_t *value;
        json_t *object = (json_t *)(uintptr_t)vocabulary; /* jansson's iterators are not const */
        json_object_foreach(object, text, value) {
            TRY(read_id(value, tokenizer_show(text, strlen(text)).text, &id));
            n = id >= n ? (size_t)id + 1 : n;
        }
    }
    for (size_t i = 0; i < json_array_size(file->added); i++) {
        TRY(read_id(json_object_get(json_array_get(file->added, i), "id"), "an added token", &id));
        n = id >= n ? (size_t)id + 1 : n;
    }
    if (n == 0)
        return fail(STATUS_INVALID, "the vocabulary has no tokens");
    file->n_tokens = n;
    return STATUS_OK;
}

static status_t find_model(file_t *file, const json_t **vocabulary_out)
{
    static const char where[] = "model";
    TRY(json_get_object(file->root, "tokenizer.json", where, &file->model));
    TRY(json_may_array(file->root, "tokenizer.json", "added_tokens", &file->added));
    file->type = NULL;
    TRY(json_may_text(file->model, where, "type", &file->type, NULL));
    if (file->type == NULL) /* the first files named no type */
        file->type = json_object_get(file->model, "merges") != NULL ? "BPE" : "Unigram";
    file->unigram = strcmp(file->type, "Unigram") == 0;
    if (!file->unigram && strcmp(file->type, "BPE") != 0 && strcmp(file->type, "WordPiece") != 0)
        return fail(STATUS_UNSUPPORTED,
                    "the model's type \"%.40s\" is not supported; BPE, Unigram and WordPiece are",
                    file->type);
    if (file->unigram)
        return json_get_array(file->model, where, "vocab", vocabulary_out);
    return json_get_object(file->model, where, "vocab", vocabulary_out);
}

static status_t put_vocabulary(file_t *file, const json_t *vocabulary)
{
    const char *text;
    json_t *value;
    json_t *object = (json_t *)(uintptr_t)vocabulary;
    json_object_foreach(object, text, value)
        TRY(tokenizer_put(file->tokenizer, (uint32_t)json_integer_value(value), text, strlen(text),
                          TOKEN_NORMAL, TOKEN_FLAG_MODEL));
    return STATUS_OK;
}

static status_t put_pieces(file_t *file, const json_t *pieces)
{
    for (size_t i = 0; i < json_array_size(pieces); i++) {
        const json_t *pair = json_array_get(pieces, i);
        const json_t *text = json_array_get(pair, 0), *score = json_array_get(pair, 1);
        if (json_array_size(pair) != 2 || !json_is_string(text) || !json_is_number(score))
            return fail(STATUS_INVALID, "vocab[%zu] is no pair of a text and a score", i);
        TRY(tokenizer_put(file->tokenizer, (uint32_t)i, json_string_value(text),
                          json_string_length(text), TOKEN_NORMAL, TOKEN_FLAG_MODEL));
    }
    return STATUS_OK;
}

static status_t read_flag(const json_t *token, const char *key, unsigned flag, unsigned *flags)
{
    bool value = false;
    TRY(json_may_bool(token, "an added token", key, &value));
    *flags |= value ? flag : 0;
    return STATUS_OK;
}

static status_t put_added(file_t *file, const json_t *token)
{
    const char *text;
    size_t n;
    bool special = false;
    unsigned flags = TOKEN_FLAG_ADDED;
    TRY(json_get_text(token, "an added token", "content", &text, &n));
    TRY(json_may_bool(token, "an added token", "special", &special));
    bool normalized = !special;
    TRY(json_may_bool(token, "an added token", "normalized", &normalized));
    flags |= normalized ? TOKEN_FLAG_NORMALIZED : 0;
    TRY(read_flag(token, "lstrip", TOKEN_FLAG_LSTRIP, &flags));
    TRY(read_flag(token, "rstrip", TOKEN_FLAG_RSTRIP, &flags));
    TRY(read_flag(token, "single_word", TOKEN_FLAG_WORD, &flags));
    tokenizer_t *tokenizer = file->tokenizer;
    uint32_t id = (uint32_t)json_integer_value(json_object_get(token, "id"));
    uint32_t known = tokenizer_index_find(tokenizer, (const uint8_t *)text, n);
    token_kind_t kind = special ? TOKEN_CONTROL : TOKEN_USER_DEFINED;
    if (known == TOKENIZER_NO_ID)
        return tokenizer_put(tokenizer, id, text, n, kind, flags);
    if (known != id || (tokenizer->flags[id] & TOKEN_FLAG_ADDED) != 0)
        return fail(STATUS_INVALID, "the added token %s has id %u; the vocabulary gives it %u",
                    tokenizer_show(text, n).text, id, known);
    if (n > TOKENIZER_SPECIAL_BYTES_MAX)
        return fail(STATUS_INVALID, "the added token %u has %zu bytes; at most %d are possible", id,
                    n, TOKENIZER_SPECIAL_BYTES_MAX);
    tokenizer->flags[id] = (uint8_t)(tokenizer->flags[id] | flags);
    tokenizer->kinds[id] = (uint8_t)kind;
    return STATUS_OK;
}

/* --- Models ------------------------------------------------------------------------------------*/

static status_t read_prefix(const file_t *file, const char *key, char **own)
{
    const char *text = "";
    TRY(json_may_text(file->model, "model", key, &text, NULL));
    if (strlen(text) > PREFIX_BYTES_MAX)
        return fail(STATUS_INVALID, "model: \"%s\" is longer than %d bytes", key, PREFIX_BYTES_MAX);
    free(*own);
    *own = mem_strdup(text);
    return STATUS_OK;
}

static status_t read_unknown(const file_t *file)
{
    const char *text = NULL;
    size_t n = 0;
    TRY(json_may_text(file->model, "model", "unk_token", &text, &n));
    if (text == NULL)
        return STATUS_OK;
    uint32_t id = tokenizer_index_find(file->tokenizer, (const uint8_t *)text, n);
    if (id == TOKENIZER_NO_ID && n > 0)
        return fail(STATUS_INVALID, "unk_token %s is no token of the vocabulary",
                    tokenizer_show(text, n).text);
    file->tokenizer->model_unknown_id = id;
    return STATUS_OK;
}

/* A merge is "left right" in older files and ["left", "right"] in newer ones. */
static status_t put_json_merge(tokenizer_t *tokenizer, size_t rank, const json_t *merge)
{
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge);
        size_t n = json_string_length(merge);
        const char *space = memchr(text, ' ', n);
        size_t n_left = space == NULL ? 0 : (size_t)(space - text);
        if (n_left == 0 || n_left + 1 == n || memchr(space + 1, ' ', n - n_left - 1) != NULL)
            return fail(STATUS_INVALID, "merge %zu is \"%s\"; it must be two tokens and one space",
                        rank, tokenizer_show(text, n).text);
        return tokenizer_put_merge(tokenizer, rank, text, n_left, space + 1, n - n_left - 1, true);
    }
    const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
    if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right))
        return fail(STATUS_INVALID, "merge %zu is no pair of texts", rank);
    return tokenizer_put_merge(tokenizer, rank, json_string_value(left), json_string_length(left),
                               json_string_value(right), json_string_length(right), true);
}

static status_t make_bpe(const file_t *file)
{
    static const char where[] = "model";
    tokenizer_t *tokenizer = file->tokenizer;
    double dropout = 0;
    TRY(json_may_number(file->model, where, "dropout", &dropout));
    if (dropout != 0)
        return fail(STATUS_UNSUPPORTED, "the model has dropout %g; it is for training and makes "
                    "encoding random", dropout);
    TRY(json_may_bool(file->model, where, "fuse_unk", &tokenizer->fuse_unknown));
    TRY(json_may_bool(file->model, where, "byte_fallback", &tokenizer->byte_fallback));
    TRY(json_may_bool(file->model, where, "ignore_merges", &tokenizer->ignore_merges));
    TRY(read_prefix(file, "continuing_subword_prefix", &tokenizer->continuing_prefix));
    TRY(read_prefix(file, "end_of_word_suffix", &tokenizer->word_suffix));
    TRY(read_unknown(file));
    const json_t *merges;
    TRY(json_get_array(file->model, where, "merges", &merges));
    size_t n = json_array_size(merges);
    if (n > TOKENIZER_MERGES_MAX)
        return fail(STATUS_INVALID, "there are %zu merges; at most %d are possible", n,
                    TOKENIZER_MERGES_MAX);
    bpe_reserve(&tokenizer->merges, n);
    for (size_t i = 0; i < n; i++)
        TRY(put_json_merge(tokenizer, i, json_array_get(merges, i)));
    return STATUS_OK;
}

static status_t make_unigram(const file_t *file, const json_t *pieces)
{
    tokenizer_t *tokenizer = file->tokenizer;
    uint64_t unknown = TOKENIZER_NO_ID;
    size_t n = json_array_size(pieces);
    TRY(json_may_u64(file->model, "model", "unk_id", 0, n == 0 ? 0 : n - 1, &unknown));
    TRY(json_may_bool(file->model, "model", "byte_fallback", &tokenizer->byte_fallback));
    tokenizer->model = MODEL_UNIGRAM;
    tokenizer->model_unknown_id = (uint32_t)unknown;
    tokenizer->fuse_unknown = true;
    unigram_start(&tokenizer->unigram);
    for (size_t i = 0; i < n; i++) {
        double score = json_number_value(json_array_get(json_array_get(pieces, i), 1));
        const token_bytes_t *text = &tokenizer->texts[i];
        if (score < tokenizer->unigram.min_score)
            tokenizer->unigram.min_score = score;
        if (tokenizer_model_find(tokenizer, text->data, text->size) == i)
            TRY(unigram_add(&tokenizer->unigram, text->data, text->size, (uint32_t)i, score));
    }
    return STATUS_OK;
}

static status_t make_wordpiece(const file_t *file)
{
    tokenizer_t *tokenizer = file->tokenizer;
    uint64_t max = 100;
    tokenizer->model = MODEL_WORDPIECE;
    TRY(read_prefix(file, "continuing_subword_prefix", &tokenizer->continuing_prefix));
    TRY(json_may_u64(file->model, "model", "max_input_chars_per_word", 0, 1000, &max));
    tokenizer->word_points_max = (size_t)max;
    TRY(read_unknown(file));
    if (tokenizer->model_unknown_id == TOKENIZER_NO_ID)
        return fail(STATUS_INVALID, "a model of type WordPiece needs an unk_token");
    return STATUS_OK;
}

/* --- What surrounds a text where special tokens are asked for ----------------------------------*/

static status_t add_template_token(const json_t *processor, const json_t *part, token_ids_t *out)
{
    static const char where[] = "post_processor";
    const json_t *special, *tokens, *token, *ids;
    const char *name;
    TRY(json_get_object(part, where, "SpecialToken", &special));
    TRY(json_get_text(special, where, "id", &name, NULL));
    TRY(json_get_object(processor, where, "special_tokens", &tokens));
    TRY(json_get_object(tokens, where, name, &token));
    TRY(json_get_array(token, where, "ids", &ids));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        uint32_t id;
        TRY(read_id(json_array_get(ids, i), "a special token of the post_processor", &id));
        token_ids_append(out, id);
    }
    return STATUS_OK;
}

static status_t add_template(const json_t *processor, tokenizer_t *tokenizer)
{
    const json_t *single;
    size_t n_texts = 0;
    TRY(json_get_array(processor, "post_processor", "single", &single));
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i);
        if (json_object_get(part, "Sequence") != NULL)
            n_texts++;
        else
            TRY(add_template_token(processor, part,
                                   n_texts == 0 ? &tokenizer->prefix : &tokenizer->suffix));
    }
    if (n_texts != 1)
        return fail(STATUS_INVALID,
                    "the post_processor's \"single\" has the text %zu times; once is right",
                    n_texts);
    return STATUS_OK;
}

/* BertProcessing and RobertaProcessing: [text, id] under "cls" and "sep". */
static status_t add_pair(const json_t *processor, const char *key, token_ids_t *out)
{
    const json_t *pair;
    uint32_t id;
    TRY(json_get_array(processor, "post_processor", key, &pair));
    TRY(read_id(json_array_get(pair, 1), "a special token of the post_processor", &id));
    token_ids_append(out, id);
    return STATUS_OK;
}

static status_t add_processor(const json_t *value, tokenizer_t *tokenizer, int depth)
{
    static const char where[] = "post_processor";
    const char *type;
    const json_t *list;
    TRY(tokenizer_json_type(value, where, "processors", &type, &list));
    if (list != NULL) {
        if (depth == TOKENIZER_JSON_DEPTH_MAX)
            return fail(STATUS_INVALID, "the post_processor has Sequences nested deeper than %d",
                        depth);
        for (size_t i = 0; i < json_array_size(list); i++)
            TRY(add_processor(json_array_get(list, i), tokenizer, depth + 1));
        return STATUS_OK;
    }
    if (strcmp(type, "ByteLevel") == 0)
        return STATUS_OK; /* it moves offsets, which nobody asks for */
    if (strcmp(type, "TemplateProcessing") == 0)
        return add_template(value, tokenizer);
    if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0) {
        TRY(add_pair(value, "cls", &tokenizer->prefix));
        return add_pair(value, "sep", &tokenizer->suffix);
    }
    return fail(STATUS_UNSUPPORTED, "%s: the type \"%.40s\" is not supported", where, type);
}

static status_t check_ids(const tokenizer_t *tokenizer, const token_ids_t *ids)
{
    for (size_t i = 0; i < ids->n; i++)
        if (ids->ids[i] >= tokenizer->n_tokens)
            return fail(STATUS_INVALID,
                        "the post_processor adds id %u; the vocabulary has ids 0 to %u",
                        ids->ids[i], tokenizer->n_tokens - 1);
    return STATUS_OK;
}

static status_t build(file_t *file, const json_t *vocabulary)
{
    tokenizer_t *tokenizer = file->tokenizer;
    const json_t *root = file->root, *processor = json_object_get(root, "post_processor");
    TRY(file->unigram ? put_pieces(file, vocabulary) : put_vocabulary(file, vocabulary));
    for (size_t i = 0; i < json_array_size(file->added); i++)
        TRY(put_added(file, json_array_get(file->added, i)));
    TRY(tokenizer_json_normalizer(json_object_get(root, "normalizer"), &tokenizer->normalizer));
    TRY(tokenizer_json_pretok(json_object_get(root, "pre_tokenizer"), &tokenizer->pretok));
    TRY(tokenizer_json_decoder(json_object_get(root, "decoder"), &tokenizer->decoder));
    if (processor != NULL && !json_is_null(processor))
        TRY(add_processor(processor, tokenizer, 0));
    TRY(check_ids(tokenizer, &tokenizer->prefix));
    TRY(check_ids(tokenizer, &tokenizer->suffix));
    if (file->unigram)
        TRY(make_unigram(file, vocabulary));
    else if (strcmp(file->type, "BPE") == 0)
        TRY(make_bpe(file));
    else
        TRY(make_wordpiece(file));
    return tokenizer_finish(tokenizer);
}

static status_t read_file(file_t *file, const char *name)
{
    const json_t *vocabulary;
    TRY(find_model(file, &vocabulary));
    TRY(count_tokens(file, vocabulary));
    file->tokenizer = tokenizer_new(name, file->n_tokens);
    return build(file, vocabulary);
}

status_t tokenizer_from_json(const char *name, const tokenizer_text_t *tokenizer_json,
                             const tokenizer_text_t *config_json,
                             const tokenizer_text_t *generation_json, tokenizer_t **own_out)
{
    json_t *root;
    json_limits_t limits = {.bytes_max = JSON_BYTES_MAX, .values_max = JSON_VALUES_MAX};
    TRY(json_read_object(name, tokenizer_json->data, tokenizer_json->size, &limits, &root));
    file_t file = {.root = root};
    status_t status = read_file(&file, name);
    json_decref(root);
    if (status == STATUS_OK)
        status = tokenizer_json_names(file.tokenizer, config_json, generation_json);
    if (status != STATUS_OK) {
        status = fail_in(status, "%s", name);
        tokenizer_release(file.tokenizer);
        return status;
    }
    *own_out = file.tokenizer;
    return STATUS_OK;
}
