/* Text to token ids and back, immutable after creation: BPE (byte-level or of characters with byte
 * fallback), Unigram and WordPiece, with the normalizers, pre-tokenizers and decoders around them.
 *
 * It comes from a Hugging Face directory (tokenizer.json), from a GGUF file's keys or from plain
 * arrays. Ids and texts agree with Hugging Face's tokenizers library on the same vocabulary.
 *
 * Text must be valid UTF-8 (NUL is an ordinary byte): anything else is refused with the offset of
 * the first wrong byte, so that no prompt is silently altered. What the vocabulary has no token for
 * becomes its unknown token; where it has none it is left out, as in Hugging Face's BPE (SmolLM2
 * lacks 21 bytes, among them the control bytes 04, 06, 13, 14, 16 and 1D; the others never occur in
 * valid UTF-8 except F1 and F2, planes 4 to 11, which hold no characters).
 *
 * Special tokens (control tokens of the vocabulary) in text are found only where the caller says
 * so, and ordinary text never becomes one. User-defined tokens are ordinary text written as one id
 * and are found always.
 *
 * All functions may be called from any thread at once; none blocks or touches a file, but
 * tokenizer_open. */
#ifndef SHOAL_COMMON_MODEL_TOKENIZER_H
#define SHOAL_COMMON_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buffer.h"
#include "common/base/status.h"

struct gguf;

enum {
    TOKENIZER_TOKENS_MAX = 1 << 20,
    TOKENIZER_MERGES_MAX = 1 << 22,
    TOKENIZER_TOKEN_BYTES_MAX = 65536,      /* of one token */
    TOKENIZER_SPECIAL_BYTES_MAX = 1024,     /* of one token that is looked for in text */
    TOKENIZER_TEXT_BYTES_MAX = 64 << 20,    /* of one text to encode */
};

/* An id that no token has. */
#define TOKENIZER_NO_ID UINT32_MAX

/* What a token is; the numbers are those of GGUF's token_type. */
typedef enum {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
} token_kind_t;

typedef struct {
    const char *data; /* no NUL is expected after it */
    size_t size;
} tokenizer_text_t;

/* What a tokenizer is made of where there is no tokenizer.json. Everything is copied. */
typedef struct {
    const char *model; /* in GGUF's words: "gpt2" (also NULL), "llama" (SentencePiece) or "t5" */
    const tokenizer_text_t *tokens; /* by id; normal ones of gpt2 in GPT-2's byte alphabet */
    const uint8_t *kinds;           /* token_kind_t by id; NULL: all normal */
    size_t n_tokens;
    const tokenizer_text_t *merges; /* "left right", best first */
    size_t n_merges;
    const double *scores; /* by id, of llama and t5 */
    const char *pre;  /* of gpt2: a name of tokenizer.ggml.pre, such as "qwen2"; NULL: "default" */
    const char *name; /* stands in errors, such as the file's path */
    uint32_t bos_id, eos_id, pad_id, unknown_id; /* TOKENIZER_NO_ID where there is none */
    const uint32_t *eog_ids; /* further ids that end a generation */
    size_t n_eog_ids;
    bool add_bos, add_eos;
    bool no_space_prefix;  /* of llama and t5: no space before the text */
    bool squeeze_spaces;   /* of t5 */
    const uint8_t *charsmap; /* of t5, or NULL */
    size_t charsmap_size;
} tokenizer_source_t;

typedef struct tokenizer tokenizer_t;

/* A growable list of ids. Zero-initialised is empty and ready. */
typedef struct {
    uint32_t *ids;
    size_t n;
    size_t capacity;
} token_ids_t;

void token_ids_append(token_ids_t *list, uint32_t id);
void token_ids_release(token_ids_t *list);

/* STATUS_INVALID names the token or merge that is wrong; STATUS_UNSUPPORTED a pre-tokenizer that is
 * not known, with those that are. */
status_t tokenizer_create(const tokenizer_source_t *source, tokenizer_t **own_out) MUST_USE;
/* From an open GGUF file's tokenizer.ggml.* keys. The file may be closed afterwards. */
status_t tokenizer_from_gguf(const struct gguf *gguf, tokenizer_t **own_out) MUST_USE;
/* From the texts of tokenizer.json and, where they exist, tokenizer_config.json and
 * generation_config.json (NULL: absent). `name` stands in errors. */
status_t tokenizer_from_json(const char *name, const tokenizer_text_t *tokenizer_json,
                             const tokenizer_text_t *config_json,
                             const tokenizer_text_t *generation_json,
                             tokenizer_t **own_out) MUST_USE;
/* From a Hugging Face directory with tokenizer.json. */
status_t tokenizer_open_directory(const char *path, tokenizer_t **own_out) MUST_USE;
/* A directory as above, the tokenizer.json itself, or a GGUF file. */
status_t tokenizer_open(const char *path, tokenizer_t **own_out) MUST_USE;
/* Before it is shared: makes ids below n_tokens that no token has stand for nothing, as Hugging Face
 * decodes them. Models pad their vocabulary, and an id of the padding can be drawn. */
void tokenizer_widen(tokenizer_t *tokenizer, uint32_t n_tokens);
void tokenizer_release(tokenizer_t *take_tokenizer);

uint32_t tokenizer_n_tokens(const tokenizer_t *tokenizer);
uint32_t tokenizer_bos_id(const tokenizer_t *tokenizer); /* TOKENIZER_NO_ID where there is none */
uint32_t tokenizer_eos_id(const tokenizer_t *tokenizer);
/* What the model wants before and behind a raw prompt (Hugging Face's add_special_tokens); encode
 * itself never adds it. */
const uint32_t *tokenizer_prefix_ids(const tokenizer_t *tokenizer, size_t *n_out);
const uint32_t *tokenizer_suffix_ids(const tokenizer_t *tokenizer, size_t *n_out);
/* Whether bos_id is among the prefix. */
bool tokenizer_adds_bos(const tokenizer_t *tokenizer);
/* eos and every other id that ends a generation, ascending, without repeats. */
const uint32_t *tokenizer_end_ids(const tokenizer_t *tokenizer, size_t *n_out);
/* Whether the id ends a generation. */
bool tokenizer_is_end(const tokenizer_t *tokenizer, uint32_t id);
/* Control and unknown tokens, which skip_special leaves out; false for ids out of range. */
bool tokenizer_is_special(const tokenizer_t *tokenizer, uint32_t id);
/* The id whose token is written exactly so in the vocabulary, or TOKENIZER_NO_ID. */
uint32_t tokenizer_find(const tokenizer_t *tokenizer, const char *text, size_t n);
/* The bytes that an id stands for, which need not be valid UTF-8; NULL for ids out of range. */
const uint8_t *tokenizer_bytes(const tokenizer_t *tokenizer, uint32_t id, size_t *n_out);

/* How an encode treats special tokens that stand in the text. */
typedef enum {
    TOKENIZE_PLAIN,   /* they are text like any other */
    TOKENIZE_SPECIAL, /* they become their id: Hugging Face's default; only for trusted text */
} tokenize_mode_t;

/* Appends the text's ids to `out`. More than ids_max new ids are refused with STATUS_INVALID; on
 * any failure `out` is as before. O(n log n), times the longest token that is looked for. */
status_t tokenizer_encode(const tokenizer_t *tokenizer, const char *text, size_t n,
                          tokenize_mode_t mode, size_t ids_max, token_ids_t *out) MUST_USE;
/* The same for marked text: a special token is found only where each of its bytes has a mark other
 * than 0. marks[i] belongs to text[i]. */
status_t tokenizer_encode_marked(const tokenizer_t *tokenizer, const char *text,
                                 const uint8_t *marks, size_t n, size_t ids_max,
                                 token_ids_t *out) MUST_USE;

/* Appends the ids' text to `out`: always valid UTF-8, broken bytes become U+FFFD as in Hugging
 * Face. An id out of range is STATUS_INVALID with its place; `out` is then as before. */
status_t tokenizer_decode(const tokenizer_t *tokenizer, const uint32_t *ids, size_t n,
                          bool skip_special, buffer_t *out) MUST_USE;

#endif
