/* See support.h. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/memory.h"

static tokenizer_t *smollm2;

const char *support_model_path(void)
{
    const char *path = getenv("SHOAL_MODEL");
    if (path != NULL && *path != 0)
        return path;
    return SHOAL_TEST_DATA "/../../.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

tokenizer_t *support_smollm2(void)
{
    if (smollm2 == NULL && tokenizer_open(support_model_path(), &smollm2) != STATUS_OK)
        fail_msg("%s\nset SHOAL_MODEL to the SmolLM2-135M-Instruct GGUF, or run tests/run",
                 status_text());
    return smollm2;
}

void support_release(void)
{
    tokenizer_release(smollm2);
    smollm2 = NULL;
}

char *support_read(const char *name, size_t *n_out)
{
    char *path = mem_format("%s/%s", SHOAL_TEST_DATA, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("cannot open %s", path);
    buffer_t text = {0};
    char chunk[4096];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, file)) > 0)
        buffer_append(&text, chunk, n);
    fclose(file);
    free(path);
    *n_out = text.size;
    return (char *)text.data;
}

json_t *support_rows(const char *name)
{
    size_t n;
    char *text = support_read(name, &n);
    json_t *rows = json_array();
    for (char *line = text, *end; line < text + n; line = end + 1) {
        end = memchr(line, '\n', (size_t)(text + n - line));
        if (end == NULL)
            end = text + n;
        if (end == line)
            continue;
        json_error_t error;
        json_t *row = json_loadb(line, (size_t)(end - line), JSON_ALLOW_NUL, &error);
        if (row == NULL)
            fail_msg("%s, row %zu: %s", name, json_array_size(rows), error.text);
        json_array_append_new(rows, row);
    }
    free(text);
    assert_true(json_array_size(rows) > 0);
    return rows;
}

void support_vocabulary(support_vocabulary_t *vocabulary)
{
    memset(vocabulary, 0, sizeof *vocabulary);
    unsigned hidden = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        /* GPT-2's alphabet, written down again so that the tests do not lean on the code. */
        bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                         byte >= 0xAE;
        unsigned code = printable ? byte : hidden++;
        char *spelling = vocabulary->spellings[byte];
        if (code < 0x80)
            spelling[0] = (char)code;
        else
            snprintf(spelling, 3, "%c%c", (int)(0xC0 | code >> 6), (int)(0x80 | (code & 0x3F)));
        vocabulary->tokens[byte] = (tokenizer_text_t){spelling, strlen(spelling)};
        vocabulary->kinds[byte] = TOKEN_NORMAL;
    }
    vocabulary->source = (tokenizer_source_t){
        .tokens = vocabulary->tokens, .kinds = vocabulary->kinds, .n_tokens = 256,
        .merges = vocabulary->merges, .pre = "gpt-2", .name = "test",
        .bos_id = TOKENIZER_NO_ID, .eos_id = TOKENIZER_NO_ID, .pad_id = TOKENIZER_NO_ID,
        .unknown_id = TOKENIZER_NO_ID};
}

uint32_t support_add_token(support_vocabulary_t *vocabulary, const char *text, token_kind_t kind)
{
    size_t id = vocabulary->source.n_tokens++;
    assert_true(id < 512);
    vocabulary->tokens[id] = (tokenizer_text_t){text, strlen(text)};
    vocabulary->kinds[id] = (uint8_t)kind;
    return (uint32_t)id;
}

void support_add_merge(support_vocabulary_t *vocabulary, const char *merge, const char *token)
{
    support_add_token(vocabulary, token, TOKEN_NORMAL);
    size_t rank = vocabulary->source.n_merges++;
    assert_true(rank < 128);
    vocabulary->merges[rank] = (tokenizer_text_t){merge, strlen(merge)};
}
