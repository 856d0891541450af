/* The pre-tokenizers that GGUF files name in tokenizer.ggml.pre, as Hugging Face's tokenizer.json
 * of the same models writes them: Splits that isolate their matches, then ByteLevel. */
#include <string.h>

#include "common/model/tokenizer_pretok.h"

enum { EXPRESSIONS_MAX = 6 };

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES_END "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" \
                 SPACES_END
#define QWEN2 \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" SPACES_END
#define QWEN35 \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+" \
                 "[\\r\\n]*" SPACES_END
/* Words of cased scripts end where the case falls; the tail is where GPT-4o and Tekken differ. */
#define NO_WORD "[^\\r\\n\\p{L}\\p{N}]"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_WORDS(tail) \
    NO_WORD "?" UPPER "*" LOWER "+" tail "|" NO_WORD "?" UPPER "+" LOWER "*" tail
#define GPT4O \
    CASED_WORDS(CONTRACTIONS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES_END
#define TEKKEN CASED_WORDS("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" SPACES_END
#define DEEPSEEK_V3 \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?" \
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*" SPACES_END
#define HAN_AND_KANA \
    "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-\xE3\x83\xBF]+"
/* Letters of DeepSeek's first generation, as its files list them. */
#define DEEPSEEK_LETTERS \
    "A-Za-z\xC2\xB5\xC3\x80-\xC3\x96\xC3\x98-\xC3\xB6\xC3\xB8-\xC6\xBA\xC6\xBC-\xC6\xBF\xC7\x84-" \
    "\xCA\x93\xCA\x95-\xCA\xAF\xCD\xB0-\xCD\xB3\xCD\xB6\xCD\xB7\xCD\xBB-\xCD\xBD\xCD\xBF\xCE\x86" \
    "\xCE\x88-\xCE\x8A\xCE\x8C\xCE\x8E-\xCE\xA1\xCE\xA3-\xCF\xB5\xCF\xB7-\xD2\x81\xD2\x8A-" \
    "\xD4\xAF" \
    "\xD4\xB1-\xD5\x96\xE1\x82\xA0-\xE1\x83\x85\xE1\x8E\xA0-\xE1\x8F\xB5\xE1\x8F\xB8-\xE1\x8F\xBD" \
    "\xE1\xB2\x90-\xE1\xB2\xBA\xE1\xB2\xBD-\xE1\xB2\xBF\xE1\xB4\x80-\xE1\xB4\xAB\xE1\xB5\xAB-" \
    "\xE1\xB5\xB7\xE1\xB5\xB9-\xE1\xB6\x9A\xE1\xB8\x80-\xE1\xBC\x95\xE1\xBC\x98-\xE1\xBC\x9D" \
    "\xE1\xBC\xA0-\xE1\xBD\x85\xE1\xBD\x88-\xE1\xBD\x8D\xE1\xBD\x90-\xE1\xBD\x97\xE1\xBD\x99" \
    "\xE1\xBD\x9B\xE1\xBD\x9D\xE1\xBD\x9F-\xE1\xBD\xBD\xE1\xBE\x80-\xE1\xBE\xB4\xE1\xBE\xB6-" \
    "\xE1\xBE\xBC\xE1\xBE\xBE\xE1\xBF\x82-\xE1\xBF\x84\xE1\xBF\x86-\xE1\xBF\x8C\xE1\xBF\x90-" \
    "\xE1\xBF\x93\xE1\xBF\x96-\xE1\xBF\x9B\xE1\xBF\xA0-\xE1\xBF\xAC\xE1\xBF\xB2-\xE1\xBF\xB4" \
    "\xE1\xBF\xB6-\xE1\xBF\xBC\xE2\x84\x82\xE2\x84\x87\xE2\x84\x8A-\xE2\x84\x93\xE2\x84\x95" \
    "\xE2\x84\x99-\xE2\x84\x9D\xE2\x84\xA4\xE2\x84\xA6\xE2\x84\xA8\xE2\x84\xAA-\xE2\x84\xAD" \
    "\xE2\x84\xAF-\xE2\x84\xB4\xE2\x84\xB9\xE2\x84\xBC-\xE2\x84\xBF\xE2\x85\x85-\xE2\x85\x89" \
    "\xE2\x85\x8E\xE2\x86\x83\xE2\x86\x84\xE2\xB0\x80-\xE2\xB1\xBB\xE2\xB1\xBE-\xE2\xB3\xA4" \
    "\xE2\xB3\xAB-\xE2\xB3\xAE\xE2\xB3\xB2\xE2\xB3\xB3\xEA\x99\x80-\xEA\x99\xAD\xEA\x9A\x80-" \
    "\xEA\x9A\x9B\xEA\x9C\xA2-\xEA\x9D\xAF\xEA\x9D\xB1-\xEA\x9E\x87\xEA\x9E\x8B-\xEA\x9E\x8E" \
    "\xEA\xAD\xB0-\xEA\xAE\xBF\xEF\xAC\x80-\xEF\xAC\x86\xEF\xAC\x93-\xEF\xAC\x97\xEF\xBC\xA1-" \
    "\xEF\xBC\xBA\xEF\xBD\x81-\xEF\xBD\x9A\xF0\x90\x90\x80-\xF0\x90\x91\x8F\xF0\x90\x92\xB0-" \
    "\xF0\x90\x93\x93\xF0\x90\x93\x98-\xF0\x90\x93\xBB\xF0\x90\xB2\x80-\xF0\x90\xB2\xB2" \
    "\xF0\x90\xB3\x80-\xF0\x90\xB3\xB2\xF0\x91\xA2\xA0-\xF0\x91\xA3\x9F\xF0\x9E\xA4\x80-" \
    "\xF0\x9E\xA5\x83"

typedef struct {
    const char *names; /* each ended by a space */
    bool ignores_merges, words; /* words: ByteLevel cuts by GPT-2's own expression */
    const char *expressions[EXPRESSIONS_MAX]; /* NULL after the last */
} row_t;

static const row_t rows[] = {
    {"gpt-2 gpt2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code mpt olmo jais "
     "roberta-bpe mellum modern-bert trillion granite-docling exaone4 ", false, true, {NULL}},
    {"smollm starcoder refact command-r codeshell exaone minerva-7b ", false, true, {"\\p{N}"}},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 ", true, false, {LLAMA3}},
    {"dbrx smaug-bpe chatglm-bpe glm4 ", false, false, {LLAMA3}},
    {"qwen2 deepseek-r1-qwen stablelm2 megrez solar-open hunyuan kormo ", false, false, {QWEN2}},
    {"qwen35 ", false, false, {QWEN35}},
    {"gpt-4o llama4 kanana2 ", false, false, {GPT4O}},
    {"tekken ", true, false, {TEKKEN}},
    {"deepseek-llm ", false, false,
     {"[\\r\\n]", "\\s?[" DEEPSEEK_LETTERS "]+",
      "\\s?[!-/:-~\xEF\xBC\x81-\xEF\xBC\x8F\xEF\xBC\x9A-\xEF\xBD\x9E\xE2\x80\x98-\xE2\x80\x9F"
      "\xE3\x80\x80-\xE3\x80\x82]+", "\\s+$",
      "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB7\xBF\xEA\xB0\x80-\xED\x9E\xA3]+", "\\p{N}+"}},
    {"deepseek-coder ", false, false,
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
      "[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB7\xBF\xEA\xB0\x80-\xED\x9E\xA3]+", "\\p{N}"}},
    {"deepseek-v3 hunyuan-dense joyai-llm ", false, false,
     {"\\p{N}{1,3}", HAN_AND_KANA, DEEPSEEK_V3}},
    /* What llama.cpp does where a file names none. */
    {"default ", false, false,
     {"[\\p{P}$+<=>^~|]+",
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)", "\\p{N}+",
      "[0-9][0-9][0-9]"}},
    {"falcon ", false, false,
     {"[\\p{P}$+<=>^~|`]+",
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)",
      "[0-9][0-9][0-9]"}},
};

static bool has_name(const row_t *row, const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || strchr(name, ' ') != NULL)
        return false;
    for (const char *at = row->names; *at != 0; at = strchr(at, ' ') + 1)
        if (strncmp(at, name, n) == 0 && at[n] == ' ')
            return true;
    return false;
}

status_t pretok_add_named(pretok_t *pretok, const char *name, bool *ignores_merges_out)
{
    const row_t *row = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (has_name(&rows[i], name))
            row = &rows[i];
    if (row == NULL)
        return fail(STATUS_UNSUPPORTED,
                    "pre-tokenizer \"%.64s\" is not known; known are among others gpt-2, smollm, "
                    "llama-bpe, qwen2, deepseek-llm, deepseek-coder, deepseek-v3, tekken, gpt-4o "
                    "and default",
                    name);
    for (size_t i = 0; i < EXPRESSIONS_MAX && row->expressions[i] != NULL; i++)
        TRY(pretok_add_split(pretok, row->expressions[i], SPLIT_ISOLATED, false));
    *ignores_merges_out = row->ignores_merges;
    return pretok_add_byte_level(pretok, false, row->words);
}
